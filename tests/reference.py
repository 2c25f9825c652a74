"""The pages of docs/reference, written from the code: ``make reference``. ``unit/test_docs.py`` compares them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo  # noqa: TC002 - pydantic reads annotations
from typer.main import get_command

from rn_harness.cli import app
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.options import declared_options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Declaration

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "`make reference` writes this page from the code."
SIGNS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}


def options() -> str:
    """The options of pytest, and those that the commands share with it."""
    lines = ["# Options", "", NOTE, "In brackets: the default.", "", "## Of pytest", ""]
    for _, option in declared_options():
        value = f" {option.metavar}" if option.metavar else ""
        spellings = ", ".join(f"`{flag}{value}`" for flag in (option.alias, option.flag) if flag)
        default = option.shown_default or (f"`{option.default}`" if option.default else "none" if option.metavar else "off")
        page = option.see.partition("#")[0]
        see = f": [{page or 'running.md'}](../{option.see if page else f'running.md{option.see}'})" if option.see else ""
        lines.append(f"* {spellings} ({default}): {option.help}{see}")
    lines += ["", "## Of the commands", "", "Commands drop the prefix `rn-`. `rn-harness run` takes both spellings.", ""]
    commands = commands_options()
    for _, option in declared_options():
        takers = sorted(command for command, flags in commands.items() if option.command_flag in flags)
        if takers:
            lines.append(f"* `{option.command_flag}`: {', '.join(f'`{command}`' for command in takers)}")
    return "\n".join(lines) + "\n"


def commands_options() -> dict[str, dict[str, str]]:
    """The options of each command of ``rn-harness`` with their helps."""
    top: Any = get_command(app)
    return {
        name: {flag: of.help or "" for of in c.params for flag in of.opts} for name, c in top.commands.items() if name != "store"
    }


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """The meaning of each field that the docstrings of a model and of its bases describe."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        block = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=    \S)", block):
            names, _, text = entry.strip().partition(": ")
            found |= {name: " ".join(text.split()) for name in names.split(", ")}
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def parent_of(model: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose fields a model takes over; None if all of its fields are its own."""
    base = model.__mro__[1]
    return base if issubclass(base, BaseModel) and base.model_fields else None


def below(*roots: type[BaseModel]) -> list[type[BaseModel]]:
    """The models and all that their fields name, each once, in order."""
    found = list(roots)
    for model in found:
        named = [inner for field in model.model_fields.values() for inner in models_in(field.annotation)]
        parent = parent_of(model)
        found += [of for of in dict.fromkeys([*([parent] if parent else []), *named]) if of not in found]
    return found


def default_of(field: FieldInfo) -> str:
    """A field's default as the file would have it."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "its own"
    many = field.default if isinstance(field.default, tuple | list) else []
    if many and values_of(field) == ", ".join(f"`{value}`" for value in many):
        return "all of them"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def values_of(field: FieldInfo) -> str:
    """The words or numbers that a field's type allows; empty if it takes anything of its type."""
    words = [
        word for part in (field.annotation, *get_args(field.annotation)) if get_origin(part) is Literal for word in get_args(part)
    ]
    bounds = {kind: getattr(m, kind.__name__.lower()) for m in field.metadata for kind in SIGNS if isinstance(m, kind)}
    if set(bounds) == {Ge, Le}:
        return f"{bounds[Ge]:g} to {bounds[Le]:g}"
    return ", ".join([*(f"`{word}`" for word in dict.fromkeys(words)), *(f"{SIGNS[kind]} {of:g}" for kind, of in bounds.items())])


def first_line(model: type[BaseModel]) -> str:
    """The first line of a model's docstring."""
    return as_code(inspect.cleandoc(model.__doc__ or "").partition("\n")[0])


def as_code(text: str) -> str:
    """Text with the code of docstrings as the code of pages."""
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def fields_of(model: type[BaseModel]) -> dict[str, tuple[FieldInfo, str]]:
    """A model's own fields, with their meanings and links to the models that they hold."""
    parent, told = parent_of(model), meanings(model)
    found = {}
    for name, field in model.model_fields.items():
        if parent is None or name not in parent.model_fields:
            inner = [f"[{of.__name__}](#{of.__name__.lower()})" for of in dict.fromkeys(models_in(field.annotation))]
            shown = field.alias or name
            found[shown] = (field, "; ".join(filter(None, [as_code(told.get(shown, "")).rstrip("."), *inner])))
    return found


def heading(model: type[BaseModel]) -> list[str]:
    """A model's heading and first line."""
    parent = parent_of(model)
    more = f" Also the fields of [{parent.__name__}](#{parent.__name__.lower()})." if parent else ""
    return ["", f"## {model.__name__}", "", f"{first_line(model)}{more}", ""]


def suite() -> str:
    """Every key of suite.yaml, of an attack's ``base`` and of a prompt; keys that differ in the name only share a line."""
    lines = ["# Keys of a suite", "", NOTE, "[suites.md](../suites.md) has an example. In brackets: the default; the values."]
    for model in below(Declaration, AttackRecipe, Prompt):
        lines += heading(model)
        told: dict[str, list[str]] = {}
        for name, (field, meaning) in fields_of(model).items():
            brackets = "; ".join(filter(None, [default_of(field), values_of(field)]))
            told.setdefault(f"({brackets}): {meaning}", []).append(f"`{name}`")
        lines += [f"* {', '.join(names)} {text}" for text, names in told.items()]
    return "\n".join(lines) + "\n"


def records() -> str:
    """Every field of a run's files; fields that share a meaning share a line."""
    lines = ["# Fields of the records", "", NOTE, "[reports.md](../reports.md) says how to read them."]
    recipes = below(Declaration, AttackRecipe, Prompt)
    for model in below(RunRecord, CaseRecord):
        if model not in recipes:
            told = {name: meaning for name, (_, meaning) in fields_of(model).items()}
            for name, of in model.model_computed_fields.items():
                told[name] = as_code(inspect.getdoc(of.wrapped_property) or "").partition("\n")[0].rstrip(".")
            lines += heading(model)
            for meaning in sorted(dict.fromkeys(told.values()), key=lambda text: not text):
                names = ", ".join(f"`{name}`" for name, text in told.items() if text == meaning)
                lines.append(f"* {names}: {meaning}" if meaning else f"* {names}")
    page = "\n".join(lines) + "\n"
    for model in recipes:
        page = page.replace(f"](#{model.__name__.lower()})", f"](suite.md#{model.__name__.lower()})")
    return page


PAGES = {"options.md": options, "suite.md": suite, "records.md": records}


def main() -> None:
    """Writes all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (FOLDER / name).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main()
