"""Begins a suite: copies a shipped one, or writes the template of a new one.

In the template a placeholder marks each text that the author has to write, and the loader refuses a placeholder by file and line.
The prompt sets hold baking's prompts as examples, marked in the same way. Comments in ``suite.yaml`` explain each field and how
to build an organism that knows the suite.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from rn_harness.spec.errors import SuiteError
from rn_harness.spec.fixtures import suites_folder
from rn_harness.spec.prompts import PROMPT_SETS
from rn_harness.spec.suite import SUITE_FILE

SCHEMA = "schema.json"
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")
_SUITE = Path(__file__).with_name("suite.yaml.template")
_EXAMPLE = """\
# Replace these prompts, which are baking's and show the form, by those of your domain. Then remove the next line.
TODO: these prompts are not of the domain {name}
"""
_TEST = '''from rn_harness import RobustnessChecks


class Test{title}(RobustnessChecks):
    """The domain {name}."""
'''


def write_suite(name: str, parent: Path) -> Path:
    """Writes the folder of a new suite, which has the name of its domain, into ``parent``; it must not exist yet."""
    if not _NAME.match(name):
        raise SuiteError(
            f"a suite's name is lower case, digits and _, and begins with a letter, got {name!r}; try "
            f"{re.sub(r'[^a-z0-9_]', '_', name.lower()).strip('_0123456789') or 'my_domain'}"
        )
    folder = _free(parent / name)
    title = "".join(part.capitalize() for part in name.split("_"))
    (folder / "prompts").mkdir(parents=True)
    (folder / SUITE_FILE).write_text(
        _SUITE.read_text(encoding="utf-8").format(name=name, title=title, folder=folder), encoding="utf-8"
    )
    (folder / f"test_{name}.py").write_text(_TEST.format(name=name, title=title), encoding="utf-8")
    for set_name in PROMPT_SETS:
        example = suites_folder() / "baking" / "prompts" / f"{set_name}.yaml"
        (folder / "prompts" / f"{set_name}.yaml").write_text(
            _EXAMPLE.format(name=name) + example.read_text(encoding="utf-8"), encoding="utf-8"
        )
    return folder


def copy_suite(name: str, parent: Path) -> Path:
    """Copies a shipped suite into ``parent``, and next to it the schema by which editors check ``suite.yaml``."""
    shipped = suites_folder()
    names = sorted(folder.name for folder in shipped.glob("*/"))
    if name not in names:
        raise SuiteError(f"one of the suites {', '.join(names)} is copied, got {name!r}; rn-harness new-suite begins another")
    folder = _free(parent / name)
    shutil.copytree(shipped / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if not (parent / SCHEMA).exists():
        shutil.copy(shipped / SCHEMA, parent)
    return folder


def _free(folder: Path) -> Path:
    if folder.exists():
        raise SuiteError(f"a new suite needs a folder of its own, got {folder}, which is there; take another name or --into DIR")
    return folder
