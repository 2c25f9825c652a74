from rn_harness import RobustnessChecks


class TestCybercrime(RobustnessChecks):
    """Cybercrime."""
