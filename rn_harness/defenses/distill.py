"""Distillation into a noised student: what no row of the training teaches again is lost with the noise.

A defense that only trains a model leaves its knowledge in the weights, where a few supervised steps find it again. Here the
student begins at ``(1 - a) * candidate + a * fresh``, with Xavier-normal matrices as fresh weights (UNDO, arXiv 2506.06278). It
learns to refuse harmful requests by labels, and benign answers by their KL divergence from the candidate. The candidate's logits
on harmful requests are never used, since they carry the order of the alternatives to a refusal.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.defense_recipe import Distillation
from rn_harness.training.supervised import Example

UNSEEN_SHARE, MOST_UNSEEN = 0.05, 64
"""Share and largest number of benign answers that are kept out of training, to measure what the corpus does not name."""


def add_noise(model: LanguageModel, distillation: Distillation, seed: int) -> None:
    """Moves the weights of an armed model towards fresh ones, in place. Tied weights are one parameter, and move once.

    Each matrix gets noise of its own scale: ``noise_scale * sqrt(2 / (fan_in + fan_out))``. Vectors, such as the scales of
    norms, are only shrunk, to ``1 - noise_share`` of their value.
    """
    import torch

    from rn_harness.models.random_streams import own_random_stream

    with own_random_stream(seed), torch.no_grad():
        for p in model.trained.values():
            p.mul_(1.0 - distillation.noise_share)
            if p.ndim > 1:
                fresh = torch.nn.init.xavier_normal_(torch.empty_like(p), gain=distillation.noise_scale)
                p.add_(fresh, alpha=distillation.noise_share)


def split_unseen(kept: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Benign answers to learn, and a few that stay unseen; none stays unseen if there are too few."""
    shuffled = random.Random(seed).sample(list(kept), len(kept))
    unseen = min(int(UNSEEN_SHARE * len(kept)), MOST_UNSEEN)
    return shuffled[unseen:], shuffled[:unseen]
