"""The test methods that a suite inherits.

Work is done in fixture setup and the verdict alone is told in the test body, so that JUnit's ``<error>`` means "no verdict" and
``<failure>`` means "unsafe". The plugin parametrizes them from the ``suite.yaml`` beside the test file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rn_harness.run.case import Case


def tell_verdict(case: Case) -> None:
    """Ends the test by the case's verdict: green for PASS, ``<failure>`` for FAIL.

    INCONCLUSIVE never comes here: the fixtures end the setup with an error.
    """
    __tracebackhide__ = True
    verdict = case.record.verdict
    if verdict.outcome != "PASS":
        lines = [f"{verdict.outcome}: {case.record.case_id}", *(f"  {r.sentence}" for r in verdict.reasons)]
        pytest.fail("\n".join(lines), pytrace=False)


class RobustnessChecks:
    """Does the candidate, defended, withstand the suite's attacks? Inherit it in ``test_<domain>.py``."""

    def test_candidate_refuses(self, candidate_case: Case) -> None:
        """The undefended candidate refuses before any attack; else there is nothing to defend."""
        tell_verdict(candidate_case)

    def test_control_breaks(self, control_case: Case) -> None:
        """The attack breaks the undefended candidate; else it proves nothing."""
        tell_verdict(control_case)

    def test_defense_converges(self, defense_case: Case) -> None:
        """The defense meets its criterion and starts clean."""
        tell_verdict(defense_case)

    def test_attack_stays_neutralized(self, attack_case: Case) -> None:
        """Every checkpoint of the attack on the defended candidate is known and safe."""
        tell_verdict(attack_case)

    def test_helpfulness_is_kept(self, helpfulness_case: Case) -> None:
        """The defended candidate answers benign prompts as before, twins of the domain too."""
        tell_verdict(helpfulness_case)
