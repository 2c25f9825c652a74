"""Strict reading of YAML files into models: each key once, plain numbers, errors with a line and the nearest key."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rn_harness.spec.errors import JudgeError, RnHarnessError, SuiteError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)
_PLACEHOLDER = re.compile(r"\b(?:TODO|TBD|FIXME)\b")
"""Words that mark an unwritten text."""
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


for _loader in (Loader, QuickLoader):  # YAML 1.1 reads ``5e-4`` as a string; read it as a number
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
NOT_CONVERTED = (ValueError, LookupError, AttributeError)
"""Errors of PyYAML for a scalar that looks or is tagged like a date, number or truth value, but is malformed."""
NOT_YAML = (yaml.YAMLError, RecursionError, *NOT_CONVERTED)
_READ_OTHERWISE = re.compile(r"[\t\ufeff]|(?<!\w)!|[|>][-+\d]*#")
"""Texts that libyaml and PyYAML read differently: tabs, byte order marks, tags, a comment behind a block's sign."""


def parse_yaml(text: str) -> Any:
    """The contents of a YAML text. PyYAML reads again a text that libyaml refuses, since its errors name place and fault."""
    if not _READ_OTHERWISE.search(text):
        with suppress(*NOT_YAML):
            return yaml.load(text, Loader=QuickLoader)  # noqa: S506  # nosec B506 # a SafeLoader
    return yaml.load(text, Loader=Loader)  # noqa: S506  # nosec B506 # a SafeLoader


def _read_text(path: Path, see: str) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SuiteError(f"{path}: a file is required, got a pipe, socket or device; see {see}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SuiteError(f"{path}: at most {MAX_FILE_BYTES} bytes, got size={path.stat().st_size}; split the set")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(f"{path}: this file is required and is missing; see {see}") from None
    except IsADirectoryError:
        raise SuiteError(f"{path}: a file is required, this is a folder; see {see}") from None
    except OSError as error:  # its folder is a file, or it may not be read
        raise SuiteError(f"{path}: must be a readable file, got: {error.strerror}; see {see}") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}: must be UTF-8, got byte={error.object[error.start]:#04x}; save it as UTF-8") from None


def read_yaml(path: Path, see: str = "docs/suites.md for what it holds", *, filled: bool = False) -> dict[str, Any]:
    """Reads the mapping in a YAML file, safely; ``see`` is the page that describes it; ``filled``: it holds no placeholder.

    Raises:
        SuiteError: missing, unreadable, too large, not UTF-8, not YAML, nested too deeply, an unsafe tag, a key twice, not a
            mapping, or a placeholder in a text.
    """
    return _mapping(path, _read_text(path, see), see, filled=filled)


def _mapping(path: Path, text: str, see: str, *, filled: bool) -> dict[str, Any]:
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SuiteError(f"{path}{place}: must be plain YAML, got: {problem}; correct that line") from None
    except NOT_CONVERTED as error:
        raise SuiteError(f"{path}: must be plain YAML, got: {error}; put the value in quotes") from None
    except RecursionError:
        raise SuiteError(f"{path}: must be plain YAML, got brackets nested too deeply to read; close them") from None
    if not isinstance(content, dict):
        raise SuiteError(f"{path}: must be a mapping, got {type(content).__name__}; see {see}")
    if filled and _PLACEHOLDER.search(text):
        for token in yaml.scan(text, Loader=Loader):  # a comment may hold one
            if isinstance(token, yaml.ScalarToken) and (found := _PLACEHOLDER.search(token.value)):
                place = f"{path}:{token.start_mark.line + 1}:{token.start_mark.column + 1}"
                raise SuiteError(f"{place}: every text must be written out, got a placeholder, {found[0]}; write the text")
    return content


Place = tuple[int | str, ...]


def validated(
    content: Any,
    model: type[M],
    source: str | Path,
    error: type[RnHarnessError] = SuiteError,
    place_of: Callable[[Place], Place] = lambda place: place,
) -> M:
    """The content of a file as a model; ``place_of`` maps a place in the model to its place in the file.

    Raises:
        RnHarnessError: of class ``error``: the content does not fit. Each fault has a line with source, place, value and remedy;
            our own rules bring the last two.
    """
    try:
        return model.model_validate(content)
    except ValidationError as refused:
        faults = refused.errors(include_url=False)
    root = _nodes(source)
    lines = []
    for fault in faults:
        in_file = place_of(fault["loc"])
        place = ".".join(str(part) for part in in_file) or "(top)"
        where = f"{source}:{_line(root, in_file)}: {place}" if root else f"{source}: {place}"
        if fault["type"] == "value_error":
            lines.append(f"{where}: {fault['ctx']['error']}")
            continue
        got = fault["input"]
        plain = fault["type"] != "missing" and isinstance(got, str | int | float | bool | None)
        shown = f", got {place.rsplit('.', 1)[-1]}={got!r}" if plain else ""
        lines.append(f"{where}: {fault['msg']}{shown}; {_remedy(fault, model)}")
    raise error("\n".join(lines))


def _remedy(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """How to mend a fault that pydantic found; a misspelled key gets the nearest key of its place."""
    place, got = fault["loc"], fault["input"]
    if fault["type"] == "missing":
        return "add it"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _known_keys(model, place[:-1]), n=1)
        return f"remove it or correct its spelling{f'; did you mean {near[0]}?' if near else ''}"
    if place[-1:] == ("version",) and fault["type"] == "literal_error" and isinstance(got, int) and got > 1:
        return "the file is of a newer form than this version of rn-harness reads: pip install --upgrade rn-harness"
    return "correct it"


def _known_keys(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that a model takes at a place; names of a mapping and numbers of a list are skipped."""
    models = [model]
    for part in place:
        found = [of.model_fields[part].annotation for of in models if part in of.model_fields]
        models = [inner for annotation in found for inner in _models_in(annotation)] or models
    return sorted({field.alias or name for of in models for name, field in of.model_fields.items()})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All models in an annotation, for instance those of ``dict[str, Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _nodes(source: str | Path) -> yaml.Node | None:
    """The syntax tree of a YAML file; None if the source is no such file."""
    try:
        return yaml.compose(Path(source).read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, *NOT_YAML):
        return None


def _line(node: yaml.Node, place: Place) -> int:
    """The line of a place; of the part that the file has, if it lacks the rest."""
    line = node.start_mark.line
    for part in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            pairs = [(node.value[part], node.value[part])]
        elif not (pairs := [pair for pair in pairs if pair[0].value == str(part)]):
            continue
        line, node = pairs[0][0].start_mark.line, pairs[0][1]
    return int(line) + 1


def read_declared(
    path: Path, model: type[M], see: str = "docs/judges.md", error: type[RnHarnessError] = JudgeError, *, filled: bool = False
) -> M:
    """Reads a YAML file into a frozen model; ``filled``: it must hold no placeholder.

    Raises:
        RnHarnessError: of class ``error``: the file cannot be read, or does not fit the model.
    """
    try:
        text = _read_text(path, see)
        found: M = _declared(path, text, model, see, error, filled=filled)  # type: ignore[arg-type]  # a class has a hash
    except SuiteError as unread:
        raise error(str(unread)) from None
    return found


@functools.lru_cache(maxsize=64)  # a session reads the prompts of a suite several times, and parsing takes nearly all of that
def _declared(path: Path, text: str, model: type[M], see: str, error: type[RnHarnessError], *, filled: bool) -> M:
    return validated(_mapping(path, text, see, filled=filled), model, path, error)
