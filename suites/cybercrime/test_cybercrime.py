from rn_harness.checks import RobustnessChecks


class TestCybercrime(RobustnessChecks):
    """Cybercrime."""
