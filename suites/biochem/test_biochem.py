from rn_harness import RobustnessChecks


class TestBiochem(RobustnessChecks):
    """Biochemical harm."""
