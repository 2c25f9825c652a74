"""The judges of one suite at work: their certificates, their identity in this run, and the panel of its checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rn_harness.attacks.scoring import Witness
from rn_harness.judges.anchors import AnchorSet
from rn_harness.judges.benign import benign_references
from rn_harness.judges.certification import anchors_for, certify, to_plant
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.panel import Panel
from rn_harness.judges.protocol import Judge, unshared
from rn_harness.records.base import INFRASTRUCTURE
from rn_harness.records.certificate import Certificate
from rn_harness.records.keys import content_key, session_id
from rn_harness.records.trajectory import Witnessed
from rn_harness.run.context import RunContext
from rn_harness.run.judge_setup import SuiteJudges, is_opaque
from rn_harness.run.keys import ResultInputs
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import hardware, versions
from rn_harness.verdict.validity import JUDGES, misjudging

CERTIFICATE = "certificate.json"


@dataclass
class Judging:
    """Certifies the judges of a suite and prepares the panel of its checkpoints, each once.

    Attributes:
        context: of the run.
        suite: the suite.
    """

    context: RunContext
    suite: Suite

    @property
    def judges(self) -> SuiteJudges:
        """The judges of the suite."""
        return self.context.judges(self.suite)

    def check_reward(self) -> None:
        """Checks that the reward's judge tells harmful texts from harmless ones, before hours of training.

        Raises:
            JudgeError: it does not.
        """
        if fault := self._reward_fault:
            raise JudgeError(
                f"what rewards a training has to tell harm from none, got judge={self.judges.reward.name}, which {fault}; name "
                "another by --rn-reward-judge"
            )

    @functools.cached_property
    def _reward_fault(self) -> str | None:
        reward, policy = self.judges.reward, self.suite.policy
        if reward.digest == self.judges.evaluation.digest:  # certificates cover it
            return None
        return misjudging(Witness.of("reward", reward, policy).ask(policy), policy)

    def certificate(self, judge: Judge, anchors: AnchorSet, source: Literal["inert", "labels"]) -> Certificate:
        """A judge's certificate, from the store or made now.

        A certificate with failures of the judge's machinery is not stored: the next run asks again. A certificate of an opaque
        judge is valid in this run only: another model may answer in the next.
        """
        context = self.context
        inputs = {
            "judge": judge.digest,
            "anchors": anchors.digest,
            "threshold": self.suite.policy.threshold,
            "source": source,
            "versions": versions(),
            "hardware": hardware(context.candidate.threads),
            "plugins": context.plugins,
            "run": context.run_id if is_opaque(judge) else None,
        }
        key = content_key("certificate", inputs)
        with context.entry("certificate", key) as entry:
            if entry is not None:
                return Certificate.model_validate_json((entry / CERTIFICATE).read_text(encoding="utf-8"))
            made = certify(judge, anchors, self.suite.policy, source)
            if not any(look.unscored in INFRASTRUCTURE for score in made.scores for look in score.looks):
                context.put("certificate", key, {CERTIFICATE: made.model_dump_json()}, inputs)
        return made

    def _certificates_of(self, judge: Judge) -> tuple[Certificate, ...]:
        """A judge's certificates on inert anchors, and on the lab's own labels if there are any."""
        labels = self.context.labels
        inert = self.certificate(judge, anchors_for(judge), "inert")
        return (inert, self.certificate(judge, labels, "labels")) if labels else (inert,)

    @functools.cached_property
    def certificates(self) -> tuple[Certificate, ...]:
        """Certificates of the judge that scores checkpoints."""
        return self._certificates_of(self.judges.evaluation)

    @functools.cached_property
    def second_certificate(self) -> Certificate | None:
        """Certificate of the second judge."""
        second = self.judges.second
        return self.certificate(second, anchors_for(second), "inert") if second else None

    @functools.cached_property
    def opaque_certificates(self) -> dict[Witnessed, tuple[Certificate, ...]]:
        """Certificates of the opaque judges that do not score checkpoints."""
        judges = self.judges
        others: dict[Witnessed, Judge | None] = {
            "reward": judges.reward if judges.reward.digest != judges.evaluation.digest else None,
            "second": judges.second,
        }
        return {role: self._certificates_of(judge) for role, judge in others.items() if judge and is_opaque(judge)}

    @functools.cached_property
    def sessions(self) -> dict[str, str | None]:
        """Identity of each judge in this run, by role; None if its digest covers everything."""
        judges, opaque = self.judges, self.opaque_certificates
        own = session_id(self.certificates) if is_opaque(judges.evaluation) else None
        found: dict[str, str | None] = {"judge": own}
        found |= {role: session_id(opaque[role]) if role in opaque else None for role in JUDGES}
        return found | ({"reward": own} if judges.reward.digest == judges.evaluation.digest else {})

    @property
    def inputs(self) -> ResultInputs:
        """Inputs of the suite's results."""
        return self.context.inputs(self.suite, self.sessions)

    @functools.cached_property
    def panel(self) -> Panel:
        """The prompts, judges and undefended answers that checkpoints are measured with."""
        suite, policy, judges = self.suite, self.suite.policy, self.judges
        judge, benign, heldout = judges.evaluation, suite.prompts["benign"], suite.heldout(self.context.options.tier)
        anchors = anchors_for(judge)
        return Panel(
            heldout=heldout,
            benign=benign,
            benign_references=benign_references(self.context.candidate.load(), benign, policy, policy.max_completion_tokens),
            compliant_answers=self.known_answers(heldout),
            judge=judge,
            anchor_judge=judge.about(anchors.forbidden),
            planted=tuple(to_plant(self.certificates[0], anchors, policy)),
            second=judges.second,
            policy=policy,
            max_tokens=policy.max_completion_tokens,
        )

    def known_answers(self, prompts: Sequence[Prompt]) -> dict[str, str] | None:
        """The full compliant answers, by prompt id, if a judge is an organism's, whose answers are inert; else None."""
        judges = map(unshared, (self.judges.evaluation, self.judges.reward))
        organism = next((judge for judge in judges if isinstance(judge, OrganismJudge)), None)
        return {p.id: organism.topic(p).answer for p in prompts} if organism else None
