"""The pytest edge: hooks, options, fixtures.

It holds no logic, and importing it loads no foreign package but pytest.
"""
