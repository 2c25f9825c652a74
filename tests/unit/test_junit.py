"""JUnit: valid for Jenkins whatever the texts contain, with names as pytest makes them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import xmlschema
from _pytest.junitxml import mangle_test_address

from rn_harness.report.junit import TestResult, names_of, write_junit, xml_safe

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit-10.xsd"))
STATES = ("passed", "failure", "error", "skipped")
FILE = "suites/biochem/test_biochem.py::TestBiochem"
ALL_STATES = [
    TestResult(f"{FILE}::test_case[{state}]", state, "" if state == "passed" else f"why {state}\nmore", f"step 0 {state}", 1.25)
    for state in STATES
]


def written(folder: Path, results: Sequence[TestResult], **properties: str) -> ET.Element:
    """The only testsuite of the file for these results, checked with the schema."""
    path = folder / "junit.xml"
    write_junit(path, results, properties, "2026-01-02T03:04:05+00:00", 12.3456)
    SCHEMA.validate(path)
    root = ET.parse(path).getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    return suite


def test_schema_can_refuse(tmp_path: Path) -> None:
    """The schema of these tests refuses the same files as Jenkins, for example a testcase with properties or without a name."""
    written(tmp_path, ALL_STATES)
    text = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    for old, new in (
        ("<system-out>step 0 passed", "<properties /><system-out>step 0 passed"),
        ('name="test_case[passed]" ', ""),
        ('time="12.346"', 'time="12.34567"'),
        ('failures="1"', ""),
    ):
        assert SCHEMA.is_valid(text)
        assert old in text
        assert not SCHEMA.is_valid(text.replace(old, new, 1)), new


def test_all_states(tmp_path: Path) -> None:
    """Each state is written as its own element with first line and whole text, and is counted."""
    suite = written(tmp_path, ALL_STATES)
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert (suite.get("time"), suite.get("timestamp")) == ("12.346", "2026-01-02T03:04:05+00:00")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [f"test_case[{state}]" for state in STATES]
    assert [[child.tag for child in case] for case in cases] == [
        ["system-out"], ["failure", "system-out"], ["error", "system-out"], ["skipped", "system-out"],
    ]  # fmt: skip
    assert [(case[0].get("message"), case[0].text) for case in cases[1:]] == [
        (f"why {state}", f"why {state}\nmore") for state in STATES[1:]
    ]
    assert [case.findtext("system-out") for case in cases] == [f"step 0 {state}" for state in STATES]
    assert {case.get("time") for case in cases} == {"1.250"}


def test_no_tests(tmp_path: Path) -> None:
    """A run without tests is a valid file with a count of 0."""
    suite = written(tmp_path, [])
    assert (suite.get("tests"), suite.findall("testcase")) == ("0", [])


def test_properties_are_of_the_testsuite(tmp_path: Path) -> None:
    """Facts of the run are testsuite properties with unchanged values."""
    facts = {"rn_harness.candidate": 'a <b> & "c"', "rn_harness.judge": ""}
    suite = written(tmp_path, ALL_STATES, **facts)
    assert {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")} == facts


def test_output_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    """A test without numbers has no ``<system-out>``."""
    (case,) = written(tmp_path, [TestResult("test_a.py::test_b", "passed")]).findall("testcase")
    assert list(case) == []


ANY_TEXT = st.text(st.characters())  # surrogates too
CONTROL = "".join(chr(i) for i in range(0x20)) + "\x7f\x80\x9f\ufffe\uffff\ud800\udfff\x1b[31m<&>]]>\"'"


@pytest.mark.parametrize("state", STATES)
def test_control_characters(tmp_path: Path, state: str) -> None:
    """Characters that XML cannot hold are replaced in every place, and all others are kept."""
    nodeid = f"test_a.py::test_b[x{CONTROL}]"
    result = TestResult(nodeid, state, f"x001 {CONTROL} x002", CONTROL + "x003")
    (case,) = written(tmp_path, [result], fact=CONTROL).findall("testcase")
    # XML parsers read a carriage return as a line feed.
    kept = xml_safe(CONTROL).replace("\r\n", "\n").replace("\r", "\n")
    assert case.findtext("system-out") == kept + "x003"
    assert case.get("name").startswith("test_b[x")
    if state != "passed":
        assert case[0].text == f"x001 {kept} x002"


def test_clean_keeps_what_xml_holds() -> None:
    """Tabs, line ends and letters of all planes stay; control characters, surrogates and non-characters are replaced."""
    assert xml_safe("a\tb\nc\rd \u00e9 \ud7ff \ue000 \ufffd \U0001f600 \U0010ffff") == (
        "a\tb\nc\rd \u00e9 \ud7ff \ue000 \ufffd \U0001f600 \U0010ffff"
    )
    refused = ("\x00", "\x08", "\x0b", "\x1f", "\ud800", "\udfff", "\ufffe", "\uffff")
    assert [xml_safe(f"a{c}b") for c in refused] == ["a\ufffdb"] * 8


def test_very_long_text(tmp_path: Path) -> None:
    """A text of a megabyte is kept whole and valid, and the file stays below GitLab's limit of 30 MB."""
    text = "first line\n" + "step 10: x001\n" * 80_000
    (case,) = written(tmp_path, [TestResult("t.py::t", "failure", text, text)]).findall("testcase")
    assert case[0].text == text
    assert case[0].get("message") == "first line"
    assert (tmp_path / "junit.xml").stat().st_size < 30_000_000


