"""Executors: who makes the cases that pytest's own process does not make."""
