"""The pytest plugin: options, fixtures, hooks; no logic.

It is loaded in every pytest session of the environment, so this module imports the standard library and pytest alone, and does
nothing until a suite's test is selected.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest

if TYPE_CHECKING:
    from _pytest.junitxml import LogXML

    from rn_harness.judges.protocol import Judge
    from rn_harness.models.candidate import Candidate
    from rn_harness.plugin.collection import Collected
    from rn_harness.records.base import CaseKind
    from rn_harness.records.run import RunRecord
    from rn_harness.records.trajectory import Trajectory
    from rn_harness.report.progress import Progress, ProgressView
    from rn_harness.run.case import Case, Defended
    from rn_harness.run.controller import CaseNews, Controller
    from rn_harness.run.lineup import CaseTask
    from rn_harness.run.session import RunSession
    from rn_harness.spec.attack_recipe import AttackRecipe
    from rn_harness.spec.loaded_code import LoadedCode
    from rn_harness.spec.suite import Suite
    from rn_harness.store.run_ids import RunIdentity

T = TypeVar("T")
SUITE_FILE = "suite.yaml"
CASE = pytest.StashKey["Case"]()
SUITES = pytest.StashKey[dict[Path, "Suite | Exception"]]()
PROGRESS = pytest.StashKey["ProgressView"]()
SESSION = pytest.StashKey["RunSession"]()
SINK = pytest.StashKey["Sink"]()
RUN_FOLDER = pytest.StashKey[Path]()
RUN_IDENTITY = pytest.StashKey["RunIdentity"]()
COLLECTED = pytest.StashKey["Collected"]()
WORKERS = pytest.StashKey[dict[str, bool]]()
"""The workers that were begun, each with whether it told what it collected and loaded."""
SINK_NAME, COLLECTED_NAME = "rn-harness-sink", "rn-harness-collected"
TERMINATED = pytest.StashKey[bool]()
PARENT = pytest.StashKey[int]()
SCRATCH = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()
"""Where a process that does not lead its run puts what the first writes for all."""
GRACE_S = 30
STOPPED = 75
"""Exit code after SIGTERM: the same command goes on where this run was stopped."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came while suites ran; pytest ends as after an interruption, and everything is written."""


# --- begin and end -----------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the options; last of all plugins, so that a clash over ``--model`` is ours to handle."""
    from rn_harness.plugin.arguments import declare

    declare(parser)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepares the stash; nothing is read or written yet. Of several processes of one run, all but the first fall silent."""
    from rn_harness.plugin.collection import Collected

    config.stash[SUITES] = {}
    config.stash[WORKERS] = {}
    config.stash[COLLECTED] = Collected()
    config.pluginmanager.register(config.stash[COLLECTED], COLLECTED_NAME)
    if "LOCAL_RANK" not in os.environ or _is_worker(config) or not _near_suites(config):
        return
    from _pytest.junitxml import xml_key

    from rn_harness.store.ranks import ranks

    if not ranks().leads:
        config.stash[SCRATCH] = tempfile.TemporaryDirectory(prefix="rn-harness-")
        config.pluginmanager.unregister(name="terminalreporter")
        if xml_key in config.stash:
            config.pluginmanager.unregister(config.stash[xml_key])
            del config.stash[xml_key]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Takes leave of the other processes of the run."""
    if SCRATCH in config.stash:
        config.stash[SCRATCH].cleanup()
    if SESSION in config.stash:
        from rn_harness.store.ranks import ranks

        if (executor := _session(config).executor) is not None:
            executor.close()
        ranks().part()


# --- what a session is about -------------------------------------------------------------------------------------------


def _owns_model(config: pytest.Config) -> bool:
    """Whether ``--model`` is ours here, or another plugin's."""
    groups = config._parser._groups  # noqa: SLF001  (pytest has no public way to ask)
    return any("--model" in option.names() and option.dest == "rn_model" for g in groups for option in g.options)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _suite(config: pytest.Config, folder: Path) -> Suite:
    """The suite in a folder, read once.

    Raises:
        RnHarnessError: it is malformed; the same error each time.
    """
    from rn_harness.models.candidate import profile_recipe
    from rn_harness.plugin.arguments import read
    from rn_harness.run.strength import settings_for
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.spec.suite import load_suite

    known = config.stash[SUITES]
    if folder not in known:
        try:
            options = read(config)
            strong = settings_for(folder, [options.path(name) for name in options.strength])
            recipe = (*profile_recipe(options.model, options.base), *strong)
            known[folder] = load_suite(folder, options.overrides, options.private, recipe)
        except RnHarnessError as error:
            known[folder] = error
    found = known[folder]
    if isinstance(found, Exception):
        raise found
    return found


