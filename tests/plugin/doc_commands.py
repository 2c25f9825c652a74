"""The commands and blocks that the pages show, and the local files for the names in them; see ``test_doc_commands.py``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if p.name != "smollm2-baking.md")])
"""All pages, except the diary of one experiment, whose folders are not here."""
RUN_WHOLE = "tutorial.md"
"""The page whose commands ``test_wheel.py`` types into a shell, one after the other."""

OURS = ("pytest", "rn-harness", "python", "accelerate", "make", "pip")
"""Programs whose commands are all checked, see ``test_doc_commands.py``."""
SHELL = ("cp", "mv", "openssl")
"""Programs that are run unchanged, in a workspace."""
LEFT = {
    "hf auth login": "the hub's own command, which asks for a token",
    "rn-harness certify-judge python:our_package.judges:KeywordJudge": "run in test_people.py, with the page's judge",
    "rn-harness new-suite gambling": "run in test_people.py, and written there until it loads",
    "rn-harness init baking": "run in test_wheel.py",
    "pytest suites/baking --model made/smollm2-baking.yaml --rn-prompts sets --rn-tier smoke --rn-level rl-plain "
    "--rn-defense deep --rn-reward-judge rules:suites/baking/rules.yaml --rn-run run --rn-export released --rn-export-anyway": (
        "run by hand for the page, since its model takes half an hour to make"
    ),
    "bash slurm.sh suites/biochem /shared/runs/candidate-7": "run in test_examples.py with a scheduler that is none",
}
"""Commands that are not run, with the reason."""
FOREIGN = (
    "apt", "apt-get", "bash", "brew", "cat", "cd", "chmod", "conda", "cosign", "curl", "docker", "export", "git", "hf", "jq",
    "kill", "ls", "mkdir", "nox", "npm", "podman", "python3", "rm", "sed", "sh", "source", "sudo", "torchrun", "tox", "uv", "uvx",
    "wget",
)  # fmt: skip
"""Further programs that mark a line as a command; no test runs it, so it must be declared first."""
STANDS_FOR = {
    "classifier:FOLDER#LABEL": "classifier:our-classifier#complying",
    "FOLDER/calibration.json": "our-classifier/calibration.json",
    "SPEC": "rules:suites/baking/rules.yaml",
    "RUN": "run",
    "CASE": "candidate",
    "NAME": "poisons",
    "SUITE": "suites/biochem",
    "suites/DOMAIN": "suites/biochem",
    "FOLDER": "ours/released",
}
"""The local value of each name in capitals."""
ON_THE_HUB = {"qwen2.5-7b": "a profile", "owner/name@v1.2": "an id", "./our-model.gguf": "a file that is not made here"}
"""Candidates that are not on this machine: their commands are only collected, without looking for the model."""


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: name of the page's file.
        line: line in that file, from 1.
        words: the command as the shell would split it, without leading variable assignments.
    """

    page: str
    line: int
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as a user types it."""
        return shlex.join(self.words)

    @property
    def here(self) -> list[str]:
        """The command's words, with the reader's names replaced by local ones."""
        return [_stands_for(word) for word in self.words]


def _stands_for(word: str) -> str:
    for name, value in STANDS_FOR.items():
        word = re.sub(rf"(?<![\w/#:.-]){re.escape(name)}(?![\w/#:.-])", value, word)
    return word


def block_of(page: str, language: str, beginning: str) -> str:
    """The only block of a page in this language that begins with this text."""
    blocks: list[str] = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (found,) = [block for block in blocks if block.startswith(beginning)]
    return found


def commands_of(page: str, text: str) -> Iterator[Command]:
    """Each command of a page: in code blocks, fenced or indented, with or without a prompt, and in `spans of code`."""
    fence: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*```(\w*)", line):
            fence = None if fence is not None else found[1]
        elif fence in ("", "sh", "bash", "console", "shell") or (fence is None and line.startswith("    ")):
            for words in _commands(line.strip()):
                yield Command(page, number, words)
        elif fence is None:
            for span in re.findall(r"`([^`]+)`", line):
                words = _split(span.replace("\\|", "|"))
                if len(words) > 1 and words[0] in (*OURS, *SHELL, *FOREIGN):
                    yield Command(page, number, words)


def _commands(line: str) -> Iterator[tuple[str, ...]]:
    prompt = line.startswith("$ ")
    for part in line.removeprefix("$ ").split(" && "):
        words = _split(part)
        if words and (prompt or words[0] in (*OURS, *SHELL, *FOREIGN)):
            yield words


def _split(text: str) -> tuple[str, ...]:
    """Words of a command without its comment; optional parts in brackets are included."""
    text = re.sub(r"(?<=\s)\[(--[^\]]+|[A-Z]+)\]", r"\1", re.sub(r"\s+#\s.*$", "", text))
    try:
        words = shlex.split(text)
    except ValueError:  # text with an apostrophe that is not a command
        words = text.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return tuple(words)


ALL = [
    command for path in PAGES if path.name != RUN_WHOLE for command in commands_of(path.name, path.read_text(encoding="utf-8"))
]
