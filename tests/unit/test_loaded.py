"""Foreign code in a session is found by its files and is part of every stored result's key."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pytest

from rn_harness.plugin.loaded_code import _local_modules, inherits_only, loaded_code
from rn_harness.records.base import content_key
from rn_harness.run.case import CaseTask
from rn_harness.spec.base import LoadedCode
from rn_harness.spec.suite import load_suite
from rn_harness.verdict.release_rules import foreign, unlisted

from .builders import write_suite
from .test_session import a_session

MINE = LoadedCode(kind="conftest", name="conftest.py", sha256="1" * 64)
XDIST = LoadedCode(kind="distribution", name="pytest-xdist", version="3.8.0", sha256="2" * 64)


def a_config(root: Path, *plugins: object) -> pytest.Config:
    """A session's configuration for this folder, with these plugins and pytest's own."""
    from _pytest.config import get_config

    config = get_config(["--rootdir", str(root)])
    config.parse([str(root), "--rootdir", str(root), "-p", "no:cacheprovider"])
    for plugin in plugins:
        config.pluginmanager.register(plugin)
    return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pytest.Config:
    """A session's configuration with pytest's own plugins, for a folder of this file's tests."""
    return a_config(tmp_path_factory.mktemp("root"))


def _module(folder: Path, name: str, source: str, patch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module imported from a file."""
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    patch.setitem(sys.modules, name, module)
    return module


def _new(config: pytest.Config, suites: tuple[Path, ...] = ()) -> dict[str, LoadedCode]:
    """The recorded files of this folder by name, without those that the current test session loaded."""
    return {c.name: c for c in loaded_code(config, suites) if c.sha256 in _digests(config.rootpath)}


@pytest.mark.parametrize(("name", "foreign"), [("__main__", False), ("__mp_main__", False), ("other", True)])
def test_the_command_that_started_the_session_is_not_foreign(
    name: str, foreign: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of an installed command is ours, also under the name that multiprocessing gives it; an import of it is not."""
    _module(tmp_path, "pytest-script", "", monkeypatch)
    monkeypatch.setitem(sys.modules, name, sys.modules.pop("pytest-script"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert (tmp_path / "pytest-script.py" in _local_modules()) is foreign


def _digests(root: Path) -> set[str]:
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.py")}


def test_a_changed_suite_in_the_wheel_is_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of suites within the installed package, a test file that does more than inherit, and a conftest, are recorded."""
    suites = tmp_path / "rn_harness" / "suites"
    monkeypatch.setattr("rn_harness.plugin.loaded_code.OURS", suites.parent)
    monkeypatch.setattr("rn_harness.plugin.loaded_code.suites_folder", lambda: suites)
    folders = [suites / name for name in ("plain", "changed")]
    for folder, extra in zip(folders, ("", "x = 1\n"), strict=True):
        folder.mkdir(parents=True)
        _module(folder, f"test_{folder.name}", f"from rn_harness import RobustnessChecks\n{extra}", monkeypatch)
    _module(suites / "plain", "conftest", "y = 1\n", monkeypatch)
    _module(suites.parent, "ours", "z = 1\n", monkeypatch)
    found = _new(a_config(tmp_path), tuple(folders))
    assert {name: code.kind for name, code in found.items()} == {
        "rn_harness/suites/changed/test_changed.py": "suite",
        "rn_harness/suites/plain/conftest.py": "conftest",
    }


def test_a_conftest_a_plugin_and_what_they_import_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each foreign file is recorded with kind, path from pytest's root folder, and digest; pytest's own files are left out."""
    _module(tmp_path, "helper", "x = 1\n", monkeypatch)
    conftest = _module(tmp_path, "conftest", "def pytest_runtest_setup():\n    pass\n", monkeypatch)
    plugin = _module(tmp_path, "quiet", "class Quiet:\n    def pytest_runtest_setup(self):\n        pass\n", monkeypatch)
    found = _new(a_config(tmp_path, conftest, plugin.Quiet()))
    assert {name: code.kind for name, code in found.items()} == {
        "conftest.py": "conftest",
        "helper.py": "module",
        "quiet.py": "module",
    }
    assert found["helper.py"].sha256 == hashlib.sha256(b"x = 1\n").hexdigest()


def test_a_link_among_installed_modules_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is linked into a folder of packages is recorded as the local file it leads to, and its neighbour is not."""
    monkeypatch.setattr("rn_harness.plugin.loaded_code._installed_folders", lambda: (tmp_path / "site",))
    for folder in ("own", "site"):
        (tmp_path / folder).mkdir()
    _module(tmp_path / "site", "neighbour", "x = 1\n", monkeypatch)
    linked = _module(tmp_path / "own", "linked", "x = 2\n", monkeypatch)
    linked.__file__ = str(tmp_path / "site" / "linked.py")
    # Every other module would count as local, and be read.
    ours = {name: sys.modules[name] for name in ("linked", "neighbour")}
    monkeypatch.setattr("rn_harness.plugin.loaded_code.sys", types.SimpleNamespace(modules=ours))
    (tmp_path / "site" / "linked.py").symlink_to(tmp_path / "own" / "linked.py")
    assert set(_new(a_config(tmp_path))) == {"own/linked.py"}


OF_DEBIAN = """\
# install the apport exception handler if available
try:
    import apport_python_hook
except ImportError:
    pass
else:
    apport_python_hook.install()
"""


@pytest.mark.parametrize("added", ["", "print()\n"])
def test_a_systems_own_startup_file_is_known_by_its_digest(added: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The startup file that Debian's Python brings is no code of others, and an edited one is."""
    _module(tmp_path, "sitecustomize", OF_DEBIAN + added, monkeypatch)
    assert set(_new(a_config(tmp_path))) == ({"sitecustomize.py"} if added else set())


def test_hooks_made_from_text_are_found(tmp_path: Path) -> None:
    """A plugin without a file is identified by its code: other code has another digest."""
    found = []
    for body in ("pass", "return 1"):
        space: dict[str, object] = {}
        exec(f"def pytest_runtest_setup(item):\n    {body}\n", space)
        plugin = types.SimpleNamespace(pytest_runtest_setup=space["pytest_runtest_setup"])
        found += [code for code in loaded_code(a_config(tmp_path, plugin), ()) if code.name == "<string>"]
    assert len({code.sha256 for code in found}) == 2


def test_plugins_of_installed_packages_have_name_and_version(plain: pytest.Config) -> None:
    """A distribution's plugin is recorded with name and version; the harness itself is not recorded."""
    found = {code.name: code for code in loaded_code(plain, ()) if code.kind == "distribution"}
    assert found["pytest-xdist"].version
    assert "rn-harness" not in found


@pytest.mark.parametrize(
    ("source", "idle"),
    [
        ('"""Demo."""\nfrom rn_harness import RobustnessChecks\n\nclass TestDemo(RobustnessChecks):\n    """Demo."""\n', True),
        (
            "from __future__ import annotations\nfrom rn_harness.plugin.checks import RobustnessChecks as R\nclass T(R): pass\n",
            True,
        ),
        ("from rn_harness import RobustnessChecks\nclass T(RobustnessChecks):\n    def test_own(self): pass\n", False),
        ("import rn_harness.attacks.loop\n", False),
        ("from rn_harness.plugin.checks import RobustnessChecks\nRobustnessChecks.test_control_breaks = None\n", False),
        ("from rn_harness.plugin.checks import tell\n@tell\nclass T: pass\n", False),
        ("from rn_harness.plugin.checks import M\nclass T(metaclass=M): pass\n", False),
        ("from rn_harness import RobustnessChecks as R\nclass T((print(1), R)[1]): pass\n", False),
        ("# coding: utf-7\nfrom rn_harness import RobustnessChecks as R\n# +AAo-import os\nclass T(R): pass\n", False),
    ],
)
def test_a_suites_test_file_is_foreign_code_if_it_does_more_than_inherit(
    source: str, idle: bool, plain: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite's test file that only inherits the checks is not recorded; one with any other statement is."""
    assert inherits_only(source.encode()) is idle
    path = plain.rootpath / "test_demo.py"
    path.write_text(source, encoding="utf-8")
    # The tests above show that such a module is found; a look at all modules of this process takes a quarter of a second.
    monkeypatch.setattr("rn_harness.plugin.loaded_code._local_modules", lambda: [path])
    assert [c.kind for c in _new(plain, (plain.rootpath,)).values()] == ([] if idle else ["suite"])


def test_only_plugins_of_known_packages_are_harmless() -> None:
    """Only distributions count as known packages: neither a conftest nor a file with a known package's name does."""
    named = MINE.model_copy(update={"name": "pytest-xdist", "kind": "module"})
    assert foreign([MINE, XDIST, named]) == (MINE, named)


def test_foreign_code_changes_the_key_of_every_stored_result(tmp_path: Path) -> None:
    """A case or defense made under a foreign conftest has a different key; pytest-xdist changes no key."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    recipe = suite.declaration.defenses["quick"]
    keys = []
    for plugins in ((), (XDIST,), (MINE,)):
        session = a_session(tmp_path, model="organism", plugins=plugins)
        run = session.run_of(suite)
        inputs = {"case": run.case_inputs(CaseTask("candidate", suite)), "defense": run.defense_inputs(recipe)}
        keys.append(tuple(content_key(kind, of) for kind, of in inputs.items()))
        assert session.identity(suite, None).plugins == foreign(plugins)
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_a_name_does_not_count_as_a_digest() -> None:
    """Allowing a digest does not allow code whose name is that digest."""
    posing = LoadedCode(kind="module", name=MINE.sha256, sha256="9" * 64)
    assert unlisted([posing], [MINE.sha256]) != []
    assert unlisted([MINE], [MINE.sha256]) == []


def test_the_harness_is_not_foreign_code(plain: pytest.Config) -> None:
    """No module of the package is recorded, in whatever room it is."""
    assert [code.name for code in loaded_code(plain, ()) if "rn_harness/" in code.name] == []