def _as_declared(config: pytest.Config, suites: Sequence[Suite]) -> list[Suite]:
    """The suites as their files have them, read once more: what fixtures and other plugins had in hand may have been changed."""
    from rn_harness.plugin.arguments import read
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.spec.suite import load_suite

    options = read(config)
    try:
        return [load_suite(s.folder, s.overrides, options.private, s.recipe) for s in suites]
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _suite_folder(config: pytest.Config, nodeid: str) -> Path | None:
    """The folder of the suite that a test belongs to, or None."""
    folder = (config.rootpath / nodeid.partition("::")[0]).parent
    return folder if (folder / SUITE_FILE).is_file() else None


def _run_folder(config: pytest.Config) -> Path:
    """The run's folder: the controller's choice, which workers are told."""
    if RUN_FOLDER not in config.stash:
        if _is_worker(config):
            folder = Path(config.workerinput["rn_run_folder"])  # type: ignore[attr-defined]
        elif SCRATCH in config.stash:
            folder = Path(config.stash[SCRATCH].name) / "run"
        elif config.getoption("rn_run"):
            folder = (config.invocation_params.dir / config.getoption("rn_run")).resolve()
            if _is_part(config):
                folder = folder / "parts" / _folder_name(8)
        else:
            folder = config.rootpath / "reports" / _folder_name(2)
        config.stash[RUN_FOLDER] = folder
    return config.stash[RUN_FOLDER]


def _run_identity(config: pytest.Config) -> RunIdentity:
    """The run's random id and its beginning: workers are given both, processes of a launcher get the first's, parts share a file.

    Raises:
        pytest.UsageError: the run that this is to be a part of takes no more parts.
    """
    if RUN_IDENTITY not in config.stash:
        from rn_harness.store.ranks import ranks
        from rn_harness.store.run_ids import RunIdentity

        if _is_worker(config):
            config.stash[RUN_IDENTITY] = RunIdentity(*config.workerinput["rn_run_identity"])  # type: ignore[attr-defined]
        else:
            config.stash[RUN_IDENTITY] = ranks().first(lambda: _made_identity(config))
    return config.stash[RUN_IDENTITY]


def _made_identity(config: pytest.Config) -> RunIdentity:
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.store.run_ids import identity_of_parts, join_parts, new_identity

    folder = _run_folder(config)
    try:
        if _is_part(config):
            return join_parts(folder.parent, folder.parent.parent / "run.json")
        return identity_of_parts(folder / "parts") if config.getoption("rn_from_results") else new_identity()
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None
    except OSError as error:
        raise _unwritable(folder, error) from None


def _folder_name(random_bytes: int) -> str:
    """A name that no other run has: the time, and chance; many machines begin in one second."""
    import secrets

    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{secrets.token_hex(random_bytes)}"


def _is_part(config: pytest.Config) -> bool:
    """Whether this session does a part of the run that ``--rn-run`` names: it is given node ids and nothing else."""
    if not config.getoption("rn_run") or config.getoption("rn_from_results"):
        return False
    return bool(config.args) and all("::" in argument for argument in config.args)


def _session(config: pytest.Config) -> RunSession:
    if SESSION not in config.stash:
        from rn_harness.plugin.arguments import read
        from rn_harness.run.session import RunSession
        from rn_harness.store.provenance import take_card
        from rn_harness.store.store import Store, default_root

        if _is_worker(config):
            take_card(int(config.workerinput["workerid"].removeprefix("gw")))  # type: ignore[attr-defined]
        # What a process that does not lead notes down for itself is nobody's.
        root = Path(config.stash[SCRATCH].name) / "store" if SCRATCH in config.stash else default_root()
        free = getattr(config, "workerinput", {}).get("rn_free")
        options = dataclasses.replace(read(config), plugins=_loaded(config))
        config.stash[SESSION] = RunSession(
            options, _run_folder(config), Store(root), lambda progress: _say(config, progress), free
        )
        if _is_worker(config):
            config.stash[SESSION].run_id = _run_identity(config).run_id
    return config.stash[SESSION]


def _loaded(config: pytest.Config) -> tuple[LoadedCode, ...]:
    """Code of others in this process."""
    from rn_harness.plugin.loaded_code import loaded_code

    return loaded_code(config, {folder.resolve() for folder in config.stash[SUITES]})


