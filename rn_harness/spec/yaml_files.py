"""Strict reading of YAML files: each key once, plain numbers, errors with a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rn_harness.spec.errors import SuiteError

if TYPE_CHECKING:
    from pydantic import ValidationError

PLACEHOLDERS = ("TODO", "TBD", "FIXME")
"""Words that mark an unwritten text. A declaration that holds one is refused."""
MAX_FILE_BYTES = 4_000_000


class _Constructor(yaml.constructor.SafeConstructor):
    """Safe YAML that refuses duplicate keys; PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # PyYAML refuses it below
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands there twice; keep one", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class Loader(_Constructor, yaml.SafeLoader):
    """Reads with PyYAML."""


class QuickLoader(_Constructor, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads with libyaml, which takes a seventh of the time; with PyYAML if that was built without libyaml."""


NOT_CONVERTED = (ValueError, LookupError, AttributeError)
"""Errors of PyYAML for a scalar that looks or is tagged like a date, number or truth value, but is malformed."""


_READ_OTHERWISE = re.compile(r"[\t\ufeff]|(?<!\w)!|[|>][-+\d]*#")
"""Texts that libyaml and PyYAML read differently: tabs, byte order marks, tags, a comment behind a block's sign."""


def parse_yaml(text: str) -> Any:
    """The contents of a YAML text. PyYAML reads again a text that libyaml refuses, since its errors name place and fault."""
    if not _READ_OTHERWISE.search(text):
        with suppress(yaml.YAMLError, RecursionError, *NOT_CONVERTED):
            return yaml.load(text, Loader=QuickLoader)  # noqa: S506  # nosec B506 # a SafeLoader
    return yaml.load(text, Loader=Loader)  # noqa: S506  # nosec B506 # a SafeLoader


def read_yaml(path: Path) -> Any:
    """Reads one YAML file, safely.

    Raises:
        SuiteError: missing, unreadable, too large, not UTF-8, not YAML, nested too deeply, an unsafe tag, or a key twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SuiteError(f"{path}: a file is required, got a pipe, socket or device; see docs/suites.md for the layout")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SuiteError(f"{path}: at most {MAX_FILE_BYTES} bytes, got size={path.stat().st_size}; split the set")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(f"{path}: this file is required and is missing; see docs/suites.md for what it holds") from None
    except IsADirectoryError:
        raise SuiteError(f"{path}: a file is required, this is a folder; see docs/suites.md for what it holds") from None
    except OSError as error:  # its folder is a file, or it may not be read
        raise SuiteError(f"{path}: must be a readable file, got: {error.strerror}; see docs/suites.md for the layout") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}: must be UTF-8, got byte={error.object[error.start]:#04x}; save it as UTF-8") from None
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SuiteError(f"{path}{place}: must be plain YAML, got: {problem}; correct that line") from None
    except NOT_CONVERTED as error:
        raise SuiteError(f"{path}: must be plain YAML, got: {error}; put the value in quotes") from None
    except RecursionError:
        raise SuiteError(f"{path}: must be plain YAML, got brackets nested too deeply to read; close them") from None


def read_filled(path: Path) -> Any:
    """Reads one YAML file that holds no placeholder.

    Raises:
        SuiteError: it cannot be read (``read_yaml``), or holds a placeholder.
    """
    content = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    if not _PLACEHOLDER.search(text):
        return content
    for node in _scalars(yaml.compose(text, Loader=Loader)):  # a comment may say it
        found = _PLACEHOLDER.search(node.value)
        if found:
            place = f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
            raise SuiteError(f"{place}: every text must be written out, got a placeholder, {found[0]}; write the text")
    return content


_PLACEHOLDER = re.compile(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b")


def _scalars(root: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The plain values of a YAML file, keys included, each once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias may lead back
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]


Place = tuple[int | str, ...]


def findings(source: str | Path, error: ValidationError, place_of: Callable[[Place], Place] = lambda place: place) -> list[str]:
    """The faults that pydantic found, one line each: source, place, value, remedy. Our own rules bring the last two.

    Args:
        source: the file, and the options that changed it.
        error: pydantic's.
        place_of: maps a place in the validated object to its place in the file.
    """
    remedies = {"extra_forbidden": "remove it or correct its spelling", "missing": "add it"}
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in place_of(item["loc"])) or "(top)"
        if item["type"] == "value_error":
            lines.append(f"{source}: {place}: {item['ctx']['error']}")
            continue
        got = item["input"]
        plain = item["type"] != "missing" and isinstance(got, str | int | float | bool | None)
        shown = f", got {place.rsplit('.', 1)[-1]}={got!r}" if plain else ""
        lines.append(f"{source}: {place}: {item['msg']}{shown}; {remedies.get(item['type'], 'correct it')}")
    return lines


def explain(source: str, error: ValidationError, place_of: Callable[[Place], Place] = lambda place: place) -> SuiteError:
    """The faults that pydantic found, as an error of the suite."""
    return SuiteError("\n".join(findings(source, error, place_of)))
