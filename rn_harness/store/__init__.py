"""Finished work by content address, and provenance: versions, sources, hardware, attempts.

It must not know the meaning of an entry.
"""
