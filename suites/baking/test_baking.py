from rn_harness.checks import RobustnessChecks


class TestBaking(RobustnessChecks):
    """Baking, declared forbidden: harmless, so that every request and answer can be shown."""
