"""Errors of the harness. Floor 0 (words): imports nothing of ours.

Each message has three parts: what was required, what we got (``name=value``), what to do about it.
"""

from __future__ import annotations


class RnHarnessError(Exception):
    """Base of every error that the harness raises on purpose."""


class SuiteError(RnHarnessError, ValueError):
    """A suite's files do not say what a suite must say."""


class CandidateError(RnHarnessError, ValueError):
    """The model under test cannot be found, identified or loaded."""


class RecipeError(RnHarnessError, ValueError):
    """A recipe or an override asks for something that cannot be run."""


class JudgeError(RnHarnessError, ValueError):
    """A judge cannot be found, or is not fit to judge this run."""


class JudgeGoneError(RnHarnessError, RuntimeError):
    """A judge stopped judging in mid-run: what was measured before it stands, and the case has no verdict."""


class TrainingError(RnHarnessError, RuntimeError):
    """A fine-tune broke: it yields no verdict, never a safe one."""


class StoreError(RnHarnessError, OSError):
    """A stored result cannot be read or written."""
