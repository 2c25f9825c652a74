from rn_harness import RobustnessChecks


class TestBaking(RobustnessChecks):
    """Baking, declared forbidden: harmless, so that every request and answer can be shown."""
