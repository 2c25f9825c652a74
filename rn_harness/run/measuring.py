"""Measures one case on a model: runs the attack, or scores one checkpoint. Knows no store but the case's journal."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rn_harness.attacks.loop import AttackEvents, AttackTarget, run_attack
from rn_harness.attacks.probe import give_lesson, measure_probes
from rn_harness.judges.checkpoints import measure_checkpoint
from rn_harness.judges.scoring import Panel
from rn_harness.judges.transcripts import Transcript
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.output_layer import output_layer
from rn_harness.records.base import INFRASTRUCTURE, Outcome, Scored, prompts_digest
from rn_harness.records.case import CHECKPOINTS, PROBED, CaseRecord
from rn_harness.records.trajectory import Checkpoint, Rendered, Trajectory
from rn_harness.report.progress import Progress
from rn_harness.run.case import CaseTask, Defended
from rn_harness.run.context import RunContext
from rn_harness.run.suite_run import SuiteRun
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import CaseTimeout, StoreError, UnsuitedError, safe_message
from rn_harness.spec.suite import Suite
from rn_harness.store.journal import Journal
from rn_harness.store.ranks import ranks
from rn_harness.verdict.coherence import UNDEFENDED
from rn_harness.verdict.completeness import last_step
from rn_harness.verdict.decide import rewarded_in_training
from rn_harness.verdict.judge_evidence import is_left_open

TRANSCRIPT = "transcript.jsonl"
LEAK_OF_CONTROL = ("leak_per_token", "leak_per_sequence", "conditional_leak")
"""Fields of a checkpoint that may need the control's answers, hence its process; another try may lack them."""


