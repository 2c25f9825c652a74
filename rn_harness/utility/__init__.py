"""The cost of a defense on benign work.

It must not decide a verdict.
"""