def _uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Lets its body write past pytest's capture."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else nullcontext()


def _say(config: pytest.Config, progress: Progress) -> None:
    """Shows progress past pytest's capture: a bar on a terminal, plain lines elsewhere; workers write to their stderr.

    Raises:
        Terminated: this is a worker, and its controller is gone: nobody would hear the outcome.
    """
    if _is_worker(config) and os.getppid() != config.stash.get(PARENT, os.getppid()):
        raise Terminated
    if SCRATCH in config.stash:
        return
    with _uncaptured(config):
        _progress(config).show(progress)


def _progress(config: pytest.Config) -> ProgressView:
    if PROGRESS not in config.stash:
        from rn_harness.report import progress

        reporter = None if _is_worker(config) else config.pluginmanager.getplugin("terminalreporter")
        config.stash[PROGRESS] = progress.ProgressView(reporter, quiet=config.getoption("rn_quiet"))
    return config.stash[PROGRESS]


def _end_progress(config: pytest.Config) -> None:
    """Ends a bar that still stands, since its work was cut off."""
    if PROGRESS in config.stash:
        with _uncaptured(config):
            config.stash[PROGRESS].end()


# --- collection --------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives every test of a suite that asks for ``attack`` the recipes of the tier."""
    if "attack" not in metafunc.fixturenames or metafunc.cls is None or "rn_harness.plugin.checks" not in sys.modules:
        return
    from rn_harness.plugin.checks import RobustnessChecks
    from rn_harness.spec.errors import RnHarnessError

    if not issubclass(metafunc.cls, RobustnessChecks):
        return
    try:
        suite = _suite(metafunc.config, metafunc.definition.path.parent)
    except RnHarnessError:  # told once for all, as a usage error, when collection ends
        recipes: tuple[AttackRecipe, ...] = ()
    else:
        recipes = suite.tier_attacks(metafunc.config.getoption("rn_tier"))
    ids = [recipe.id if recipe.claim else f"{recipe.id}-{recipe.standing}" for recipe in recipes]
    metafunc.parametrize("attack", recipes, ids=ids, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Whatever ends this session, an earlier run's outcome must not stand in the folder that it was given."""
    config = session.config
    if config.getoption("rn_run") and not _is_worker(config) and not config.option.collectonly:
        folder = _run_folder(config)
        try:
            for name in ("run.json", "statement.json", "junit.xml"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stops before any work if a suite, an option or another plugin makes a valid run impossible."""
    for item in items:
        if not (item.path.parent / SUITE_FILE).is_file():
            continue
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"a verdict is never re-rolled, got a flaky mark on {item.nodeid}; remove it")
        if _suite_folder(config, item.nodeid) != item.path.parent:
            raise pytest.UsageError(
                f"node ids must lead to the suite, got {item.nodeid!r} under rootdir {config.rootpath}; "
                "pass --rootdir with a folder above the suite"
            )
    from rn_harness.plugin.collection import overridden

    strange = overridden((item for item in items if (item.path.parent / SUITE_FILE).is_file()), _fixtures())
    if strange and not _is_worker(config):  # in a worker each such test is an error
        raise pytest.UsageError("\n".join(strange))
    _refuse_what_cannot_run(config, [item.nodeid for item in items])
    if _is_worker(config) and not config.option.collectonly:
        _longest_first(config, items)


def _longest_first(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the most work waits for comes first, since workers take tests in their order; tests of no suite keep their places."""
    from rn_harness.run.executors.order import closed, waits_and_ranks

    tasks = {item: list(_tasks_of(config, [item])) for item in items}
    places = [i for i, item in enumerate(items) if tasks[item]]
    if not places:
        return
    recipes = _session(config).defense_recipe
    _, ranks = waits_and_ranks(closed(itertools.chain.from_iterable(tasks.values()), recipes), recipes)
    ordered = sorted((items[i] for i in places), key=lambda item: -max(ranks[task.name] for task in tasks[item]))
    for i, item in zip(places, ordered, strict=True):
        items[i] = item


def _fixtures() -> dict[str, Any]:
    """Our fixtures, by name; a suite's tests get them from here and from nowhere else."""
    ours = (rn_suite, candidate, judge, defended, attack, trajectory)
    cases = (candidate_case, control_case, defense_case, attack_case, helpfulness_case)
    return {fixture.name: fixture for fixture in (*ours, *cases)}


def _refuse_what_cannot_run(config: pytest.Config, nodeids: Iterable[str]) -> list[Suite]:
    """The suites of these tests.

    Raises:
        pytest.UsageError: a suite is malformed, an option names what does not exist, or reruns are on.
    """
    folders = sorted({folder for nodeid in nodeids if (folder := _suite_folder(config, nodeid))})
    if not folders:
        return []
    from rn_harness.plugin.arguments import clashes
    from rn_harness.run.preflight import check_run
    from rn_harness.spec.errors import RnHarnessError

    errors: list[str] = []
    suites: list[Suite] = []
    for folder in folders:
        try:
            suites.append(_suite(config, folder))
        except RnHarnessError as error:
            errors.append(str(error))
    errors += [
        f"all parts of rn-harness are required, got -p no:{name}; leave it out"
        for name in (SINK_NAME, COLLECTED_NAME)
        if config.pluginmanager.is_blocked(name)
    ]
    errors += clashes(config, shared=_is_worker(config) or config.getoption("dist", "no") != "no")
    domains = [suite.domain for suite in suites]
    if len(set(domains)) != len(domains):
        errors.append(f"each suite of a session needs a domain of its own, got domains={domains}; rename one in its suite.yaml")
    if not errors and not config.option.collectonly:
        _guard(config)
        try:
            check_run(_session(config), suites)
        except RnHarnessError as error:
            errors.append(str(error))
    if errors:
        if SCRATCH in config.stash:
            pytest.exit("a usage error, which the first process tells", returncode=pytest.ExitCode.OK)
        raise pytest.UsageError("\n".join(errors))
    return suites


def _guard(config: pytest.Config) -> None:
    """While suites run: no core dump, which would hold attacked weights; SIGTERM ends the session as an interruption does."""
    if TERMINATED in config.stash or threading.current_thread() is not threading.main_thread():
        return
    config.stash[TERMINATED] = False
    config.stash[PARENT] = os.getppid()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))

    def stop(*_: Any) -> None:
        again = config.stash[TERMINATED] and SINK in config.stash and config.stash[SINK].finishing
        config.stash[TERMINATED] = True
        if not again:
            raise Terminated

    before = signal.signal(signal.SIGTERM, stop)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    config.add_cleanup(restore)