@hypothesis.given(ANY_TEXT, ANY_TEXT, ANY_TEXT, st.sampled_from(STATES))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_text_is_valid(tmp_path: Path, text: str, output: str, fact: str, state: str) -> None:
    """The file is well-formed and valid for any texts, outputs and facts."""
    (case,) = written(tmp_path, [TestResult("t.py::t", state, text, output)], fact=fact).findall("testcase")
    assert [child.tag for child in case if child.tag != "system-out"] == ([] if state == "passed" else [state])


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("suites/biochem/test_biochem.py::TestBiochem::test_a", ("suites.biochem.test_biochem.TestBiochem", "test_a")),
        ("test_a.py::test_b", ("test_a", "test_b")),
        ("a/test_b.py::C::D::test_e[x-1]", ("a.test_b.C.D", "test_e[x-1]")),
        ("a/test_b.py::test_c[x.py/y]", ("a.test_b", "test_c[x.py/y]")),
        ("a/test_b.py::test_c[x[0]]", ("a.test_b", "test_c[x[0]]")),
        ("a/test_b.py::test_c[x::y]", ("a.test_b", "test_c[x::y]")),
        ("a.b/test_c.py::test_d", ("a.b.test_c", "test_d")),
    ],
)
def test_names_by_hand(nodeid: str, expected: tuple[str, str]) -> None:
    """A node id becomes the class name and name that JUnit readers expect."""
    assert names_of(nodeid) == expected


NAMES = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
NODEIDS = st.builds(
    lambda folders, file, classes, function, parameters: (
        "::".join(["/".join([*folders, f"test_{file}.py"]), *classes, f"test_{function}"])
        + (f"[{parameters}]" if parameters else "")
    ),
    st.lists(NAMES, max_size=2),
    NAMES,
    st.lists(NAMES.map(str.title), max_size=2),
    NAMES,
    st.text("ab-.:/[]", max_size=8),
)


@hypothesis.given(NODEIDS)
def test_names_are_pytests_own(nodeid: str) -> None:
    """Class name and name are those that pytest's own JUnit gives the test."""
    *classname, name = mangle_test_address(nodeid)
    assert names_of(nodeid) == (".".join(classname), name)


@hypothesis.given(st.sets(NODEIDS, min_size=2, max_size=6))
def test_names_are_unique(nodeids: set[str]) -> None:
    """Different tests have different names, because GitLab keeps only the first of two equal ones."""
    assert len({names_of(nodeid) for nodeid in nodeids}) == len(nodeids)


def test_equal_names_become_node_ids(tmp_path: Path) -> None:
    """Tests whose names would be equal are named by their escaped node ids; other names do not change."""
    nodeids = ["a.py::B::test", "a/B.py::test", "t.py::t[\x01]", "t.py::t[\x02]", "t.py::u"]
    cases = written(tmp_path, [TestResult(nodeid, "passed") for nodeid in nodeids]).findall("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("a.B", "a.py::B::test"), ("a.B", "a/B.py::test"), ("t", r"t.py::t[\x01]"), ("t", r"t.py::t[\x02]"), ("t", "u"),
    ]  # fmt: skip
