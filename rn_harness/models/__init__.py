"""Find, check, load and sample a model.

It must not know judges, attacks or defenses.
"""
