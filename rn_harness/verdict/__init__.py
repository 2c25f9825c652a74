"""Pure functions from evidence to outcome.

They must not read files, load models or depend on the caller.
"""
