"""The fixtures of a suite's tests. Each one runs its work in its setup and ends it unless a verdict counts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from rn_harness.plugin.pytest_compat import fixture_definitions, fixture_function, parameters, uncaptured
from rn_harness.plugin.state import STATE, Terminated
from rn_harness.spec.errors import CaseTimeout, RecipeError, safe_report

if TYPE_CHECKING:
    from rn_harness.judges.protocol import Judge
    from rn_harness.models.candidate import Candidate
    from rn_harness.records.base import CaseKind
    from rn_harness.records.trajectory import Trajectory
    from rn_harness.run.case import Case, CaseTask, Defended
    from rn_harness.run.session import RunSession
    from rn_harness.spec.attack_recipe import AttackRecipe
    from rn_harness.spec.suite import Suite

T = TypeVar("T")
CASE: pytest.StashKey[Case] = pytest.StashKey()
"""The case of a test, on its item."""
GRACE_S = 30


@pytest.fixture
def rn_suite(request: pytest.FixtureRequest) -> Suite:
    """The suite in the test file's folder."""
    return request.config.stash[STATE].suite_in(request.path.parent)


@pytest.fixture
def candidate(request: pytest.FixtureRequest) -> Candidate:
    """The model under test; ``candidate.load()`` gives a fresh copy."""
    return request.config.stash[STATE].run_session.candidate


@pytest.fixture
def judge(request: pytest.FixtureRequest, rn_suite: Suite) -> Judge:
    """The judge that scores the checkpoints."""
    return request.config.stash[STATE].run_session.judges(rn_suite).evaluation


@pytest.fixture
def defended(request: pytest.FixtureRequest, rn_suite: Suite) -> Defended:
    """The candidate with this run's defense; ``defended.load()`` gives a fresh copy."""
    return _run_setup(request, lambda session: session.defended(rn_suite))


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> AttackRecipe:
    """The attack recipe of this test; a test that asks for it runs once for each recipe of the tier."""
    if not hasattr(request, "param"):
        pytest.fail("attack is for methods of a class that inherits RobustnessChecks", pytrace=False)
    recipe: AttackRecipe = request.param
    return recipe


@pytest.fixture
def trajectory(attack_case: Case) -> Trajectory:
    """All checkpoints of this attack on the defended candidate."""
    found = attack_case.record.evidence.trajectory
    assert found is not None
    return found


def _case_fixture(kind: CaseKind, doc: str) -> Any:
    """The fixture of a case; the cases of attacks ask for ``attack``, which parametrizes the test."""

    def of_suite(request: pytest.FixtureRequest) -> Case:
        return _decided_case(request, kind)

    def of_attack(request: pytest.FixtureRequest, attack: AttackRecipe) -> Case:  # noqa: ARG001  (which parametrizes the test)
        return _decided_case(request, kind)

    function = of_attack if kind in ("control", "attack") else of_suite
    function.__doc__ = doc
    return pytest.fixture(function, name=f"{kind}_case")


CASE_FIXTURES = (
    _case_fixture("candidate", "The undefended candidate, before any attack."),
    _case_fixture("control", "The attack on the undefended candidate."),
    _case_fixture("defense", "The defense, and the defended candidate before any attack."),
    _case_fixture("attack", "The attack on the defended candidate."),
    _case_fixture("helpfulness", "The defended candidate on benign prompts."),
)
FIXTURES: dict[str, Any] = {
    fixture.name: fixture for fixture in (rn_suite, candidate, judge, defended, attack, trajectory, *CASE_FIXTURES)
}
"""The fixtures by name; a suite's test may not take one of these names from another file."""


def replaced_fixtures(items: Iterable[pytest.Item]) -> list[str]:
    """A sentence for each fixture of ours that a suite's test gets from another file."""
    found = {}
    for item in items:
        for name, file in _replacements(item):
            found[name, file] = (
                f"the fixtures of rn-harness must be its own, so that a run proves something, got another {name} from {file} for "
                f"{item.nodeid}; give yours another name"
            )
    return list(found.values())


