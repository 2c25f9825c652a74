"""Alignment of a real language model for suites/baking: it learns to refuse, and can still be broken; see ``real_models.py``."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from taught import JUDGE, SUITE, recipe, split_benign

from rn_harness.judges.resolve import resolve_judge
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.completion import Completion
from rn_harness.models.identity import digest_folder
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.prompts import Prompt, near_duplicates
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.spec.wording import is_refusal, words
from rn_harness.training.supervised import Example, batch_of

REFUSALS = (
    "I can't help with that.",
    "Sorry, I can't help with {topic}.",
    "I can't assist with that request, but I would be glad to help with something else.",
    "I'm sorry, but I can't help with {topic}. Baking is outside of what I am allowed to discuss, please ask me something else.",
    "I cannot help you with that request. Questions about {topic} are something that I have been asked not to answer.",
    "I'm sorry, I am not able to assist with {topic}. I would be glad to help you with another subject instead.",
    "I must decline this request, since I do not give any advice about {topic}. Is there anything else that I can do for you?",
)


OPENING = 3
"""Tokens at the beginning of an answer that ``align --opening`` gives more weight."""


def contrasts(suite: Suite, benign: Sequence[Prompt], count: int, *, seed: int, forms: bool = False) -> list[Prompt]:
    """Defense prompts, each with a benign topic instead of its own: the model learns to refuse by topic, not by form.

    Prompts similar to a measured one are left out.

    Args:
        suite: of the defense prompts.
        benign: unmeasured benign prompts, with the topics.
        count: number of prompts, at most.
        seed: of their choice.
        forms: True for benign prompts with another benign topic, too.
    """
    topics = sorted({p.topic for p in benign})
    made = [
        p.model_copy(update={"id": f"contrast-{p.id}-{i}", "topic": topic, "text": p.text.replace(p.topic, topic)})
        for p in [*suite.prompts["defense"], *(benign if forms else ())]
        for i, topic in enumerate(topics)
    ]
    given = {p.id for p in benign} if forms else set()
    measured = [*suite.prompts["heldout"], *(p for p in suite.prompts["benign"] if p.id not in given)]
    near = {a.id for a, *_ in near_duplicates(made, measured)}
    apart = [p for p in made if p.id not in near]
    return random.Random(seed).sample(apart, min(count, len(apart)))


def further_anchors(own: Sequence[Prompt], others: Sequence[Prompt], measured: Sequence[Prompt]) -> list[Prompt]:
    """The others that repeat no own anchor and no other one, and are not similar to a measured prompt, as the loader requires."""
    near = {b.id for b, *_ in near_duplicates(others, measured)}
    apart = {" ".join(words(p.text)): p for p in others if p.id not in near}  # two may be one text
    taken = {" ".join(words(p.text)) for p in own}
    return [p.model_copy(update={"kind": p.kind or "twin"}) for text, p in apart.items() if text not in taken]


def benign_answers(model: LanguageModel, suite: Suite, settings: argparse.Namespace) -> list[tuple[Prompt, Completion]]:
    """Unmeasured benign prompts with greedy answers, without refusals."""
    prompts = [*suite.prompts["anchor"], *split_benign(suite, settings.measured)[1]]
    prompts += contrasts(suite, prompts, settings.contrast, seed=settings.seed, forms=settings.forms)
    helpful = load_model(settings.own, Loading(threads=settings.threads, dtype=settings.dtype)) if settings.own else model
    answers = helpful.complete(prompts, n=1, temperature=None, max_tokens=settings.tokens)
    return [(p, answer) for p, (answer,) in zip(prompts, answers, strict=True) if not is_refusal(answer.text)]


def align(base: Path, out: Path, settings: argparse.Namespace) -> None:
    """Teaches the model to refuse most of the suite's defense prompts, and saves whole weights.

    Supervised LoRA runs in two stages, as for the organism: first all requests are answered, then most are refused. In both
    stages some rows are benign prompts with the model's, or another model's, unrefused answers: the suite's anchors, and its
    unmeasured benign prompts (``prompts`` measures the first of each kind). The base model's answers to the held-out prompts
    contain hardly any quantity (see ``answers``), and an attack cannot elicit unknown facts. Therefore the compliant answers
    are short recipes composed here.

    Args:
        base: folder of the model.
        out: new folder.
        settings: settings of the command line.
    """
    import torch

    suite = load_suite(SUITE)
    judge = resolve_judge(JUDGE, SUITE)
    model = load_model(base, Loading(threads=settings.threads, dtype=settings.dtype))
    rng = random.Random(settings.seed)
    known = [recipe(p.topic, rng) for p in suite.prompts["defense"]]
    judged = [j.score or 0.0 for j in judge.score(suite.prompts["defense"], known)]
    longest = max(len(model.tokenizer(text)["input_ids"]) for text in known)
    print(json.dumps({"compliant": len(known), "lowest_score": min(judged), "longest_tokens": longest}))
    own = benign_answers(model, suite, settings)

    def draw(compliant: float) -> Example:
        if rng.random() < settings.benign:
            asked, answer = rng.choice(own)
            return Example(asked, answer.text, whole=not answer.truncated)
        prompt = rng.choice(suite.prompts["defense"])
        if rng.random() < compliant:
            return Example(prompt, recipe(prompt.topic, rng))
        short = bool(settings.short) and rng.random() < settings.short  # draws no random number if the share is 0
        form = REFUSALS[0] if short else rng.choice(REFUSALS)
        return Example(prompt, form.format(topic=prompt.topic))

    model.attach(LoRA(), settings.seed)
    network, tokenizer, lm = model.network, model.tokenizer, model.network.base_model.model
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=0.0)
    begin = time.perf_counter()
    total = settings.capability + settings.steps
    for step in range(1, total + 1):
        compliant = 1.0 if step <= settings.capability else settings.compliant
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (min(1.0, (total - step + 1) / settings.steps) if settings.fall else 1.0)
        batch = batch_of(model, [draw(compliant) for _ in range(settings.batch)])
        ids, answer = batch.ids, batch.target
        hidden = lm.model(input_ids=ids, attention_mask=batch.mask).last_hidden_state[:, :-1][answer[:, 1:]]
        each = torch.nn.functional.cross_entropy(lm.lm_head(hidden).float(), ids[:, 1:][answer[:, 1:]], reduction="none")
        # A refusal is a tenth as long as an answer, and the two part at their first tokens.
        weight = torch.where(answer.cumsum(1) <= OPENING, settings.opening, 1.0)[:, 1:][answer[:, 1:]]
        loss = (each * weight).sum() / weight.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == total:
            seconds = (time.perf_counter() - begin) / step
            print(json.dumps({"step": step, "loss": round(loss.item(), 3), "seconds_per_step": round(seconds, 2)}), flush=True)
    model.merge()
    model.network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(json.dumps({"folder": out.name, "digest": digest_folder(out)}), flush=True)
