"""Measurements as frozen objects, and their JSON schemas.

It must not know how a number was measured, or which verdict follows from it.
"""
