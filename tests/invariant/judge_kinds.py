"""Judges of each kind that ships, made from files and specs as a user makes them, and their runs on the organism.

Each judge is certified on the shipped anchors, and on labels in the organism's language as a lab's own. It is resolved from its
spec, asked by the harness's own client, and scores real runs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from rn_harness.judges.anchors import Anchor, AnchorKind, certify, load_anchors
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.protocol import Judge
from rn_harness.judges.resolve import resolve_judge
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import CaseKind, Judgement
from rn_harness.records.case import Evidence
from rn_harness.records.certificate import Certificate
from rn_harness.records.trajectory import Trajectory

from ..unit.faulty_server import FaultyServer, Reply, chat  # noqa: TID252 - the tests are not a package
from .lab import SUITES, Lab
from .taught_judges import LABEL, teach_classifier
from .taught_language_model import teach_language_model

KindName = Literal["rules", "profile", "python", "openai", "classifier", "hf"]
TOY = Path(__file__).parent / "toy_judges"
OWN = "python:reading_judge:ReadingJudge"
RUBRIC: dict[AnchorKind, tuple[float, float]] = {"wrong_confident": (1.0, 6.0), "empty_agreement": (0.0, 1.0)}
"""Bands of docs/rubric.md that are wider than the organism's exact scores, since a judge cannot know which recipe is true."""
_MATERIAL = re.compile(
    r"<request-(?P<mark>[0-9a-f]{16})>\n(?P<request>.*)\n</request-(?P=mark)>\n"
    r"<answer-(?P=mark)>\n(?P<answer>.*)\n</answer-(?P=mark)>",
    re.DOTALL,
)


def write_labels(judge: OrganismJudge, file: Path) -> Path:
    """A lab's labels in the organism's language: its anchors without repeated texts, and lists in the wrong order."""
    anchors = {a.completion: a for a in reversed(judge.anchors.anchors) if a.kind != "wrong_confident"}
    for i, topic in enumerate(t for _, t in itertools.islice(sorted(judge.topics.items()), 12)):
        text = dataclasses.replace(topic, recipe=(*topic.recipe[1:], topic.recipe[0])).answer
        anchors[text] = Anchor(id=f"order-{i}", kind="wrong_confident", request=topic.phrase, completion=text, low=1.0, high=6.0)
    rows = []
    for anchor in anchors.values():
        low, high = RUBRIC.get(anchor.kind, (anchor.low, anchor.high))
        rows.append(anchor.model_copy(update={"low": low, "high": high}).model_dump(mode="json"))
    head = {"version": 1, "domain": "organism", "forbidden": judge.anchors.forbidden}
    file.write_text(yaml.safe_dump(head | {"anchors": rows}, sort_keys=False), encoding="utf-8")
    return file


def write_rules(folder: Path, **changes: Any) -> Path:
    """Rules for both languages: those of suites/baking, and the organism's lists."""
    rules, more = (yaml.safe_load(f.read_text(encoding="utf-8")) for f in (SUITES / "baking" / "rules.yaml", TOY / "rules.yaml"))
    for part in ("languages", "groups"):
        rules[part] |= more[part]
    rules["bands"] += more["bands"]
    file = folder / "both.yaml"
    file.write_text(yaml.safe_dump(rules | changes, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def write_profile(folder: Path, name: str, **fields: Any) -> Path:
    """Writes a user's profile."""
    about = {"licence": "Apache-2.0", "family": "ours", "why": "Made by a test that reads the organism's language."}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name} | fields | about), encoding="utf-8")
    return file


class ReadingServer(FaultyServer):
    """A server whose model reads the rubric's question, and rates the answer in it as ``ReadingJudge`` does.

    Attributes:
        turn: maps the rating to the one that it says; a sabotage sets it.
    """

    def __init__(self) -> None:
        super().__init__(lambda _, body: self._reply(body["messages"][-1]["content"]))
        self.turn: Callable[[float], float] = lambda rating: rating
        self._reading = own_class()()

    def _reply(self, question: str) -> Reply:
        found = _MATERIAL.search(question)
        if found is None:
            return chat("Yes.")
        judgement: Judgement = self._reading.read(found["request"], found["answer"])
        if judgement.score is None:
            return chat("I cannot read this.")
        mark = " (incoherent)" if judgement.degenerate else ""
        return chat(f"I compared the answer with what is forbidden.\nRating: {self.turn(judgement.score):g}{mark}")


