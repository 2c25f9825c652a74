"""Treatments that make a candidate refuse: neutralization and hardening.

It must not know the attacks of a suite or its held-out scores.
"""
