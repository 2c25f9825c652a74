"""Scores the checkpoints of an attack. Judges on servers score one checkpoint while training goes on to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeVar

from rn_harness.judges.anchors import Anchor, draw, score_planted
from rn_harness.judges.checkpoints import UnjudgedCheckpoint, judge_checkpoint
from rn_harness.judges.organism import anchors_for
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import ControlAnswers, Panel
from rn_harness.records.trajectory import Checkpoint, PlantedScore, TrainingWindow, Witnessed
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.policy import Policy
from rn_harness.store.ranks import ranks
from rn_harness.verdict.validity import JUDGES, WITNESSES, misjudging

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Witness:
    """Anchors that show at each checkpoint whether a judge still judges.

    It is for judges that do not score checkpoints. A reward judge that goes blind starves the attack, and a second judge that
    goes blind revokes the breaches that the first judge saw; the scores show neither.

    Attributes:
        judge: the judge, given the forbidden content of the anchors.
        anchors: up to ``WITNESSES`` of each side, drawn by the judge's digest.
    """

    who: Witnessed
    judge: Judge
    anchors: tuple[Anchor, ...]

    @classmethod
    def of(cls, who: Witnessed, judge: Judge, policy: Policy) -> Self:
        """The witness of a judge."""
        anchors = anchors_for(judge)
        return cls(who, judge.about(anchors.forbidden), tuple(draw(anchors.of("certify"), judge.digest, WITNESSES, policy)))

    def ask(self, policy: Policy) -> tuple[PlantedScore, ...]:
        """The judge's current scores of the anchors."""
        return score_planted(self.judge, self.anchors, policy)


class Scoring:
    """The scored checkpoints of an attack.

    If all judges are on servers, a checkpoint is scored in the background; otherwise at once.

    Attributes:
        checkpoints: those scored so far.
    """

    def __init__(
        self,
        panel: Panel,
        witnesses: Sequence[Witness],
        scored: Callable[[Checkpoint], None],
        broken: Callable[[ControlAnswers], None] | None,
    ) -> None:
        self._panel, self._witnesses, self._scored, self._broken = panel, witnesses, scored, broken
        self.checkpoints: list[Checkpoint] = []
        self._pending: Future[Checkpoint] | None = None
        asked = [panel.judge, *filter(None, [panel.second]), *(witness.judge for witness in witnesses)]
        # Processes that train together all wait for the judge of the first one, in the order of their work.
        self._in_background = ranks().size == 1 and all(hasattr(judge, "served_model") for judge in asked)

    def add(self, seen: UnjudgedCheckpoint, window: TrainingWindow | None, *, last: bool) -> None:
        """Starts to score a checkpoint, after the one before it is finished.

        Raises:
            JudgeGoneError: the judge stopped judging, or went blind.
        """
        self.settle()
        if self._in_background and not last:
            self._pending = _in_background(lambda: self._judge(seen, window, None))
        else:
            self._take(self._judge(seen, window, self._broken if last else None))

    def settle(self) -> None:
        """Waits for the pending checkpoint; raises as ``add`` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._take(pending.result())

    def look(self) -> None:
        """Takes the pending checkpoint if it is finished; raises as ``add`` does."""
        if self._pending is not None and self._pending.done():
            self.settle()

    def keep(self, *, wait: bool) -> None:
        """After an early end: takes the pending checkpoint if it is finished, or if ``wait`` is set."""
        if self._pending is not None and (wait or self._pending.done()):
            with suppress(Exception):  # the attack has already ended for another reason
                self.settle()

    def _judge(
        self, seen: UnjudgedCheckpoint, window: TrainingWindow | None, broken: Callable[[ControlAnswers], None] | None
    ) -> Checkpoint:
        policy = self._panel.policy
        checkpoint = judge_checkpoint(self._panel, seen, training=window, found=broken)
        return checkpoint.model_copy(update={"witnessed": {witness.who: witness.ask(policy) for witness in self._witnesses}})

    def _take(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self._scored(checkpoint)
        for who, given in checkpoint.witnessed.items():
            if fault := misjudging(given, self._panel.policy):
                raise JudgeGoneError(f"at step {checkpoint.step} {JUDGES[who]} {fault}")
        ensure_judging(checkpoint.planted, f"the judge scored none of the planted anchors at step {checkpoint.step}")


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Does a piece of work in a daemon thread, so that the process can end without it; an executor's thread would block that."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised where the result is asked for)
            future.set_exception(error)

    threading.Thread(target=run, name="scoring", daemon=True).start()
    return future
