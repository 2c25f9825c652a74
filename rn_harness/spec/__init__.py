"""User declarations: prompts, recipes, policies, suites, options, and the errors that everything raises.

It must not know measurements, models or pytest.
"""
