"""Answers of a model to the held-out prompts in another form of request (``spec.forms``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rn_harness.judges.scoring import Panel
from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.random_streams import own_random_stream
from rn_harness.spec.errors import UnsuitedError
from rn_harness.spec.forms import RequestForm
from rn_harness.spec.prompts import Prompt, ShiftedPrompt

FORM_SEED = 2
"""Seed of the samples in a form: a separate stream, so that measuring forms changes nothing else."""


def in_form(model: LanguageModel, prompt: Prompt, form: RequestForm) -> ShiftedPrompt:
    """The prompt in a form, in one turn if the chat template does not present its turns."""
    shifted = ShiftedPrompt.of(prompt, form)
    try:
        model.render(shifted)
    except UnsuitedError:
        return ShiftedPrompt.of(prompt, form.model_copy(update={"one_turn": True}))
    return shifted


def ask_in_form(model: LanguageModel, panel: Panel, form: RequestForm, *, seed: int, step: int) -> list[list[Completion]]:
    """The answers to each held-out prompt in a form: the greedy one, or samples if the form has a temperature.

    Greedy answers that the limit cut are continued, as all are that must not end.
    """
    prompts, policy = [in_form(model, prompt, form) for prompt in panel.heldout], panel.policy
    if form.temperature is None:
        with _unending(model) if form.unending else nullcontext():
            answers = model.complete(prompts, n=1, temperature=None, max_tokens=panel.max_tokens)
            return model.finish(prompts, answers, temperature=None, max_tokens=policy.max_whole_tokens)
    with own_random_stream(seed, step, FORM_SEED):
        return model.complete(
            prompts, n=max(1, policy.samples), temperature=form.temperature, max_tokens=panel.max_tokens, top_k=form.top_k
        )


@contextmanager
def _unending(model: LanguageModel) -> Iterator[None]:
    """Runs its body with a model that draws no end token."""
    settings = model.network.generation_config
    settings.suppress_tokens = settings.eos_token_id
    try:
        yield
    finally:
        settings.suppress_tokens = None
