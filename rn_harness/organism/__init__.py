"""The builder of the model organism, a tiny model with inert made-up harm.

It must not know runs or judges.
"""