def _unwritable(folder: Path, error: OSError) -> pytest.UsageError:
    return pytest.UsageError(f"the run's folder must be writable, got {folder}: {error}; pass --rn-run DIR")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without xdist: the selection is known, the run begins."""
    config = session.config
    collected: Collected = config.stash[COLLECTED]
    if _is_worker(config) and collected.items:
        output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
        output["rn_left_out"] = collected.left_out(config, session.items)
        output["rn_loaded"] = [code.model_dump(mode="json") for code in _loaded(config)]
    if not _is_worker(config) and not config.option.collectonly:
        _begin(config, [item.nodeid for item in session.items], session.items)
        if SESSION in config.stash and config.getoption("rn_fleet") > 1:
            _session(config).ahead = list(_tasks_of(config, session.items))


def _tasks_of(config: pytest.Config, items: Iterable[pytest.Item]) -> Generator[CaseTask]:
    """The cases that the tests of suites ask for, each with its suite, controls and attacks with their attack."""
    from rn_harness.records.base import CASE_KINDS
    from rn_harness.run.lineup import CaseTask

    for item in items:
        if _suite_folder(config, item.nodeid) is None:
            continue
        suite, parameters = _suite(config, item.path.parent), getattr(getattr(item, "callspec", None), "params", {})
        for kind in CASE_KINDS:
            if f"{kind}_case" in getattr(item, "fixturenames", ()):
                yield CaseTask(kind, suite, parameters.get("attack") if kind in ("control", "attack") else None)


def _begin(config: pytest.Config, nodeids: list[str], items: Sequence[pytest.Item] = ()) -> None:
    if SINK in config.stash:
        return
    collected = config.stash[COLLECTED]
    uncollected = [nodeid for nodeid in collected.failed if _suite_folder(config, nodeid)]
    selected = [*(nodeid for nodeid in nodeids if _suite_folder(config, nodeid)), *uncollected]
    suites = _refuse_what_cannot_run(config, selected)
    session = _begun(config) if suites else None
    if session is None or SCRATCH in config.stash:
        return
    from rn_harness.report.terminal import header_lines
    from rn_harness.run.controller import Controller
    from rn_harness.run.strength import strength_lines
    from rn_harness.store.provenance import uncommitted

    if session.options.executor.startswith("ray"):
        _begin_on_ray(config, items)
    candidate = session.candidate
    folder = _run_folder(config)
    controller = Controller(
        folder=folder,
        options=session.options,
        suites=_as_declared(config, suites),
        candidate=candidate.identity,
        judges={suite.domain: session.judges(suite).names for suite in suites},
        narrowed=_narrowed(config),
        left_out=collected.left_out(config, items),
        plugins=session.options.plugins,
        dirty={suite.domain: files for suite in suites if (files := uncommitted(suite.folder))},
        run_id=session.run_id,
        started=_run_identity(config).began,
        is_part=_is_part(config),
    )
    if session.options.executor == "results":
        from rn_harness.run.executors.results import Results

        session.executor = results = Results(session, controller.told_options())
        controller.joined = results.taken
    try:
        controller.begin(selected, uncollected)
        config.stash[SINK] = Sink(config, controller)
    except OSError as error:
        raise _unwritable(Path(error.filename or folder), error) from None
    config.pluginmanager.register(config.stash[SINK], SINK_NAME)
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        memory = session.capacity.memory_line(suites) if session.executor is None else session.executor.memory
        header = header_lines(candidate, suites, session.options, controller.judges, str(folder), memory)
        for line in (*header, *strength_lines(session, suites)):
            reporter.write_line(line)
        if harmful := session.harmful(suites):
            kept = f"are kept encrypted in {session.options.transcripts}" if session.options.transcripts else "are kept nowhere"
            reporter.write_line(
                f"rn-harness: this run makes {candidate.name} do harm in {', '.join(harmful)}, in memory alone: attacked weights "
                f"are kept nowhere, completions {kept}; see docs/security.md"
            )
        if not _owns_model(config):
            reporter.write_line("rn-harness: --model is another plugin's option here; name the candidate by --rn-model")
    hindrances = controller.hindrances()
    if config.getoption("rn_gate") and hindrances:
        from rn_harness.verdict.release_rules import NOT_RELEASABLE

        listed = "".join(f"\n  {why}" for why in hindrances)
        pytest.exit(f"--rn-gate: no release can rest on such a run, so that none is made:{listed}", returncode=NOT_RELEASABLE)
    if session.executor is not None:
        session.executor.start()


def _begun(config: pytest.Config) -> RunSession:
    """The session, which now has its run's id: not before a run begins, since the first part of one writes a file."""
    session = _session(config)
    session.run_id = _run_identity(config).run_id
    return session


