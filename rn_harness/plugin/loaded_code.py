"""Finds the code of others in a session: plugins, conftests, and modules from local files.

Such code runs in the process that trains and judges, so it can change any result. It is recorded by digest, and its digests are
part of every stored result's key. Installed packages without a plugin are left out: the versions of those that decide are
recorded. A module that is imported only while tests run is not found either.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import marshal
import os
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from rn_harness.plugin.pytest_compat import pytest_folders
from rn_harness.spec.base import LoadedCode
from rn_harness.spec.fixtures import suites_folder

if TYPE_CHECKING:
    import pluggy
    import pytest

CONFTEST = "conftest.py"
MAIN = ("__main__", "__mp_main__")
"""Names of the module that started Python; the second is an alias that multiprocessing adds."""
OURS = Path(__file__).resolve().parents[1]
CHECKS = ("rn_harness", "rn_harness.plugin.checks")
OF_DISTRIBUTIONS = frozenset({"43d81125d92376b1a69d53a71126a041cc9a18d8080e92dea0a2ae23be138b1e"})
"""Digests of the ``sitecustomize.py`` of a system's own Python that lies outside its standard library: of Debian and Ubuntu, in
``/etc``. It only imports the system's crash reporter if there is one, whose file is then found like any other."""


def loaded_code(config: pytest.Config, suites: Collection[Path]) -> tuple[LoadedCode, ...]:
    """The code that this process loaded and that is neither pytest's nor ours, sorted.

    A test file in the folder of a suite counts only if it does more than inherit our checks.
    """
    found = set(_of_plugins(config))
    for file in _local_modules():
        if file.parent not in suites or file.name == CONFTEST:
            found.add(_local(config, file))
        elif not inherits_only(file.read_bytes()):
            found.add(_local(config, file, "suite"))
    return tuple(sorted(found, key=lambda code: (code.kind, code.name, code.sha256)))


def inherits_only(source: bytes) -> bool:
    """True if a suite's test file only imports our checks and inherits them in classes without a body.

    A base that is not a plain name may run code. The bytes are read as Python reads them, by their coding line.
    """
    for node in ast.parse(source).body:
        is_import = isinstance(node, ast.ImportFrom) and node.module in ("__future__", *CHECKS) and not node.level
        if not (is_import or (isinstance(node, ast.ClassDef) and _only_inherits(node)) or _is_idle(node)):
            return False
    return True


def _only_inherits(node: ast.ClassDef) -> bool:
    """True if a class statement runs no code: plain names as bases, and a body that does nothing."""
    extras = [*node.decorator_list, *node.keywords, *getattr(node, "type_params", ())]
    return not extras and all(isinstance(base, ast.Name | ast.Attribute) for base in node.bases) and all(map(_is_idle, node.body))


def _is_idle(node: ast.stmt) -> bool:
    """True if a statement is ``pass`` or a docstring."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _of_plugins(config: pytest.Config) -> Iterator[LoadedCode]:
    """The plugins, with the files of their hooks."""
    manager = config.pluginmanager
    brought: dict[Path, tuple[str, str]] = {}
    files: set[Path] = set()
    hooked: set[str] = set()
    for plugin, distribution in manager.list_plugin_distinfo():
        for file in _files(plugin):
            brought[_top(file)] = (str(distribution.metadata["name"]), str(distribution.version))
    for plugin in (plugin for _, plugin in manager.list_name_plugin() if plugin is not None):  # one may have no hash
        files |= set(_files(plugin))
        for code in _hooks(manager, plugin):
            if code.co_filename in hooked:
                continue
            if Path(code.co_filename).is_file():
                hooked.add(code.co_filename)
                files.add(Path(code.co_filename).resolve())
            else:  # made from text
                yield LoadedCode(kind="module", name=code.co_filename, sha256=hashlib.sha256(marshal.dumps(code)).hexdigest())
    for file in files:
        if _lies_in(file, (OURS, *pytest_folders())):
            continue
        top = _top(file)
        if top in brought:
            name, version = brought[top]
            yield LoadedCode(kind="distribution", name=name, version=version, sha256=_digest(top))
        elif _lies_in(file, _installed_folders()):
            yield LoadedCode(kind="module", name=top.name, sha256=_digest(top))
        else:
            yield _local(config, file)


def _files(plugin: object) -> Iterator[Path]:
    """The file that defines a plugin or its class."""
    owner = plugin if inspect.isclass(plugin) else type(plugin)
    module = plugin if isinstance(plugin, ModuleType) else sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    if file and Path(file).is_file():
        yield Path(file).resolve()


def _hooks(manager: pluggy.PluginManager, plugin: object) -> Iterator[CodeType]:
    """The code of a plugin's hooks."""
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            if implementation.plugin is plugin:
                # Both: a function may claim to wrap another without calling it.
                for function in (implementation.function, inspect.unwrap(implementation.function)):
                    code = getattr(function, "__code__", None)
                    if isinstance(code, CodeType):
                        yield code


def _local_modules() -> Iterator[Path]:
    """The files of imported modules that are neither installed nor ours. Those of shipped suites are no part of our sources."""
    known, shipped = (OURS, *pytest_folders(), *_installed_folders()), suites_folder()
    # By folder, because thousands of modules lie in a few hundred folders, and as texts, because paths take five times as long.
    installed: dict[str, bool] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not os.path.isfile(file):  # noqa: PTH113
            continue
        folder = os.path.dirname(file)  # noqa: PTH120
        if folder not in installed:
            where = Path(folder).resolve()
            installed[folder] = _lies_in(where, known) and not where.is_relative_to(shipped)
        if installed[folder] and not os.path.islink(file):  # noqa: PTH114
            continue
        path = Path(file).resolve()
        if name in MAIN and path.parent == Path(sysconfig.get_path("scripts")).resolve():
            continue  # the command that started us
        if name == "sitecustomize" and _digest(path) in OF_DISTRIBUTIONS:
            continue
        if not _lies_in(path, known) or path.is_relative_to(shipped):
            yield path


def _local(config: pytest.Config, file: Path, kind: str = "") -> LoadedCode:
    """A file of the user, named by its path from pytest's root folder, since names are published.

    The path of a file outside begins with ``..``, so that no two files share a name that a user may allow.
    """
    name = Path(os.path.relpath(file, config.rootpath.resolve())).as_posix()
    kind = kind or ("conftest" if file.name == CONFTEST else "module")
    return LoadedCode.model_validate({"kind": kind, "name": name, "sha256": _digest(file)})


def _digest(top: Path) -> str:
    """The sha256 of a file, or over the Python files of a package."""
    if top.is_file():
        return hashlib.sha256(top.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*.py")):
        digest.update(path.relative_to(top).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _lies_in(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


@cache
def _site_folders() -> tuple[Path, ...]:
    """The folders that packages are installed in."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    found += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return tuple(Path(folder).resolve() for folder in found)


@cache
def _installed_folders() -> tuple[Path, ...]:
    """The folders of packages and of the standard library."""
    return (*_site_folders(), *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")))


def _top(file: Path) -> Path:
    """The folder of the package that an installed file belongs to, or the file itself."""
    for folder in _site_folders():
        if file.is_relative_to(folder):
            return folder / file.relative_to(folder).parts[0]
    return file
