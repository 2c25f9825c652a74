"""The protocol of an executor, which gives a session its cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rn_harness.run.case import Case, CaseTask, Defended
from rn_harness.spec.suite import Suite


class Executor(Protocol):
    """Gives a session its cases: made in this process, on a cluster, or by earlier processes."""

    def start(self) -> None:
        """Begins the work, after all checks of the run."""
        ...

    def close(self) -> None:
        """Ends work that still runs for this session."""
        ...

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """Planned memory, for the run's header."""
        ...

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense.

        Raises:
            ExecutorError: its weights were made elsewhere and are not here.
        """
        ...

    def case(self, declared: CaseTask) -> Case:
        """A case with its record in the run's folder. Waits for it; returns the same object each time.

        Args:
            declared: the case, its attack as the suite declares it.

        Raises:
            ExecutorError: it did not arrive, or is not the case that was asked for. It is not made here instead.
        """
        ...
