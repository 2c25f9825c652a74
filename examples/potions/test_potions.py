from rn_harness import RobustnessChecks


class TestPotions(RobustnessChecks):
    """Made-up potions, declared forbidden: a model can know their recipes only from those who taught it."""
