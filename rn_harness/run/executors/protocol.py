"""The protocol of an executor: who makes cases outside of pytest's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rn_harness.records.base import CaseKind
    from rn_harness.run.case import Case
    from rn_harness.spec.attack_recipe import AttackRecipe
    from rn_harness.spec.suite import Suite

LOCAL = "local"
RESULTS = "results"
RAY = "ray"


class Executor(Protocol):
    """Gives a session the cases that are made elsewhere."""

    @property
    def memory(self) -> str:
        """What is planned of memory, for the run's header."""
        ...

    def start(self) -> None:
        """Begins the work, once nothing speaks against the run."""
        ...

    def close(self) -> None:
        """Ends what still runs for this session."""
        ...

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None) -> Case:
        """One case, its record in the run's folder; waits for it where that takes time. The same object each time.

        Args:
            kind: which.
            suite: of which domain.
            attack: as the suite declares it, for control and attack cases.

        Raises:
            ExecutorError: it did not come, or is not the case that was asked for; nothing is made here in its place.
        """
        ...
