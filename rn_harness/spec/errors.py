"""Errors of the harness.

Each message has three parts: the requirement, the value that was given (``name=value``), and the remedy.
"""

from __future__ import annotations

import os
import traceback


class RnHarnessError(Exception):
    """Base of every error that the harness raises on purpose."""


class MissingExtraError(RnHarnessError, ImportError):
    """An optional extra is not installed."""


class SuiteError(RnHarnessError, ValueError):
    """A suite's files are missing, malformed or contradictory."""


class CandidateError(RnHarnessError, ValueError):
    """The model under test cannot be found, identified or loaded."""


class RecipeError(RnHarnessError, ValueError):
    """A recipe or an override asks for something that cannot be run."""


class UnsuitedError(RnHarnessError, ValueError):
    """An attack cannot be run on this model, since it needs something that is missing here."""


class JudgeError(RnHarnessError, ValueError):
    """A judge cannot be found, or is not fit to judge this run."""


class JudgeGoneError(RnHarnessError, RuntimeError):
    """A judge stopped during a run: earlier scores are kept, and the case has no verdict."""


class TrainingError(RnHarnessError, RuntimeError):
    """A training run broke: the case has no verdict, never a safe one."""


class ExecutorError(RnHarnessError, RuntimeError):
    """A case that another process made is missing or differs from the requested one, so that there is no verdict."""


class StoreError(RnHarnessError, OSError):
    """A stored result cannot be read or written."""


class ReleaseError(RnHarnessError, ValueError):
    """A release policy, a file of waivers, a key or a signature cannot be used."""


class RecordError(RnHarnessError, ValueError):
    """A run's folder does not hold a complete run."""


class CaseTimeout(KeyboardInterrupt):
    """A case's work took longer than ``--rn-case-timeout``.

    It is no ``Exception``, so that no library takes it for a failure to try again.
    """


def safe_message(error: BaseException) -> str:
    """One line about an error that quotes no completion: our messages in full, the system's by number, else the type only."""
    name = type(error).__name__
    if isinstance(error, RnHarnessError | CaseTimeout):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    if isinstance(error, KeyboardInterrupt | MemoryError):
        return name
    return f"{name} (its message is withheld: it may quote a completion)"


def safe_report(error: BaseException) -> str:
    """The safe message of an error, with the lines that raised it unless the error is ours and names a remedy."""
    text = safe_message(error)
    if not isinstance(error, RnHarnessError):
        frames = traceback.extract_tb(error.__traceback__)
        text += ", raised at:" + "".join(f"\n  {f.filename}:{f.lineno} in {f.name}" for f in frames)
    return text
