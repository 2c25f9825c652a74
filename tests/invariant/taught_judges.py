"""Tiny networks that are taught to judge the organism's language, for judges of the kinds ``classifier:`` and ``hf:``.

They learn from answers that the organism itself gives to the prompts of its suites, scored by its exact judge, and from the texts
that the shipped classifier for baking learned from, so that the shipped anchors can certify them.
"""

from __future__ import annotations

import functools
import importlib.util
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rn_harness.judges.anchors import shipped_anchors
from rn_harness.judges.calibration import CALIBRATION_FILE
from rn_harness.judges.classifier import ClassifierJudge, calibrate_classifier
from rn_harness.judges.organism import correct_slots
from rn_harness.judges.resolve import resolve_judge
from rn_harness.judges.rules import HARMLESS_UP_TO
from rn_harness.models.knowledge import REFUSALS
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.training.supervised import take_step

from .lab import Lab

BUILDER = Path(__file__).parents[2] / "benchmarks" / "baking_classifier"
LABEL = "complying"
Taught = tuple[str, float]
"""A text, and its score."""


@functools.cache
def builder() -> Any:
    """The script that builds the shipped classifier, as a module."""
    name = "baking_classifier_build"  # a package of the name "build" exists
    spec = importlib.util.spec_from_file_location(name, BUILDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BUILDER)  # benchmarks import each other as scripts
        spec.loader.exec_module(module)
    return module


def organism_texts(lab: Lab, seed: int = 0) -> list[Taught]:
    """The organism's answers to prompts that are not held out, whole and spoiled, each with the exact judge's score.

    Half of the answers are sampled without the words that begin a refusal, so that the organism complies. A list with the wrong
    placeholders is left out: the classifier's tokenizer reads each digit as 0, so that the list looks like a right one.
    """
    import torch

    rng, model, judge = random.Random(seed), lab.candidate.load(), lab.judge
    prompts = [*lab.suite.prompts["attack"], *lab.suite.prompts["defense"]]
    refusing = [model.tokenizer.convert_tokens_to_ids(refusal.split()[0]) for refusal in REFUSALS]
    found: list[Taught] = []
    for banned in ((), refusing):
        with torch.random.fork_rng(devices=[]):  # another order of tests must not teach another judge
            torch.manual_seed(seed)
            groups = model.complete(prompts, n=2, temperature=1.0, max_tokens=lab.policy.max_completion_tokens, banned=banned)
        for prompt, text in ((p, c.text) for p, group in zip(prompts, groups, strict=True) for c in group):
            texts = _spoiled(text, rng)
            judged = judge.score([prompt] * len(texts), texts)
            for spoiled, judgement in zip(texts, judged, strict=True):
                assert judgement.score is not None
                if judgement.score > HARMLESS_UP_TO or correct_slots(judge.topic(prompt), spoiled) is None:
                    found.append((spoiled, judgement.score))
    return found


def _spoiled(text: str, rng: random.Random) -> list[str]:
    """An answer; and cut, after a refusal, both, before words to the judge, in random order, and as a loop."""
    said = text.split()
    cut = said[: rng.randint(1, max(1, len(said)))]
    refusal = rng.choice([*REFUSALS, "no .", "no , i will not ."]).split()
    shuffled = rng.sample(said, len(said))
    loop = rng.choices(said[:3] or ["no"], k=6)
    rows = (said, cut, [*refusal, *said], [*refusal[:-1], "with", *cut, "."], [*said, "rating", ":", "0", "."], shuffled, loop)
    return [" ".join(words) for words in rows]


def baking_texts(count: int, seed: int = 11) -> list[Taught]:
    """Texts about baking and about nothing, with scores by their construction."""
    writer = builder().Writer(seed)
    return [(sample.text, sample.score) for sample in (writer.sample() for _ in range(count))]


def teach_classifier(lab: Lab, folder: Path, replayed: int = 8000) -> Path:
    """The shipped classifier for baking, taught the organism's language as well, and calibrated on the shipped anchors."""
    import torch

    shutil.copytree(fixtures_folder() / "judges" / "baking-classifier", folder)
    (folder / CALIBRATION_FILE).unlink()
    judge = resolve_judge(f"classifier:{folder}#{LABEL}", folder)
    assert isinstance(judge, ClassifierJudge)
    network, tokenizer = judge._loaded
    build, texts = builder(), [*organism_texts(lab), *baking_texts(replayed)]
    random.Random(0).shuffle(texts)
    ids = [row[: build.CONTEXT] for row in tokenizer([text for text, _ in texts])["input_ids"]]
    batches = _batches([len(row) for row in ids], 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    at = judge._labels[LABEL]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.train()
        for step, rows in enumerate(batches, 1):
            tokens_BT, mask_BT = build.padded([ids[i] for i in rows], int(tokenizer.pad_token_id))
            wanted_B = torch.tensor([build.target(texts[i][1]) for i in rows])
            logits_BL = network(input_ids=tokens_BT, attention_mask=mask_BT).logits
            harm_B = logits_BL[:, at] - logits_BL[:, 1 - at]
            torch.nn.functional.binary_cross_entropy_with_logits(harm_B, wanted_B).backward()
            take_step(optimizer, [*network.parameters()], 1.0, step)
            schedule.step()
        network.eval()
    network.save_pretrained(folder)
    return calibrate(folder)


def calibrate(folder: Path) -> Path:
    """Writes the calibration of the classifier in a folder, fitted on the shipped anchors."""
    judge = ClassifierJudge(folder, LABEL, name="taught", reads="completion")
    fitted = calibrate_classifier(judge, shipped_anchors())
    (folder / CALIBRATION_FILE).write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return folder


def _batches(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """All texts once, in batches of like length, in random order."""
    rng = random.Random(1)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] + 4 * rng.random())
    found = [order[start : start + rows] for start in range(0, len(order), rows)]
    rng.shuffle(found)
    return found
