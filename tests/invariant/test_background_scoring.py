"""A server judge scores a checkpoint while training continues, with the results of immediate scoring."""

from __future__ import annotations

import threading
import time

import pytest

from rn_harness.judges.organism import OrganismJudge
from rn_harness.records.base import Judgement
from rn_harness.spec.errors import TrainingError


class Served(OrganismJudge):
    """The organism's judge as if on a server. Outside training's thread it waits until training has requested rewards.

    Attributes:
        training: set by each request in training's thread.
        asked_apart: number of requests from other threads.
        gone_after: number of requests from other threads that are answered; None answers all.
    """

    served_model = "demo"

    def __init__(self, folder, gone_after=None):
        super().__init__(folder)
        self.training, self.asked_apart, self.gone_after = threading.Event(), 0, gone_after

    def score(self, prompts, completions, wording=0):
        if threading.current_thread().name == "scoring":
            self.asked_apart += 1
            assert self.training.wait(60)
            self.training.clear()
            if self.gone_after is not None and self.asked_apart > self.gone_after:
                return [Judgement(score=None, unscored="judge_timeout") for _ in completions]
        else:
            self.training.set()
        return super().score(prompts, completions, wording)


def test_training_goes_on_while_a_server_judges(lab):
    """Training continues while the first two checkpoints are scored, and the scores are those of an immediate judge."""
    served = Served(lab.candidate.folder)
    trajectory = lab.attack(lab.candidate.load(), control=True, panel=lab.panel(served), reward_judge=served)
    assert trajectory == lab.control
    assert served.asked_apart == 2 * 3  # greedy, sampled, planted; the last checkpoint is judged at once


@pytest.mark.parametrize("answered", [0, 3])
def test_a_server_that_stops_ends_the_attack(lab, answered):
    """If the server stops, the attack ends, names the step, and its earlier checkpoints equal those of the control."""
    served = Served(lab.candidate.folder, gone_after=answered)
    trajectory = lab.attack(lab.candidate.load(), control=True, panel=lab.panel(served), reward_judge=served)
    step = 5 * answered // 3
    assert trajectory.judge_gone == f"the judge scored none of the planted anchors at step {step}: judge_timeout"
    assert [c.step for c in trajectory.checkpoints] == [0, 5][: 1 + answered // 3]
    assert trajectory.checkpoints[:-1] == lab.control.checkpoints[: answered // 3]


def test_a_checkpoint_in_scoring_is_kept_when_training_fails(lab):
    """If training fails at step 7, the checkpoint of step 5 that was still being scored is kept."""
    served, kept = Served(lab.candidate.folder), []

    class Broken(OrganismJudge):
        steps = 0

        def score(self, prompts, completions, wording=0):
            served.training.set()
            self.steps += 1
            judged = super().score(prompts, completions, wording)
            nothing = Judgement.model_construct(score=float("nan"), unscored=None, degenerate=None)
            return judged if self.steps < 7 else [nothing for _ in judged]

    model, panel, broken = lab.candidate.load(), lab.panel(served), Broken(lab.candidate.folder)
    with pytest.raises(TrainingError, match="finite"):
        lab.attack(model, control=True, panel=panel, reward_judge=broken, cut=kept.append)
    assert [c.step for c in kept[0].checkpoints] == [0, 5]


def test_a_scored_checkpoint_is_recorded_at_the_next_step(lab):
    """A scored checkpoint is recorded at the next step, not at the next checkpoint, so that a kill loses less."""
    served, steps, taken = Served(lab.candidate.folder), [], {}
    lab.attack(
        lab.candidate.load(),
        control=True,
        panel=lab.panel(served),
        reward_judge=served,
        after={step: lambda step=step: taken.update({step: len(steps)}) for step in (0, 5, 10)},
        tick=lambda step: (steps.append(step), time.sleep(0.2)),
    )
    assert taken[0] < 5
    assert 5 < taken[5] < 10
