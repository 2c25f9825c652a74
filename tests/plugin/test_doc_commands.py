"""Every command that the pages show is collected, parsed or run, in a workspace that contains the files the pages name.

``pytest`` commands run up to the first training: suites, models, judges, memory and folders are checked.
``rn-harness`` commands run if they need no model; the program itself parses the others.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.organism.__main__ import app as organism_app
from rn_harness.run.attack_strength import find_strength
from rn_harness.run.case import Case
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.suite import Suite, load_suite

from ..unit import builders  # noqa: TID252 - the tests are not a package
from ..unit.finished_run import finished_run  # noqa: TID252 - the tests are not a package
from ..unit.test_session import a_session  # noqa: TID252 - the tests are not a package
from .doc_commands import ALL, LEFT, ON_THE_HUB, PAGES, ROOT, SHELL, Command, block_of, commands_of

UNDERSTOOD = 77
"""Exit code of a session that was stopped before its work began."""
DRIVER = f"""
import contextlib, copy, functools, io, json, sys
import pytest
import rn_harness.spec.suite

# The same few files are read by each session: their YAML is parsed once.
parsed = functools.cache(rn_harness.spec.yaml_files.read_yaml)
rn_harness.spec.yaml_files.read_yaml = lambda *given, **named: copy.deepcopy(parsed(*given, **named))

class Stop:
    understood = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        self.understood = bool(items) and not config.option.collectonly  # what is refused does not come here

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self):
        if self.understood:
            pytest.exit("all is there", returncode={UNDERSTOOD})

sys.path.insert(0, "")
told = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(["-p", "no:cacheprovider", "-p", "no:unraisableexception", *words], plugins=[Stop()])
    told.append([int(code), said.getvalue()])
json.dump(told, sys.stdout)
"""
WRONG = {
    "suites/fraude": "file or directory not found",
    "suites/biochem --rn-teir smoke": "unrecognized arguments",
    "suites/biochem --model smolm2": "did you mean smollm2?",
    "suites/biochem --rn-base ours/model": "--rn-defense none",
    "suites/biochem --rn-set attack.stepz=3 --collect-only": "stepz",
}
"""Mistakes in pytest arguments, with the message for each."""
ONLY_PARSED = {
    "calibrate": "attacks a model, for minutes",
    "calibrate-judge": "asks a classifier about each anchor",
    "run": "becomes pytest; test_wheel.py runs it",
    "utility": "asks two models tasks",
}
XDIST = {"-n", "2", "--dist", "loadfile"}
"""Options of pytest-xdist, with which this repository's own tests run."""
MAY_REFUSE = {"verify", "certify-judge", "doctor", "compare"}
"""Commands that may exit with 1 without an error."""


