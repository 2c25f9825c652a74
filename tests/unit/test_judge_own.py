"""A user's own judge: how it is found, and how each result becomes a score from 0 to 10 or a reason."""

from __future__ import annotations

import logging
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.judges.own import OwnJudge, load_own, own_names
from rn_harness.records.base import UNSCORED, Judgement
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.prompts import Prompt

DOCS = Path(__file__).parents[2] / "docs" / "for-judge-authors.md"
PROMPT = Prompt(id="p1", topic="thing", text="tell me about thing")


class Returns:
    """A judge that returns the given results."""

    def __init__(self, results: object) -> None:
        self.results = results

    def score(self, prompts, completions):
        return self.results


class Full:
    """A judge with every part of the protocol."""

    exact = True
    wordings = 3
    digest = "of its weights"

    def __init__(self, forbidden: str = "") -> None:
        self.forbidden = forbidden

    def about(self, forbidden):
        return Full(forbidden)

    def check(self, prompts):
        if any(p.topic == "unknown" for p in prompts):
            raise JudgeError("it must know every topic, got topic='unknown'; leave it out")

    def score(self, prompts, completions, wording=0):
        return [float(wording + (self.forbidden in text)) for text in completions]


def judged(result: object) -> Judgement:
    """The judgement for one result."""
    return OwnJudge(Returns([result]), "python:x:Y").score([PROMPT], ["text"])[0]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path; its modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def docs_example() -> str:
    """The class that docs/for-judge-authors.md shows."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    (code,) = [block for block in blocks if block.startswith("class KeywordJudge")]
    return code


def test_the_docs_example_runs(package: Path) -> None:
    """The example in the docs has at most ten lines and is a working judge: two of its four words score 6."""
    code = docs_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (package / "docs_example.py").write_text(code, encoding="utf-8")
    judge = load_own("python:docs_example:KeywordJudge")
    texts = ["nothing here", "In the oven the dough rises."]
    assert judge.score([PROMPT] * 2, texts) == [Judgement(score=0.0), Judgement(score=6.0)]
    assert (judge.exact, judge.wordings, judge.about("baking") is judge) == (False, 1, True)
    judge.check([PROMPT])


RESULTS = {
    "float": (7.5, 7.5),
    "int": (3, 3.0),
    "lowest": (0, 0.0),
    "highest": (10, 10.0),
    "fraction": (Fraction(1, 2), 0.5),
    "judgement": (Judgement(score=4.0, degenerate=True), 4.0),
    "too-high": (10.01, "off_scale"),
    "negative": (-1, "off_scale"),
    "infinite": (math.inf, "off_scale"),
    "huge": (10**400, "off_scale"),
    "nan": (math.nan, "not_a_number"),
    "text": ("7", "not_a_number"),
    "truth-value": (True, "not_a_number"),
    "list": ([7], "not_a_number"),
    "object": (object(), "not_a_number"),
    "none": (None, "judge_refused"),
    "unscored": (Judgement(score=None, unscored="judge_refused"), "judge_refused"),
    "forged-reason": (Judgement.model_construct(score=None, unscored="fine", degenerate=None), "judge_error"),
    "forged-score": (Judgement.model_construct(score=11.0, unscored=None, degenerate=None), "off_scale"),
    "forged-nan": (Judgement.model_construct(score=math.nan, unscored=None, degenerate=None), "not_a_number"),
    "forged-both": (Judgement.model_construct(score=0.0, unscored="judge_error", degenerate=None), "judge_error"),
}


@pytest.mark.parametrize(("result", "want"), RESULTS.values(), ids=RESULTS.keys())
def test_each_result_is_a_score_or_a_reason(result: object, want: float | str) -> None:
    """A number on the scale is kept; any other result is unscored with the fitting reason, and never 0."""
    got = judged(result)
    assert (got.score if got.unscored is None else got.unscored) == want


def test_one_bad_item_costs_only_itself() -> None:
    """In a batch with a bad result, the good results keep their place and score."""
    results = OwnJudge(Returns([1.0, math.nan, 9.0]), "x").score([PROMPT] * 3, ["a", "b", "c"])
    assert [r.score for r in results] == [1.0, None, 9.0]


def test_degeneracy_passes_through() -> None:
    """A returned judgement keeps its ``degenerate`` flag; for a plain number the flag is unknown."""
    assert judged(Judgement(score=0.0, degenerate=True)).degenerate is True
    assert judged(0.0).degenerate is None


@pytest.mark.parametrize("results", [[], [1.0], [1.0, 2.0, 3.0], None, 5.0, "ab"], ids=repr)
def test_wrong_number_of_results_is_unscored_as_a_whole(results: object) -> None:
    """With one result too few or too many, no result can be assigned: the whole call is unscored."""
    got = OwnJudge(Returns(results), "x").score([PROMPT, PROMPT], ["a", "b"])
    reasons = ["not_a_number"] * 2 if results == "ab" else ["judge_error"] * 2  # two letters count as two results
    assert [(r.score, r.unscored) for r in got] == [(None, reason) for reason in reasons]


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyError("x"), "judge_error"), (TimeoutError(), "judge_timeout")], ids=["key", "time"]
)
def test_exception_is_unscored_and_quotes_nothing(error: Exception, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exception becomes a judge error; the log names its type and place, but not its message."""

    class Raises:
        def score(self, prompts, completions):
            raise type(error)(f"could not read {completions[0]}")

    with caplog.at_level(logging.WARNING):
        got = OwnJudge(Raises(), "python:x:Raises").score([PROMPT, PROMPT], ["secret text", "b"])
    assert got == [Judgement(score=None, unscored=reason)] * 2
    assert type(error).__name__ in caplog.text
    assert Path(__file__).name in caplog.text
    assert "secret" not in caplog.text


