"""Measurements as frozen objects, and their JSON schemas.

This package must not know how a number was measured, or which verdict follows from it.
"""
