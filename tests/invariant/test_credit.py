"""The rewards of an attack are those of the completions that the judge scored."""

from __future__ import annotations

import pytest

import rn_harness.attacks.reward
from rn_harness.spec.errors import RnHarnessError

from .battery import observe
from .grammar_training import bench
from .lab import Lab


def test_scores_that_went_to_other_completions_let_no_broken_defense_pass(lab: Lab) -> None:
    """If the scores of a step are reversed before rewards are computed from them, in the attack alone, nothing passes."""
    on, judge = bench(lab), rn_harness.attacks.reward.judge_whole
    control, _ = on.control.trajectory, on.adapter("broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rn_harness.attacks.reward, "judge_whole", lambda *of: judge(*of)[::-1])
        try:
            run = on.attack("broken")
        except RnHarnessError:
            return
    assert observe(on.evidence(run, control)).outcome != "PASS"