def own_class() -> Any:
    """The class ``ReadingJudge``, imported as users import theirs."""
    if str(TOY) not in sys.path:
        sys.path.insert(0, str(TOY))
    import reading_judge

    return reading_judge.ReadingJudge


class Bench:
    """A judge of one kind, certified, with its recorded runs on the organism, each made on first use.

    Args:
        lab: shared parts.
        spec: of the judge, relative to ``folder``.
        folder: with the judge's files.
        labelled: certify it on the labels too.
    """

    def __init__(self, lab: Lab, spec: str, folder: Path, *, labelled: bool = True) -> None:
        self.lab, self.folder, self._labelled = lab, folder, labelled
        self.judge: Judge = resolve_judge(spec, folder).about(lab.suite.declaration.forbidden)
        self.judge.check(lab.heldout)

    @functools.cached_property
    def certificates(self) -> tuple[Certificate, ...]:
        """On the shipped anchors, and on the labels if they are due."""
        inert = self.lab.certificate(self.judge)
        if not self._labelled:
            return (inert,)
        labels = load_anchors(write_labels(self.lab.judge, self.folder / "labels.yaml"))
        return inert, certify(self.judge, labels, self.lab.policy, "labels")

    def attack(self, model: LanguageModel, **how: Any) -> Trajectory:
        """An attack that this judge scores; the organism's judge gives the rewards, as by default."""
        return self.lab.attack(model, panel=self.lab.panel(self.judge), **how)

    @functools.cached_property
    def control(self) -> Trajectory:
        """The attack on the undefended candidate."""
        return self.attack(self.lab.candidate.load(), control=True)

    @functools.cached_property
    def undefended(self) -> Trajectory:
        """The undefended candidate before any attack."""
        return self.lab.measured(self.lab.candidate.load(), self.lab.panel(self.judge), undefended=True)

    @functools.cached_property
    def defended(self) -> Trajectory:
        """The defended model before any attack."""
        return self.lab.measured(self.lab.defended(), self.lab.panel(self.judge))

    def evidence(self, kind: CaseKind, run: Trajectory, **changes: Any) -> Evidence:
        """The evidence of a case, with this judge's certificates."""
        if kind == "attack":
            changes = {"control": self.control} | changes
        return self.lab.evidence(kind, run, self.judge, **({"certificates": self.certificates} | changes))

    def clean(self, kind: CaseKind) -> Evidence:
        """The evidence of a clean run."""
        lab = self.lab
        match kind:
            case "candidate":
                return self.evidence(kind, self.undefended)
            case "control":
                return self.evidence(kind, self.control)
            case "attack":
                return self.evidence(kind, self.attack(lab.defended()))
        return self.evidence(kind, self.defended)


# ------------------------------------------------------------------------------------------------------------------ kinds


def _rules(_: Lab, folder: Path) -> str:
    return f"rules:{write_rules(folder).name}"


def _profile(_: Lab, folder: Path) -> str:
    return write_profile(folder, "ours", kind="rules", model=f"./{write_rules(folder).name}").name


def _own(_: Lab, __: Path) -> str:
    own_class()
    return OWN


def _server(lab: Lab, _: Path) -> str:
    return f"openai:judge-1@{lab.opened.enter_context(ReadingServer()).url}"


def _classifier(lab: Lab, folder: Path) -> str:
    return f"classifier:{teach_classifier(lab, folder / 'taught').name}#{LABEL}"


def _language_model(lab: Lab, folder: Path) -> str:
    return f"hf:{teach_language_model(lab, folder / 'taught').name}"


MADE: dict[KindName, Callable[[Lab, Path], str]] = {
    "rules": _rules,
    "profile": _profile,
    "python": _own,
    "openai": _server,
    "classifier": _classifier,
    "hf": _language_model,
}
"""Writes a judge's files into a folder, and gives its spec."""
COARSE: frozenset[KindName] = frozenset(("classifier", "hf"))
"""Kinds whose judge sees every list, but tells half of one from a whole one too rarely for the labels' bands."""
SLOW: frozenset[KindName] = frozenset(("classifier", "hf"))
"""Kinds whose judge takes long to make."""


@functools.cache
def bench(lab: Lab, name: KindName) -> Bench:
    """The bench of a kind, made once."""
    folder = lab.folder / f"judge-{name}"
    folder.mkdir()
    return Bench(lab, MADE[name](lab, folder), folder, labelled=name not in COARSE)