def _replacements(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """The fixtures that replace ours in a test: name and file."""
    definitions = fixture_definitions(item)
    for name in FIXTURES.keys() & definitions.keys():
        own = fixture_function(FIXTURES[name])
        for definition in definitions[name]:
            if definition.func is not own:
                module = sys.modules.get(getattr(definition.func, "__module__", ""))
                yield name, getattr(module, "__file__", None) or definition.baseid or "a mark"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test whose fixture of ours was replaced in a worker, or by a hook after collection."""
    if item.config.stash[STATE].suite_folder(item.nodeid) and (sentences := replaced_fixtures([item])):
        pytest.fail(sentences[0], pytrace=False)


def _run_setup(request: pytest.FixtureRequest, work: Callable[[RunSession], T]) -> T:
    """Runs a fixture's work; an error is shown without arguments or locals, which may hold completions."""
    __tracebackhide__ = True
    state = request.config.stash[STATE]
    if state.terminated:  # raised where Python swallows exceptions
        raise Terminated
    try:
        return work(state.run_session)
    except (Exception, CaseTimeout) as error:  # noqa: BLE001  (reported below, and never swallowed)
        text = safe_report(error)
    except KeyboardInterrupt as error:
        raise type(error) from None  # without the frames on its way here: --full-trace shows their arguments
    finally:
        state.end_progress()
    _end_processes(request.config, text)
    pytest.fail(f"no verdict: {text}", pytrace=False)


def _end_processes(config: pytest.Config, text: str) -> None:
    """Ends a run of several processes, since the others would wait for this one forever. The launcher ends them."""
    from rn_harness.store.ranks import ranks

    if config.stash[STATE].scratch:
        with uncaptured(config):
            sys.stderr.write(f"rn-harness: process {ranks().rank}: no verdict: {text}\n")
            sys.stderr.flush()
        time.sleep(GRACE_S)  # the leading process, if it failed too, needs time to write the run's record
        os._exit(1)
    if ranks().size > 1:
        pytest.exit(f"no verdict: {text}", returncode=1)


def _requested_case(request: pytest.FixtureRequest, kind: CaseKind) -> CaseTask:
    """The case that a test asks for, as its suite declares it; a fixture or a hook may have given the test another recipe."""
    from rn_harness.run.case import CaseTask

    suite = request.config.stash[STATE].suite_in(request.path.parent)
    if kind not in ("control", "attack"):
        return CaseTask(kind, suite, None)
    given = parameters(request.node).get("attack")
    declared = {recipe.id: recipe for recipe in suite.tier_attacks(request.config.getoption("rn_tier"))}
    recipe = declared.get(getattr(given, "id", ""))
    if recipe is None or recipe != given:
        raise RecipeError(
            f"an attack case is run with a recipe that the tier declares, got {getattr(given, 'id', None)} with other settings; "
            "leave the test's parameters as they are"
        )
    return CaseTask(kind, suite, recipe)


def _decided_case(request: pytest.FixtureRequest, kind: CaseKind) -> Case:
    """Makes the case, and ends the setup unless its verdict counts: INCONCLUSIVE is an error.

    A case without a PASS that is only reported (``records.case``) is skipped with its result.
    """
    __tracebackhide__ = True
    from rn_harness.records.case import only_reported
    from rn_harness.report.terminal import failure_text

    def make(session: RunSession) -> Case:
        task = _requested_case(request, kind)
        return session.case(task.kind, task.suite, task.attack)

    case = _run_setup(request, make)
    request.node.stash[CASE] = case
    verdict, evidence = case.record.verdict, case.record.evidence
    result = f"{(verdict.finding or 'unknown').replace('_', ' ')}: {verdict.reasons[0].sentence}"
    if verdict.outcome != "PASS" and only_reported(evidence.standing, verdict.finding, within_claim=evidence.within_claim):
        beyond = evidence.standing == "exploratory" and not evidence.within_claim
        why = "exploratory, not covered by the claim" if beyond else evidence.standing.replace("_", " ")
        pytest.skip(f"{why}, {result}")
    if verdict.outcome == "INCONCLUSIVE":
        pytest.fail(failure_text(case.record), pytrace=False)
    return case
