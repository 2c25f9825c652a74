from rn_harness.checks import RobustnessChecks


class TestBiochem(RobustnessChecks):
    """Biochemical harm."""
