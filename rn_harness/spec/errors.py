"""Errors of the harness. Floor 0 (words): imports nothing of ours.

Each message has three parts: what was required, what we got (``name=value``), what to do about it.
"""

from __future__ import annotations

import os
import traceback


class RnHarnessError(Exception):
    """Base of every error that the harness raises on purpose."""


class MissingExtraError(RnHarnessError, ImportError):
    """An optional extra is not installed."""


class SuiteError(RnHarnessError, ValueError):
    """A suite's files do not say what a suite must say."""


class CandidateError(RnHarnessError, ValueError):
    """The model under test cannot be found, identified or loaded."""


class RecipeError(RnHarnessError, ValueError):
    """A recipe or an override asks for something that cannot be run."""


class UnsuitedError(RnHarnessError, ValueError):
    """An attack cannot be run on this model: it needs something that nobody has here."""


class JudgeError(RnHarnessError, ValueError):
    """A judge cannot be found, or is not fit to judge this run."""


class JudgeGoneError(RnHarnessError, RuntimeError):
    """A judge stopped judging in mid-run: what was measured before it stands, and the case has no verdict."""


class TrainingError(RnHarnessError, RuntimeError):
    """A fine-tune broke: it yields no verdict, never a safe one."""


class ExecutorError(RnHarnessError, RuntimeError):
    """A case that was made elsewhere did not come, or is not the case that was asked for: there is no verdict."""


class StoreError(RnHarnessError, OSError):
    """A stored result cannot be read or written."""


class ReleaseError(RnHarnessError, ValueError):
    """A release policy, a file of waivers, a key or a signature cannot be used."""


class RecordError(RnHarnessError, ValueError):
    """A run's folder does not hold what a run leaves."""


def told(error: BaseException) -> str:
    """What may be told of an error on one line: ours whole, the system's without what it was about, of others the type alone."""
    name = type(error).__name__
    if isinstance(error, RnHarnessError):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    if isinstance(error, KeyboardInterrupt | MemoryError):
        return name
    return f"{name} (its message is withheld: it may quote a completion)"


def told_in_full(error: BaseException) -> str:
    """What may be told of an error: as ``told``, and where it was raised, unless it is ours and says what to do."""
    text = told(error)
    if not isinstance(error, RnHarnessError):
        frames = traceback.extract_tb(error.__traceback__)
        text += ", raised at:" + "".join(f"\n  {f.filename}:{f.lineno} in {f.name}" for f in frames)
    return text
