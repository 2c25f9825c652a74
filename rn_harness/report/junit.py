"""JUnit as a view of the result of each selected test.

Written before the first case with an error "no verdict" for each, and again whenever a test ends, so that a kill at any time
leaves a valid file that is red. Valid against Jenkins' junit-10 schema: facts of the run are testsuite properties, numbers
of a case are in the failure text and ``<system-out>``.
"""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ET  # nosec B405 # written, never read
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rn_harness.records.base import TestState
from rn_harness.store.files import write_text

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of one test, its state in JUnit's words; ``output`` has the checkpoints' numbers."""

    __test__ = False

    nodeid: str
    state: TestState
    text: str = ""
    output: str = ""
    seconds: float = 0.0


def names_of(nodeid: str) -> tuple[str, str]:
    """(classname, name) as pytest's own JUnit writes them.

    Two tests share them where a class reads like a file (``a.py::B::test`` and ``a/B.py::test``).
    """
    path, _, inside = nodeid.partition("::")
    plain, bracket, parameters = inside.partition("[")  # first, since parameters may hold "::"
    *classes, function = plain.split("::")
    classname = path.removesuffix(".py").replace("/", ".")
    return ".".join([classname, *classes]), (function or path) + bracket + parameters


def xml_safe(text: str) -> str:
    """The text with a replacement for each character that XML 1.0 does not allow."""
    return _NOT_XML.sub("\ufffd", text)


def write_junit(path: Path, results: Sequence[TestResult], properties: Mapping[str, str], started: str, seconds: float) -> None:
    """Writes the file atomically, with a result for each selected test and the ``properties`` of the run.

    Tests that would share class name and name are named by their node id instead: GitLab keeps the first of two.
    """
    suite = ET.Element(
        "testsuite",
        name="rn-harness",
        tests=str(len(results)),
        failures=str(sum(r.state == "failure" for r in results)),
        errors=str(sum(r.state == "error" for r in results)),
        skipped=str(sum(r.state == "skipped" for r in results)),
        time=f"{seconds:.3f}",
        timestamp=started,
    )
    facts = ET.SubElement(suite, "properties")
    for name, value in properties.items():
        ET.SubElement(facts, "property", name=name, value=xml_safe(value))
    names = [(xml_safe(classname), xml_safe(name)) for classname, name in (names_of(r.nodeid) for r in results)]
    count = collections.Counter(names)
    for result, (classname, short) in zip(results, names, strict=True):
        # Escaped, since a replacement could make two node ids equal.
        name = short if count[classname, short] == 1 else result.nodeid.encode("unicode_escape").decode("ascii")
        case = ET.SubElement(suite, "testcase", classname=classname, name=name, time=f"{result.seconds:.3f}")
        if result.state != "passed":
            text = xml_safe(result.text)
            ET.SubElement(case, result.state, message=text.partition("\n")[0]).text = text
        if result.output:
            ET.SubElement(case, "system-out").text = xml_safe(result.output)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    write_text(path, "<?xml version='1.0' encoding='utf-8'?>\n" + ET.tostring(root, encoding="unicode") + "\n")
