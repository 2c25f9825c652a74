"""Who makes which case, and when: plan, cases, preflight, executors, controller.

It must not know pytest.
"""