@dataclass
class Desk:
    """A folder in which the commands are run.

    Attributes:
        folder: the folder, with suites and the other files that the pages name.
        results: exit code and output of each command, by its words; ``pytest`` commands without the program's name.
    """

    folder: Path
    results: dict[tuple[str, ...], tuple[int, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """A short text, because pytest prints fixtures."""
        return f"Desk({self.folder})"


def pytest_words(command: Command) -> list[str] | None:
    """The arguments that a command passes to pytest; None if it calls another program."""
    words = command.here
    if words[:2] == ["accelerate", "launch"] and "-m" in words:
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[0] == "pytest" else None


def is_of_the_repository(words: list[str]) -> bool:
    """True if pytest runs this repository's own tests, as the current test run already does."""
    return not any(word.startswith(("suites", "rn_harness.suites")) for word in words)


def copy_organism(folder: Path, *, twin: bool = False) -> None:
    """The organism under another name; a twin has another digest and gives the same answers."""
    shutil.copytree(fixtures_folder() / "organism", folder)
    if twin:
        (folder / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")


def strength(folder: Path, suite: Suite) -> str:
    """A strength certificate of the organism whose controls all broke; no control is run."""

    def case(self: RunSession, kind: str, of: Suite, attack: AttackRecipe) -> Case:
        control = builders.trajectory(builders.CONTROL_STEPS, lambda step: 9.0 if step else 0.0, defended_digest=None)
        record = builders.case_record(builders.evidence("control", trajectory=control))
        return Case(record, of.domain, stored=False, folder=folder, defended=None, weights={})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSession, "case", case)
        return find_strength(a_session(folder, defense="none"), suite, 24).model_dump_json()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """The workspace after the shell's and pytest's commands; a finished run is where the other commands look for one."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("suites", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n", encoding="utf-8")
    for name in ("ours/released", "ours/model", "our-model"):
        copy_organism(folder / name, twin=True)
    for name in ("ours/before-its-defense",):
        copy_organism(folder / name)
    (folder / "our_package").mkdir()
    judge = block_of("for-judge-authors.md", "python", "class KeywordJudge")
    (folder / "our_package" / "judges.py").write_text(judge, encoding="utf-8")
    labels = block_of("for-judge-authors.md", "yaml", "version: 1\ndomain: our-domain")
    (folder / "ours.yaml").write_text(labels, encoding="utf-8")
    (folder / "biochem-strength.json").write_text(strength(folder, load_suite(folder / "suites" / "biochem")), encoding="utf-8")

    made, desk = finished_run(tmp_path_factory.mktemp("made")), Desk(folder)
    environment = os.environ | {"RN_HARNESS_CACHE": str(folder / "store"), "HF_HUB_OFFLINE": "1"}
    for command in (c for c in ALL if c.words[0] in SHELL):
        done = subprocess.run(command.here, cwd=folder, check=False, capture_output=True, text=True)
        desk.results[tuple(command.here)] = (done.returncode, done.stdout + done.stderr)
    copied = folder / "suites" / "fraud" / "suite.yaml"  # the page tells the reader to edit it
    copied.write_text(copied.read_text(encoding="utf-8").replace("domain: biochem", "domain: fraud"), encoding="utf-8")
    shown = [tuple(as_here(words)) for c in ALL if (words := pytest_words(c)) is not None and not is_of_the_repository(words)]
    asked = [*dict.fromkeys(shown), *(tuple(words.split()) for words in WRONG)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(asked), cwd=folder, env=environment, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    desk.results |= {words: (code, said) for words, (code, said) in zip(asked, json.loads(done.stdout), strict=True)}

    shutil.copytree(made.folder, folder / "run")
    shutil.copytree(made.folder, folder / "reports" / "latest")
    shutil.copytree(made.weights, folder / "released")
    (folder / "release.yaml").write_text("version: 1\ndomains: [demo]\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RN_HARNESS_CACHE", str(folder / "store"))
        yield desk


def as_here(words: list[str]) -> list[str]:
    """The words adapted to this machine: one process, no sharding, and only collection for models that are not here."""
    one_process = ["-n", "0"] if "-n" in words else []
    words = [word for word in words if word != "--rn-shard"]
    return [*words, *one_process, *(["--collect-only", "-q"] if ON_THE_HUB.keys() & set(words) else [])]


def understand(command: Command, desk: Desk) -> None:
    """Raises AssertionError unless the command is valid."""
    if command.text in LEFT:
        return
    words = pytest_words(command)
    if command.words[0] == "accelerate":
        _understand_launch(command)
    if words is not None:
        if is_of_the_repository(words):
            declared = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
            own = [word for word in words if word not in XDIST]
            assert all(f'addoption("{word}"' in declared for word in own), command.text
            return
        code, said = desk.results[tuple(as_here(words))]
        assert code == (0 if "--collect-only" in as_here(words) else UNDERSTOOD), said
        return
    if command.words[0] in SHELL:
        code, said = desk.results[tuple(command.here)]
        assert code == 0, said
        return
    check = {"python": _understand_python, "make": _understand_make, "pip": _understand_pip}
    if command.words[0] == "rn-harness":
        _understand_ours(command.here, desk)
    elif command.words[0] in check:
        check[command.words[0]](command.here)
    else:
        assert command.words[0] == "accelerate", f"no test runs what {command.page}:{command.line} shows: {command.text}"


def _understand_launch(command: Command) -> None:
    from accelerate.commands.launch import launch_command_parser

    words = command.here[2:]
    if "-m" in words:
        assert launch_command_parser().parse_args(words).module
    else:  # a part of a command
        assert launch_command_parser().parse_known_args([*words, "any"])[1] == []


def _understand_ours(words: list[str], desk: Desk) -> None:
    """Parses a command and runs it if it is cheap; a command that a page only names must exist."""
    if any("|" in word for word in words):
        at = next(i for i, word in enumerate(words) if "|" in word)
        for choice in words[at].split("|"):
            _understand_ours([*words[:at], choice, *words[at + 1 :]], desk)
        return
    command: Any = get_command(app)
    rest, names = words[1:], list[str]()
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if rest[:1] and rest[0].startswith("-"):
            assert any(rest[0] in of.opts for of in command.params), f"{rest[0]} is no option of rn-harness"
            return
        assert rest, f"{words} ends before its command"
        assert rest[0] in command.commands, f"{rest[0]} is no command of rn-harness"
        command, names, rest = command.commands[rest[0]], [*names, rest[0]], rest[1:]
    if not rest and any(of.required for of in command.params):
        return  # named, not shown
    command.make_context(names[-1], list(rest))
    if names[0] in ONLY_PARSED:
        return
    if tuple(words) not in desk.results:
        done = CliRunner().invoke(app, words[1:])
        desk.results[tuple(words)] = (done.exit_code, done.output)
    code, said = desk.results[tuple(words)]
    assert code == 0 or (code == 1 and names[0] in MAY_REFUSE), said


def _understand_python(words: list[str]) -> None:
    if words[1] == "-c":
        done = subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[1:3] == ["-m", "rn_harness.organism"]:
        command: Any = get_command(organism_app)
        if words[3:]:
            command.commands[words[3]].make_context(words[3], words[4:])
    else:
        assert words[1].startswith("benchmarks/"), words
        ast.parse((ROOT / words[1]).read_text(encoding="utf-8"))


def _understand_make(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE), words


def _understand_pip(words: list[str]) -> None:
    """Only this project is installed, with extras that it has."""
    assert words[1] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    spec = re.fullmatch(r"(\.|rn-harness)(?:\[(.+)\])?", words[-1])
    assert spec, words
    assert set(filter(None, (spec[2] or "").split(","))) <= project["optional-dependencies"].keys()
    assert all((ROOT / words[i + 1]).is_file() for i, word in enumerate(words) if word == "-c")


@pytest.mark.parametrize("command", ALL, ids=lambda c: f"{c.page}:{c.line}:{c.text}"[:80])
def test_each_command_of_the_pages_is_valid(desk: Desk, command: Command) -> None:
    """A command is collected and checked up to the first training, parsed, or run; a command that no test knows is an error."""
    understand(command, desk)


def test_commands_are_found_in_every_form() -> None:
    """Commands in every form are found: after a prompt, fenced, indented, in a list, and in a table."""
    found = {(c.page, c.text) for c in ALL}
    for page, text in (
        ("README.md", "pytest suites/biochem --rn-tier smoke"),
        ("models.md", "pytest suites/biochem --model qwen2.5-7b --collect-only -q"),
        ("judges.md", "rn-harness certify-judge SPEC"),
        ("suites.md", "pytest suites/fraud --collect-only -q"),
        ("running.md", "rn-harness store prune --unused-days 30"),
    ):
        assert (page, text) in found
    lines = [line for path in PAGES for line in path.read_text(encoding="utf-8").splitlines()]
    shown = [line for line in lines if re.match(r"(    +|\$ )?(pytest|rn-harness) [a-z-]", line) and " -> " not in line]
    assert len(shown) > 20
    assert len([c for c in ALL if c.words[0] in ("pytest", "rn-harness")]) >= len(shown)


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ("    docker run ours", "no test runs what page.md:1 shows: docker run ours"),
        ("    $ frobnicate", "no test runs what page.md:1 shows: frobnicate"),
        ("    rn-harness verifi run", "no command of rn-harness"),
        ("    rn-harness store lst", "no command of rn-harness"),
        ("`rn-harness --instal-completion`", "no option of rn-harness"),
        ("    rn-harness report reports/older", "reports/older"),
        ("    pip install 'rn-harness[cuda]'", "cuda"),
        ("    make everything", "everything"),
    ],
)  # fmt: skip
def test_an_invalid_command_is_found(desk: Desk, shown: str, why: str) -> None:
    """An unknown program, command, option, folder or extra fails."""
    (command,) = commands_of("page.md", shown)
    with pytest.raises((AssertionError, click.UsageError)) as told:
        understand(command, desk)
    assert why in str(told.value)


@pytest.mark.parametrize(("words", "why"), WRONG.items(), ids=WRONG)
def test_an_invalid_pytest_command_is_found(desk: Desk, words: str, why: str) -> None:
    """A wrong path, option, model, pair or key is a usage error in the same check."""
    code, said = desk.results[tuple(words.split())]
    assert code == pytest.ExitCode.USAGE_ERROR
    assert why in said