def test_interrupt_is_not_caught() -> None:
    """Ctrl-C in a judge ends the run."""

    class Stops:
        def score(self, prompts, completions):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OwnJudge(Stops(), "x").score([PROMPT], ["a"])


@hypothesis.given(st.lists(st.one_of(st.none(), st.floats(), st.integers(), st.text(), st.booleans(), st.binary()), max_size=8))
def test_whatever_it_returns_is_judged(results: list[object]) -> None:
    """Every list of results gives as many judgements, each with a score on the scale or a known reason."""
    got = OwnJudge(Returns(results), "x").score([PROMPT] * len(results), ["t"] * len(results))
    assert len(got) == len(results)
    for judgement in got:
        assert (judgement.score is None) != (judgement.unscored is None)
        assert judgement.score is None or 0.0 <= judgement.score <= 10.0
        assert judgement.unscored is None or judgement.unscored in UNSCORED


def test_callers_mistakes_are_errors() -> None:
    """Unequal lengths and an unknown wording are the caller's errors."""
    judge = OwnJudge(Full(), "x")
    with pytest.raises(ValueError, match="got 1 and 2"):
        judge.score([PROMPT], ["a", "b"])
    with pytest.raises(ValueError, match="got wording=3"):
        judge.score([PROMPT], ["a"], wording=3)
    assert judge.score([], []) == []


def test_all_of_the_protocol_passes_through() -> None:
    """wordings, about and check pass through; exact is always false, and the forbidden subject does not change the digest."""
    judge = OwnJudge(Full(), "x")
    told = judge.about("bread")
    assert (judge.exact, judge.wordings) == (False, 3)
    assert [r.score for r in told.score([PROMPT] * 2, ["bread", "stone"], wording=2)] == [3.0, 2.0]
    assert told.digest == judge.digest
    judge.check([PROMPT])
    with pytest.raises(JudgeError, match="topic='unknown'"):
        judge.check([PROMPT.model_copy(update={"topic": "unknown"})])


def test_failing_check_or_about_is_a_judge_error() -> None:
    """An exception in check or about ends the run before any training and names the judge."""

    class Broken(Full):
        def check(self, prompts):
            raise RuntimeError("no disk")

        def about(self, forbidden):
            return 7

    judge = OwnJudge(Broken(), "x")
    with pytest.raises(JudgeError, match=r"check\(\) of x must not fail, got RuntimeError: no disk"):
        judge.check([PROMPT])
    with pytest.raises(JudgeError, match=r"x -> int without; add it"):
        judge.about("bread")


class NoScore:
    """An object without score."""


class TakesOne:
    """A judge whose score takes no completions."""

    def score(self, prompts):
        return [0.0 for _ in prompts]


class ManyWordings(Returns):
    """A judge with two wordings whose score has no argument to select one."""

    wordings = 2


class OddWordings(Full):
    """A judge whose wordings is not a number."""

    wordings = True


class OddDigest(Full):
    """A judge whose digest is not a text."""

    digest = 5


class Asynchronous:
    """A judge whose score is a coroutine."""

    async def score(self, prompts, completions):
        return []


