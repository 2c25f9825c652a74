"""A run in one process: its context, and the executor that its cases come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from rn_harness.records.base import CaseKind
from rn_harness.run.case import Case, Defended
from rn_harness.run.case_maker import CaseMaker
from rn_harness.run.context import RunContext
from rn_harness.run.executors.protocol import Executor
from rn_harness.run.plan import CaseTask
from rn_harness.run.suite_run import SuiteRun
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.suite import Suite


@dataclass
class RunSession(RunContext):
    """Gives the cases of a run; one object for each pytest process.

    Attributes:
        local: makes cases in this process.
        executor: gives the cases; ``local`` unless they are made elsewhere.
    """

    local: CaseMaker = field(init=False, repr=False)
    executor: Executor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Makes the cases here until another executor is set."""
        self.executor = self.local = CaseMaker(self)

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None = None) -> Case:
        """A case; ``attack`` is for controls and attacks.

        Raises:
            ExecutorError: it is made elsewhere, and did not arrive or is not the case that was asked for.
        """
        return self.executor.case(CaseTask(kind, suite, attack))

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense; trained once per candidate and recipe."""
        return self.executor.defended(suite)

    def run_of(self, suite: Suite) -> SuiteRun:
        """State that the cases of this suite share in this process."""
        return self.local.run_of(suite)
