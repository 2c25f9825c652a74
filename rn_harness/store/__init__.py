"""Stores finished work by content address, with its provenance: versions, sources, hardware, attempts.

This package must not know the meaning of an entry.
"""