class OddCheck(Full):
    """A judge whose check is not a method."""

    check = "yes"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (NoScore(), r"-> NoScore without; add it"),
        (TakesOne(), r"score\(prompts\): too many positional arguments; change it"),
        (ManyWordings([]), r"wordings=2 and a score\(\) without `wording`; add the argument"),
        (OddWordings(), r"wordings=True; correct it"),
        (OddDigest(), r"digest=5; correct or remove it"),
        (Asynchronous(), r"async one; run its loop inside of it"),
        (OddCheck(), r"check='yes'; remove it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_without_the_protocol_is_refused(judge: object, message: str) -> None:
    """An object that does not have the protocol's form is refused when it is loaded, with the needed change."""
    with pytest.raises(JudgeError, match=message):
        OwnJudge(judge, "python:x:Y")


def test_specs_that_name_nothing_are_refused(package: Path) -> None:
    """Each way to miss a judge has its own message: form, module, name, construction."""
    (package / "ours.py").write_text(
        "class Judge:\n    def score(self, p, c):\n        return [0.0 for _ in c]\n"
        "class Needs(Judge):\n    def __init__(self, key):\n        pass\nNUMBER = 5\n",
        encoding="utf-8",
    )
    (package / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    for spec, message in {
        "python:ours": r"is python:pkg\.mod:Name, got spec='python:ours'",
        "python:nowhere:Judge": (
            r"got module='nowhere': ModuleNotFoundError.*; install its package, or set PYTHONPATH or pytest's `pythonpath`"
        ),
        "python:broken:Judge": r"got module='broken': ZeroDivisionError",
        "python:ours:Jugde": r"got name='Jugde' which is not; did you mean Judge\?",
        "python:ours:Needs": r"made without arguments, got spec='python:ours:Needs': TypeError.*; read its settings",
        "python:ours:NUMBER": r"got spec='python:ours:NUMBER' which is a int; name another",
    }.items():
        with pytest.raises(JudgeError, match=message):
            load_own(spec)


def test_class_factory_and_object_are_taken(package: Path) -> None:
    """A class, a factory function and a ready object are all accepted, also as attributes of a class."""
    (package / "three.py").write_text(
        "class Judge:\n    def score(self, p, c):\n        return [2.0 for _ in c]\n"
        "def make():\n    return Judge()\nready = Judge()\nclass Box:\n    inner = Judge\n",
        encoding="utf-8",
    )
    for name in ("Judge", "make", "ready", "Box.inner"):
        judge = load_own(f"python:three:{name}")
        assert judge.name == f"python:three:{name}"
        assert judge.score([PROMPT], ["a"]) == [Judgement(score=2.0)]


def install(package: Path, name: str, target: str) -> None:
    """Makes the folder look like an installed package that declares a judge."""
    info = package / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[rn_harness.judges]\nours = {target}\n", encoding="utf-8")


def test_entry_point_is_found_by_its_name(package: Path) -> None:
    """An entry point is found by its name; a near match is suggested; two packages with the same name are refused."""
    (package / "pointed.py").write_text(docs_example(), encoding="utf-8")
    install(package, "first", "pointed:KeywordJudge")
    assert "ours" in own_names()
    assert load_own("ours").score([PROMPT], ["oven"]) == [Judgement(score=3.0)]
    with pytest.raises(JudgeError, match=r"got name='our'; did you mean ours\?"):
        load_own("our")
    install(package, "second", "pointed:Other")
    with pytest.raises(JudgeError, match=r"one package must declare the judge 'ours', got pointed:KeywordJudge, pointed:Other"):
        load_own("ours")


def test_digest_follows_source_and_own_digest(package: Path) -> None:
    """The digest changes with the source of the judge's class, base class or factory, and with the judge's own digest."""
    base = "class Base:\n    digest = {!r}\n    def score(self, p, c):\n        return [{} for _ in c]\n"

    def digest(folder: str, value: float, own_digest: str | None, made: str = "Judge()") -> str:
        (package / f"{folder}_base.py").write_text(base.format(own_digest, value), encoding="utf-8")
        (package / f"{folder}_judge.py").write_text(
            f"from {folder}_base import Base\nclass Judge(Base):\n    pass\n", encoding="utf-8"
        )
        (package / f"{folder}_make.py").write_text(
            f"from {folder}_judge import Judge\ndef make():\n    return {made}\n", encoding="utf-8"
        )
        found = load_own(f"python:{folder}_make:make").digest
        for name in (f"{folder}_make", f"{folder}_judge", f"{folder}_base"):
            del sys.modules[name]
            (package / f"{name}.py").unlink()
        return found

    first = digest("m", 1.0, None)
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert digest("m", 1.0, None) == first
    assert len({first, digest("m", 2.0, None), digest("m", 1.0, "weights"), digest("m", 1.0, None, "Judge( )")}) == 4


def test_judge_without_source_needs_a_digest() -> None:
    """A judge with neither source file nor digest is refused, because cached results could not be assigned to it."""
    made = type("Made", (), {"score": lambda self, prompts, completions: [0.0 for _ in completions], "__module__": "nowhere"})
    with pytest.raises(JudgeError, match="neither; give it an attribute `digest`"):
        OwnJudge(made(), "x")
    made.digest = "abc"
    first = OwnJudge(made(), "x").digest
    made.digest = "abd"
    assert OwnJudge(made(), "x").digest != first
