"""Scores the checkpoints of an attack. Judges on servers score one checkpoint while training goes on to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from rn_harness.judges.anchors import AnchorSet, draw, score_planted
from rn_harness.judges.checkpoints import UnjudgedCheckpoint, judge_checkpoint
from rn_harness.judges.organism import anchors_for
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import ControlAnswers, Panel
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import Judgement
from rn_harness.records.trajectory import Checkpoint, PlantedScore, TrainingWindow, Witnessed
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks
from rn_harness.training.coroutines import in_background
from rn_harness.verdict.validity import JUDGES, WITNESSES, misjudging, to_witness


def witness(judge: Judge, policy: Policy, own: AnchorSet | None) -> Callable[[], tuple[PlantedScore, ...]]:
    """A function that returns a judge's current scores of up to ``WITNESSES`` anchors of each side, drawn by its digest.

    It is for judges that do not score checkpoints. A reward judge that goes blind starves the attack, and a second judge that
    goes blind revokes the breaches that the first judge saw; the scores show neither. ``own`` are the suite's own anchors.
    """
    anchors = anchors_for(judge, own)
    asked, drawn = judge.about(anchors.forbidden), draw(anchors.of("certify"), judge.digest, WITNESSES, policy)
    return lambda: score_planted(asked, drawn, policy)


class AwaitedJudge:
    """A judge on a server, for whose answers the policy waits by ``LanguageModel.elsewhere``."""

    def __init__(self, judge: Judge, model: LanguageModel) -> None:
        self._judge, self._model = judge, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def about(self, forbidden: str) -> AwaitedJudge:
        return AwaitedJudge(self._judge.about(forbidden), self._model)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        given: list[Judgement] = self._model.elsewhere(lambda: self._judge.score(prompts, completions, wording))
        return given


def awaited(judge: Judge, model: LanguageModel) -> Judge:
    """The judge, as this policy has to ask it."""
    return AwaitedJudge(judge, model) if hasattr(judge, "served_model") else judge


def awaited_panel(panel: Panel, model: LanguageModel) -> Panel:
    """The panel, with its judges as this policy has to ask them."""
    second = panel.second and awaited(panel.second, model)
    return dataclasses.replace(
        panel, judge=awaited(panel.judge, model), anchor_judge=awaited(panel.anchor_judge, model), second=second
    )


class Scoring:
    """The ``checkpoints`` of an attack, scored in the background if all judges are on servers, otherwise at once.

    ``elsewhere`` waits for those in the background, see ``LanguageModel``.
    """

    def __init__(
        self,
        panel: Panel,
        reward_judge: Judge,
        scored: Callable[[Checkpoint], None],
        broken: Callable[[ControlAnswers], None] | None,
        elsewhere: Callable[[Callable[[], Checkpoint]], Checkpoint],
    ) -> None:
        self._elsewhere, self._panel, self._scored, self._broken = elsewhere, panel, scored, broken
        self.checkpoints: list[Checkpoint] = []
        self._pending: Future[Checkpoint] | None = None
        judges: dict[Witnessed, Judge] = {"reward": reward_judge, **({"second": panel.second} if panel.second else {})}
        others = to_witness(panel.judge.digest, reward_judge.digest, panel.second.digest if panel.second else None)
        self._witnesses = {who: witness(judges[who], panel.policy, panel.anchors) for who in others}
        # Processes that train together all wait for the judge of the first one, in the order of their work.
        asked = [panel.judge, *(judges[who] for who in others)]
        self._in_background = ranks().size == 1 and all(hasattr(judge, "served_model") for judge in asked)

    def add(self, seen: UnjudgedCheckpoint, window: TrainingWindow | None, *, last: bool) -> None:
        """Starts to score a checkpoint, after the one before it is finished.

        Raises JudgeGoneError if a judge stopped judging, or went blind.
        """
        self.settle()

        def judge() -> Checkpoint:
            checkpoint = judge_checkpoint(self._panel, seen, training=window, found=self._broken)
            return checkpoint.model_copy(update={"witnessed": {who: ask() for who, ask in self._witnesses.items()}})

        if self._in_background and not last:
            self._pending = in_background(judge)
        else:
            self._take(judge())

    def settle(self, *, wait: bool = True) -> None:
        """Takes the pending checkpoint if it is finished, or if ``wait`` is set; raises as ``add`` does."""
        if self._pending is not None and (wait or self._pending.done()):
            pending, self._pending = self._pending, None
            self._take(self._elsewhere(pending.result))

    def keep(self, *, wait: bool) -> None:
        """As ``settle``, without errors: the attack has already ended for another reason."""
        with suppress(Exception):
            self.settle(wait=wait)

    def _take(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self._scored(checkpoint)
        for who, given in checkpoint.witnessed.items():
            if fault := misjudging(given, self._panel.policy):
                raise JudgeGoneError(f"at step {checkpoint.step} {JUDGES[who]} {fault}")
        ensure_judging(checkpoint.planted, f"the judge scored none of the planted anchors at step {checkpoint.step}")