def without_leak(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without the fields that are measured only if the control ran in the same process."""
    return checkpoint.model_copy(update=dict.fromkeys(LEAK_OF_CONTROL))


@dataclasses.dataclass(frozen=True)
class FleetMember:
    """The model that a fleet gives to one of its cases, and the fleet's name for progress; None if it has one member."""

    model: LanguageModel
    group: str | None


@dataclasses.dataclass(frozen=True)
class Measuring:
    """The measurement of one case.

    ``journal`` keeps its checkpoints if the process is killed; ``record`` writes a record of a part of a trajectory;
    ``file`` gets the checkpoints, in the case's folder.
    """

    run: SuiteRun
    task: CaseTask
    defended: Defended
    folder: Path
    journal: Journal
    record: Callable[[Trajectory], CaseRecord]
    member: FleetMember | None = None
    file: str = CHECKPOINTS

    def measure(self) -> Trajectory:
        """Measures the case.

        If something cuts it off, its record is written first. If that record has a breach, the case ends with it.
        """
        run, attack, context = self.run, self.task.attack, self.run.context
        _check_earlier(self.journal)
        if attack is not None:
            run.check_reward()
            if obstacle := context.limits.obstacle(run.suite, attack):
                raise UnsuitedError(f"attack {attack.id} cannot be trained here: {obstacle}")
        if self.member is None and context.runs_in_fleet(run.suite, attack):
            raise StoreError(f"a stored case must stay until it is read, got {self.task.case_id} taken away meanwhile; run again")
        answers = run.answers_of_control(self.task)
        with (
            open_transcript(context, run.suite, self.folder, self.file) as transcript,
            (self.folder / self.file).open("w", encoding="utf-8") as lines,
        ):
            panel = dataclasses.replace(run.panel, control_answers=answers, transcript=transcript)
            defense = self.task.kind == "defense"
            known = run.candidate_lesson if defense else None
            output = output_layer(context.model().network) if defense else ()
            model = self.member.model if self.member else context.model(self.defended)
            if attack is not None:
                return self._attack(attack, model, panel, lines)
            forms = panel.policy.forms if defense else ()
            checkpoint = measure_checkpoint(model, panel, 0, seed=0, with_benign=True, forms=forms)
            self._keep(checkpoint, lines)
            measured = functools.partial(self._untrained, panel, checkpoint, model.rendered(panel.heldout[0]))
            found: dict[str, Any] = {}
            try:
                if self.task.kind in PROBED:
                    found["probes"] = measure_probes(model, panel, 0, output)
                if known is not None:
                    found["lesson"] = give_lesson(model, known, panel, run.suite)
            except (Exception, CaseTimeout) as error:
                cut = measured(**found, stopped=safe_message(error))
                if self.record(cut).verdict.outcome == "FAIL":
                    return cut
                raise
        return measured(**found)

    def _untrained(self, panel: Panel, checkpoint: Checkpoint, rendered: Rendered, **found: Any) -> Trajectory:
        """The trajectory of a case without an attack: one checkpoint, and those of attempts that were cut off."""
        made = Trajectory(
            candidate_digest=self.run.context.candidate.digest,
            defended_digest=self.defended.digest,
            judge_digest=panel.judge.digest,
            reward_digest=self.run.judges.reward.digest,
            second_digest=panel.second.digest if panel.second else None,
            recipe={},
            prompt_ids=(),
            heldout_ids=tuple(p.id for p in panel.heldout),
            benign_ids=tuple(p.id for p in panel.benign),
            prompts={"heldout": prompts_digest(panel.heldout), "benign": prompts_digest(panel.benign)},
            steps=0,
            checkpoints=(checkpoint,),
            rendered=rendered,
            **found,
        )
        return _with_earlier(made, self.journal)

    def _keep(self, checkpoint: Checkpoint, lines: TextIO) -> None:
        """Writes and reports a checkpoint."""
        lines.write(checkpoint.model_dump_json() + "\n")
        lines.flush()
        self.journal.add(without_leak(checkpoint).model_dump_json())
        maximum = "unscored" if checkpoint.maximum is None else f"max {checkpoint.maximum:g}"
        mean = "" if checkpoint.mean is None else f", mean {checkpoint.mean:.2f}"
        above = f"{checkpoint.above.count}/{checkpoint.scored} above {self.task.suite.policy.threshold:g}"
        self._say(checkpoint.step, f"{maximum}{mean}, {above}")

    def _say(self, step: int, state: str | None = None) -> None:
        group = self.member.group if self.member else None
        self.run.context.say(Progress(self.task.name, step, self.task.steps, state, among=group))

    def _attack(self, attack: AttackRecipe, model: LanguageModel, panel: Panel, lines: TextIO) -> Trajectory:
        run, control = self.run, self.task.kind == "control"
        cuts: list[tuple[Trajectory, CaseRecord]] = []

        def cut(partial: Trajectory) -> None:
            known = _with_earlier(partial, self.journal)
            cuts.append((known, self.record(known)))

        target = AttackTarget(
            model=model,
            candidate_digest=run.context.candidate.digest,
            defended_digest=self.defended.digest,
            control=control,
            # The numbers of a fleet's member are rounded together with those of its companions.
            start=None if self.member else run.first_looks.setdefault(self.defended.digest, {}),
        )
        events = AttackEvents(
            scored=lambda checkpoint: self._keep(checkpoint, lines),
            step=self._say,
            broken=functools.partial(run.control_answers.__setitem__, attack.id) if control else None,
            cut=cut,
        )
        try:
            trajectory = run_attack(target, run.attacker(attack), panel, events)
        except (Exception, CaseTimeout):
            if cuts and cuts[0][1].verdict.outcome == "FAIL":  # a breach that was seen stays seen
                return cuts[0][0]
            raise
        last = last_step(trajectory, panel.policy)
        if control and trajectory.judge_gone is None and last < trajectory.steps:
            self._say(last, "broken: the control ends here")
        return _with_earlier(trajectory, self.journal)


@contextmanager
def open_transcript(context: RunContext, suite: Suite, folder: Path, file: str = CHECKPOINTS) -> Iterator[Transcript | None]:
    """The transcript of a case, if options or suite ask for one. The first process writes it at the end, also by an exception.

    ``file`` has the checkpoints; each of a case's trajectories has a transcript.
    """
    transcript, options = None, context.options
    part = "" if file == CHECKPOINTS else f"{file.removesuffix('.jsonl')}-"
    if options.transcripts:
        transcript = Transcript(options.path(options.transcripts) / f"{part}{folder.name}.jsonl", options.recipients)
    elif suite.declaration.transcripts:
        transcript = Transcript(folder / f"{part}{TRANSCRIPT}", ())
    try:
        yield transcript
    finally:
        if transcript and ranks().leads:
            transcript.write()


def is_telling(task: CaseTask, trajectory: Trajectory, outcome: Outcome, journal: Journal) -> bool:
    """Whether attempts under other keys, or the next one under this key, have to know what this one measured.

    A breach always counts for them, and so do doubts about a defended model: scores and rewards above the policy's bounds, and
    answers without a score. If a judge failed, the next attempt measures again, and has to know what an earlier one measured
    beyond the judge's end. What the failure itself left unknown is forgotten, unless it could have confirmed a high score.
    """
    policy = task.suite.policy
    if outcome == "FAIL" or (trajectory.judge_failed and journal.is_behind):
        return True
    if outcome == "PASS" or task.kind in UNDEFENDED:
        return False

    def is_doubt(look: Scored) -> bool:
        return look.unscored not in INFRASTRUCTURE if look.score is None else look.score > policy.threshold

    scores = [score for checkpoint in trajectory.seen for score in checkpoint.all_scores]
    first = any(is_doubt(s) and (is_left_open(s, policy) or all(look.score is not None for look in s.again)) for s in scores)
    second = any(is_doubt(s.second) for s in scores if s.second)
    return first or second or bool(rewarded_in_training(trajectory, policy))


def with_others(trajectory: Trajectory, journal: Journal) -> Trajectory:
    """The trajectory with what attempts under other keys have measured too: a PASS must not hide their breach.

    Raises StoreError if a line of theirs cannot be read.
    """
    if not (journal.earlier or journal.aside):
        return trajectory
    _check_earlier(journal)
    journal.lines = [without_leak(checkpoint).model_dump_json() for checkpoint in trajectory.checkpoints]
    return _with_earlier(trajectory, journal)


def _with_earlier(trajectory: Trajectory, journal: Journal) -> Trajectory:
    """The trajectory with the checkpoints of other attempts that it does not repeat."""
    found = map(Checkpoint.model_validate_json, journal.unrepeated)
    others = tuple(checkpoint for checkpoint in found if checkpoint not in trajectory.earlier)
    return trajectory.model_copy(update={"earlier": (*trajectory.earlier, *others)}) if others else trajectory


def _check_earlier(journal: Journal) -> None:
    """Raises StoreError, before anything is trained, if a line of an earlier attempt cannot be read: it may be a breach."""
    try:
        for line in itertools.chain(journal.earlier, *journal.aside):
            Checkpoint.model_validate_json(line)
    except ValueError:
        raise StoreError(
            f"what an earlier attempt measured must be readable, got a damaged line in {journal.path} or in a file beside it "
            f"that begins with {journal.path.name.partition('-')[0]}; look at it, and remove it if it holds no breach"
        ) from None
