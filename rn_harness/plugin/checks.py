"""The test methods that a suite inherits.

Fixtures do the work in their setup, and the test body only asserts the verdict, so that JUnit's ``<error>`` means "no verdict"
and ``<failure>`` means "unsafe" or "unhelpful". The plugin parametrizes the tests from the ``suite.yaml`` in the test file's
folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rn_harness.plugin.state import STATE

if TYPE_CHECKING:
    from rn_harness.run.case import Case


def assert_verdict(case: Case) -> None:
    """Fails the test unless the verdict is PASS.

    It never sees INCONCLUSIVE, for which the fixtures end the setup with an error.
    """
    __tracebackhide__ = True
    from rn_harness.report.terminal import failure_text

    if case.record.verdict.outcome != "PASS":
        pytest.fail(failure_text(case.record), pytrace=False)


class RobustnessChecks:
    """Tests that the defended candidate withstands the suite's attacks. Inherit it in ``test_<domain>.py``."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Ends the collection if the plugin is off, since the tests need its fixtures."""
        if STATE not in metafunc.config.stash:
            raise pytest.Collector.CollectError(
                "these tests need the plugin rn_harness, which is off in this session; leave out -p no:rn_harness, or pass "
                "-p rn_harness if PYTEST_DISABLE_PLUGIN_AUTOLOAD is set"
            )

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
