"""A release job's part: check a run's evidence, verify, sign, export.

It must not measure or load a model.
"""
