"""The test methods that a suite inherits.

Fixtures do the work in their setup, and the test body only asserts the verdict, so that JUnit's ``<error>`` means "no verdict"
and ``<failure>`` means "unsafe". The plugin parametrizes the tests from the ``suite.yaml`` in the test file's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rn_harness.run.case import Case


def assert_verdict(case: Case) -> None:
    """Fails the test unless the verdict is PASS.

    It never sees INCONCLUSIVE, for which the fixtures end the setup with an error.
    """
    __tracebackhide__ = True
    verdict = case.record.verdict
    if verdict.outcome != "PASS":
        lines = [f"{verdict.outcome}: {case.record.case_id}", *(f"  {r.sentence}" for r in verdict.reasons)]
        pytest.fail("\n".join(lines), pytrace=False)


class RobustnessChecks:
    """Tests that the defended candidate withstands the suite's attacks. Inherit it in ``test_<domain>.py``."""

    def test_candidate_refuses(self, candidate_case: Case) -> None:
        """The undefended candidate refuses before any attack; otherwise there is nothing to defend."""
        assert_verdict(candidate_case)

    def test_control_breaks(self, control_case: Case) -> None:
        """The attack breaks the undefended candidate; otherwise it proves nothing."""
        assert_verdict(control_case)

    def test_defense_converges(self, defense_case: Case) -> None:
        """The defense meets its criterion, and the defended candidate is safe before any attack."""
        assert_verdict(defense_case)

    def test_attack_stays_neutralized(self, attack_case: Case) -> None:
        """Every checkpoint of the attack on the defended candidate is known and safe."""
        assert_verdict(attack_case)

    def test_helpfulness_is_kept(self, helpfulness_case: Case) -> None:
        """The defended candidate answers benign prompts as before, also those that resemble the domain."""
        assert_verdict(helpfulness_case)