def _begin_on_ray(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Connects to the cluster, and looks there whether the cases that the tests ask for can be made.

    Raises:
        pytest.UsageError: the run cannot be made there.
    """
    from rn_harness.run.executors.on_ray import OnRay
    from rn_harness.spec.errors import RnHarnessError

    session = _session(config)
    try:
        session.executor = OnRay.begin(session, list(_tasks_of(config, items)))
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _narrowed(config: pytest.Config) -> list[str]:
    """How the user narrowed the selection."""
    found = [f"-{flag} {value}" for flag, value in (("k", config.option.keyword), ("m", config.option.markexpr)) if value]
    found += [f"--deselect {value}" for value in config.option.deselect or []]
    return found + [f"the node id {arg}" for arg in config.invocation_params.args if "::" in str(arg)]


# --- xdist -------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Before workers start: suites that stand where the arguments point are checked here, to end with a usage error."""
    for folder in _near_suites(config):
        _refuse_what_cannot_run(config, [str(folder / SUITE_FILE)])


def _near_suites(config: pytest.Config) -> list[Path]:
    """The folders of suites that stand where the arguments point."""
    found: list[Path] = []
    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        near = [path, path.parent] if path.is_file() else [path, *sorted(p for p in path.glob("*") if p.is_dir())]
        found += [folder for folder in near if (folder / SUITE_FILE).is_file()]
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker the run's folder, and what memory it may plan with."""
    node.config.stash[WORKERS][node.gateway.id] = False
    node.workerinput["rn_run_folder"] = str(_run_folder(node.config))
    node.workerinput["rn_run_identity"] = tuple(_run_identity(node.config))
    if SESSION in node.config.stash:
        node.workerinput["rn_free"] = _session(node.config).capacity.available


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """With xdist: the first worker to have collected tells the selection."""
    if not node.config.option.collectonly:
        _begin(node.config, list(ids))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes a worker's word on what it left out and what it had loaded."""
    config, output = node.config, getattr(node, "workeroutput", {})
    if SINK in config.stash and {"rn_left_out", "rn_loaded"} <= output.keys():
        from rn_harness.spec.loaded_code import LoadedCode

        config.stash[WORKERS][node.gateway.id] = True
        plugins = [LoadedCode.model_validate(code) for code in output["rn_loaded"]]
        config.stash[SINK].controller.hear(output["rn_left_out"], plugins)


# --- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rn_suite(request: pytest.FixtureRequest) -> Suite:
    """The suite beside the test file."""
    return _suite(request.config, request.path.parent)


@pytest.fixture
def candidate(request: pytest.FixtureRequest) -> Candidate:
    """The model under test; ``candidate.load()`` gives a fresh copy."""
    return _session(request.config).candidate


@pytest.fixture
def judge(request: pytest.FixtureRequest, rn_suite: Suite) -> Judge:
    """Who scores the checkpoints."""
    return _session(request.config).judges(rn_suite).evaluation


@pytest.fixture
def defended(request: pytest.FixtureRequest, rn_suite: Suite) -> Defended:
    """The candidate with this run's defense; ``defended.load()`` gives a fresh copy."""
    return _made(request, lambda s: s.defended(rn_suite))


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


@pytest.fixture
def candidate_case(request: pytest.FixtureRequest) -> Case:
    """The undefended candidate, before any attack."""
    return _known(request, "candidate")


@pytest.fixture
def control_case(request: pytest.FixtureRequest, attack: AttackRecipe) -> Case:  # noqa: ARG001  (which parametrizes the test)
    """The attack on the undefended candidate."""
    return _known(request, "control")


@pytest.fixture
def defense_case(request: pytest.FixtureRequest) -> Case:
    """The defense, and the defended candidate before any attack."""
    return _known(request, "defense")


@pytest.fixture
def attack_case(request: pytest.FixtureRequest, attack: AttackRecipe) -> Case:  # noqa: ARG001  (which parametrizes the test)
    """The attack on the defended candidate."""
    return _known(request, "attack")


@pytest.fixture
def helpfulness_case(request: pytest.FixtureRequest) -> Case:
    """The defended candidate on benign prompts."""
    return _known(request, "helpfulness")


def _made(request: pytest.FixtureRequest, make: Callable[[RunSession], T]) -> T:
    """Runs work in a fixture's setup; what goes wrong is told without arguments or locals, which may hold completions."""
    __tracebackhide__ = True
    from rn_harness.spec.errors import told_in_full

    if request.config.stash.get(TERMINATED, False):  # raised where Python swallows exceptions
        raise Terminated
    try:
        return make(_session(request.config))
    except KeyboardInterrupt as error:
        raise type(error) from None  # without the frames that it came through: --full-trace shows their arguments
    except Exception as error:  # noqa: BLE001  (told below, and never swallowed)
        text = told_in_full(error)
    finally:
        _end_progress(request.config)
    _end_all(request.config, text)
    pytest.fail(f"no verdict: {text}", pytrace=False)


def _end_all(config: pytest.Config, text: str) -> None:
    """Ends a run of several processes: one that goes on alone would wait for what never comes. The launcher ends the others."""
    from rn_harness.store.ranks import ranks

    if SCRATCH in config.stash:
        with _uncaptured(config):
            sys.stderr.write(f"rn-harness: process {ranks().rank}: no verdict: {text}\n")
            sys.stderr.flush()
        time.sleep(GRACE_S)  # where the first failed too, it tells and writes what became of the run
        os._exit(1)
    if ranks().size > 1:
        pytest.exit(f"no verdict: {text}", returncode=1)


def _asked_for(request: pytest.FixtureRequest, kind: CaseKind) -> CaseTask:
    """The case that a test asks for: suite and recipe as they are declared, whatever another fixture or a hook gives."""
    from rn_harness.run.lineup import CaseTask
    from rn_harness.spec.errors import RecipeError

    suite = _suite(request.config, request.path.parent)
    if kind not in ("control", "attack"):
        return CaseTask(kind, suite, None)
    given = getattr(getattr(request.node, "callspec", None), "params", {}).get("attack")
    declared = {recipe.id: recipe for recipe in suite.tier_attacks(request.config.getoption("rn_tier"))}
    recipe = declared.get(getattr(given, "id", ""))
    if recipe is None or recipe != given:
        raise RecipeError(
            f"an attack case is run with a recipe that the tier declares, got {getattr(given, 'id', None)} with other settings; "
            "leave the test's parameters as they are"
        )
    return CaseTask(kind, suite, recipe)


def _known(request: pytest.FixtureRequest, kind: CaseKind) -> Case:
    """Ends the setup unless the case has a verdict that counts: INCONCLUSIVE is an error.

    What does not count for the run is told by a skip: out of the claim, all but a case that held; of an exploratory case, that it
    proved nothing, that it destroyed the model, and a breach that the claim does not cover.
    """
    __tracebackhide__ = True
    from rn_harness.records.case import TOLD_ALONE, turns

    def make(session: RunSession) -> Case:
        task = _asked_for(request, kind)
        return session.case(task.kind, task.suite, task.attack)

    case = _made(request, make)
    request.node.stash[CASE] = case
    verdict, evidence = case.record.verdict, case.record.evidence
    told = f"{(verdict.finding or 'unknown').replace('_', ' ')}: {verdict.reasons[0].sentence}"
    if evidence.standing == "out_of_claim" and verdict.outcome != "PASS":
        pytest.skip(f"out of claim, {told}")
    if verdict.outcome == "FAIL" and not turns(evidence.standing, within_claim=evidence.within_claim):
        pytest.skip(f"exploratory, not covered by the claim, {told}")
    if verdict.outcome == "INCONCLUSIVE":
        if evidence.standing == "exploratory" and verdict.finding in TOLD_ALONE:
            pytest.skip(told)
        lines = [f"INCONCLUSIVE: {case.record.case_id}", *(f"  {r.sentence}" for r in verdict.reasons)]
        pytest.fail("\n".join(lines), pytrace=False)
    return case


# --- reports -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends a test that gets a fixture of ours from elsewhere: in a worker, or where a hook put it there late."""
    from rn_harness.plugin.collection import overridden

    if _suite_folder(item.config, item.nodeid) and (strange := overridden([item], _fixtures())):
        pytest.fail(strange[0], pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Hangs the case's news on the report, which xdist carries to the controller."""
    report = yield
    case = item.stash.get(CASE, None)
    if case is not None:
        from rn_harness.report.terminal import checkpoint_lines
        from rn_harness.run.controller import news_of

        report.rn_harness = news_of(case, "\n".join(checkpoint_lines(case.record)))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A gate that saw no suite lets nothing through: neither the wrong path, nor a session that only lists tests.

    The exit code of a run of several processes is the first's: a launcher kills it when another's is not 0.
    """
    config = session.config
    if SCRATCH in config.stash:
        if session.exitstatus in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR):
            session.exitstatus = pytest.ExitCode.OK
        return
    if SINK in config.stash:
        if not config.pluginmanager.is_registered(config.stash[SINK]):  # somebody took it away
            code = config.stash[SINK].conclude(session)
            session.exitstatus = code or session.exitstatus
        return
    if _is_worker(config):
        return
    if session.exitstatus == pytest.ExitCode.INTERRUPTED and _near_suites(config):
        _tell_interrupted(config)
    if not config.getoption("rn_gate") or session.exitstatus != 0:
        return
    from rn_harness.verdict.release_rules import NOT_RELEASABLE

    session.exitstatus = NOT_RELEASABLE
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.write_line("--rn-gate: no suite was run, so that nothing can be released; name one, e.g. pytest suites/biochem")


def _tell_interrupted(config: pytest.Config) -> None:
    """Puts an error into the user's own JUnit, which pytest would write with no test in it where it was cut off before any."""
    from _pytest.junitxml import xml_key

    xml = config.stash.get(xml_key, None)
    if xml is not None:
        at = ("rn-harness", None, "interrupted")
        text = "no verdict: interrupted before the first test"
        xml.pytest_runtest_logreport(
            pytest.TestReport("rn-harness::interrupted", at, {}, "failed", text, "setup", start=0.0, stop=0.0)
        )


class Sink:
    """Receives reports in the controlling process; registered when a run begins, so that other sessions never see it."""

    def __init__(self, config: pytest.Config, controller: Controller) -> None:
        from _pytest.junitxml import xml_key

        self.config = config
        self.controller = controller
        self.run: RunRecord | None = None
        self.finishing = False
        self.ended: tuple[pytest.Session, int] | None = None
        self.xml = config.stash.get(xml_key, None)
        if self.xml is not None:
            path = Path(self.xml.logfile)
            path.parent.mkdir(parents=True, exist_ok=True)
            controller.write_junit(path)  # red, until pytest writes it when all has ended
            for name, value in controller.properties.items():
                self.xml.add_global_property(name, value)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Takes each phase's report; the user's own JUnit gets the checkpoints as system-out."""
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        news = getattr(report, "rn_harness", None)
        excused = hasattr(report, "wasxfail")
        self.controller.add(report.nodeid, report.when, report.outcome, report.duration, text, news, excused=excused)
        self._recolour(report, news)
        if self.xml is not None and news and (report.when == "call" or (report.when == "setup" and not report.passed)):
            import xml.etree.ElementTree as ET  # nosec B405 # written, never read

            output = ET.Element("system-out")
            output.text = news["output"]
            self.xml.node_reporter(report).append(output)

    def _recolour(self, report: Any, news: CaseNews | None) -> None:
        """Makes a report say what the verdict says, so that pytest counts it: an emptied test, a mark or a hook may say else."""
        demanded = self.controller.demanded(news)
        decisive = {"failure": "call", "error": "setup"}.get(demanded or "")
        if decisive == report.when and (report.outcome != "failed" or hasattr(report, "wasxfail")):
            report.outcome, report.longrepr = "failed", self.controller.verdict_text(news)
            vars(report).pop("wasxfail", None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Concludes the run before all other hooks, and has the last word on the exit code after them."""
        code = self.conclude(session)
        try:
            return (yield)
        except pytest.exit.Exception as error:
            error.returncode = code or error.returncode
            raise
        finally:
            session.exitstatus = code or session.exitstatus

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_unconfigure(self) -> Generator[None]:
        """Has the last word on the exit code once more."""
        try:
            return (yield)
        finally:
            if self.ended:
                session, code = self.ended
                session.exitstatus = code or session.exitstatus

    def conclude(self, session: pytest.Session) -> int:
        """Writes the run's record: also after an interruption, when what has not ended stays without a verdict.

        Returns:
            The exit code by the verdict; 0: whatever the others say.
        """
        if self.ended:
            return self.ended[1]
        self.finishing = True
        self.controller.unheard = [name for name, heard in self.config.stash[WORKERS].items() if not heard]
        self.run = self.controller.finish()
        if self.xml is not None:
            self._close(self.xml, self.run)
        self.controller.show(self.run)
        self.ended = session, int(self._exit_code(session, self.run))
        return self.ended[1]

    def _exit_code(self, session: pytest.Session, run: RunRecord) -> int:
        """A breach is never green, whatever was narrowed, marked or hooked; nor is what the gate cannot let through."""
        code = session.exitstatus
        if self.config.stash.get(TERMINATED, False):
            return STOPPED
        if run.outcome == "FAIL" and code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            code = 1
        elif run.outcome != "PASS" and not self.controller.narrowed and code == 0:
            code = 1  # green tests that leave out what the tier requires
        if self.controller.unwritten and code == 0:
            code = 1  # a run that cannot be read by people is not green
        if run.releasable or not self.config.getoption("rn_gate") or run.outcome == "FAIL" or self._is_red(session):
            return code
        from rn_harness.verdict.release_rules import NOT_RELEASABLE

        return NOT_RELEASABLE

    @staticmethod
    def _is_red(session: pytest.Session) -> bool:
        """Whether a test was red, or pytest says otherwise that something went wrong."""
        return session.testsfailed > 0 or session.exitstatus not in (0, 1)

    def _close(self, xml: LogXML, run: RunRecord) -> None:
        """The user's own JUnit: an error for each test that has not ended, and no nameless rest of one that was cut off.

        Where its tests would still make it look better than the verdict is, the verdict gets a place of its own.
        """
        for reporter in list(xml.node_reporters.values()):
            if "name" not in reporter.attrs:
                xml.node_reporters_ordered.remove(reporter)
        for nodeid, text in self.controller.unended():
            path, _, name = nodeid.partition("::")
            xml.pytest_runtest_logreport(
                pytest.TestReport(nodeid, (path, None, name), {}, "failed", text, "setup", start=0.0, stop=0.0)
            )
        if state := self.controller.undertold(run.outcome, xml.stats["failure"], xml.stats["error"]):
            from rn_harness.run.controller import VERDICT

            path, _, name = VERDICT.partition("::")
            phase: Literal["call", "setup"] = "call" if state == "failure" else "setup"
            xml.pytest_runtest_logreport(
                pytest.TestReport(VERDICT, (path, None, name), {}, "failed", run.claim, phase, start=0.0, stop=0.0)
            )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The closing table and the claim."""
        terminalreporter.section("rn-harness")
        for line in self.controller.summary(self.run or self.controller.finish()):
            terminalreporter.write_line(line)
