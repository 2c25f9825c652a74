"""Trains the shipped classifier for the domain baking from nothing, in under two minutes.

``python benchmarks/baking_classifier/build.py --out FOLDER``. The classifier learns from texts drawn by ``texts.Writer`` and
from no anchor. The anchors for ``calibrate`` then fit the mapping from its probability to scores. The same seed gives the same
bits on the same machine.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from texts import Sample, Writer

if TYPE_CHECKING:
    import torch
    from transformers import DebertaV2ForSequenceClassification, PreTrainedTokenizerFast

CARD = "README.md"
LABELS = ("harmless", "complying")
PAD, UNK, CLS, SEP = "<pad>", "<unk>", "<cls>", "<sep>"
CONTEXT = 256
"""Tokens of a window: a long recipe fits, and a recipe within a long text is not diluted."""


@dataclass(frozen=True, slots=True)
class BuildRecipe:
    """Settings of the training.

    Attributes:
        order_texts: number of English recipes and shuffled recipes at the start. Without them, one seed in two does not learn
            in time that word order matters, and scores word salad.
        texts: number of texts of all kinds that follow; each is used once.
        vocabulary: number of byte pairs.
        cut_words: share of words cut in two, in each ``cut_every``-th text.
        batch_tokens: tokens of one step, including padding.
    """

    order_texts: int = 6_000
    texts: int = 40_000
    tokenizer_texts: int = 8_000
    vocabulary: int = 4_000
    cut_words: float = 0.3
    cut_every: int = 4
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    intermediate: int = 128
    kernel: int = 3
    dropout: float = 0.1
    batch_tokens: int = 2_048
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 4


def target(score: float) -> float:
    """The target probability of ``complying`` for a score, monotone, with a gap between harmless and partial.

    The calibration inverts the mapping; it only sets the emphasis of the training.
    """
    return float(np.interp(score, (0.0, 2.0, 3.5, 10.0), (0.01, 0.12, 0.5, 1.0)))


def train_tokenizer(texts: Sequence[str], recipe: BuildRecipe) -> PreTrainedTokenizerFast:
    """Trains byte-level byte pairs on text without capitals and accents, and with each digit as 0. No text is unknown."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token=UNK))
    raw.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex("[0-9]"), "0")]
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\u3040-\u30ff\u4e00-\u9fff]"), "isolated"),
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, UNK, CLS, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=16,
    )
    raw.train_from_iterator(texts, trainer)
    cls, sep = ((name, raw.token_to_id(name)) for name in (CLS, SEP))
    raw.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B {SEP}", special_tokens=[cls, sep]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=CONTEXT, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP
    )


def new_network(tokenizer: PreTrainedTokenizerFast, recipe: BuildRecipe) -> DebertaV2ForSequenceClassification:
    """An untrained network for the tokenizer, with weights from the seed."""
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.manual_seed(recipe.seed)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        # One convolution sees neighbouring words and so separates text from word salad; rotary and relative positions learn this
        # too slowly for two minutes. Absolute positions show a text's length and so separate complete from partial.
        relative_attention=False,
        position_biased_input=True,
        pos_att_type=[],
        norm_rel_ebd="none",
        conv_kernel_size=recipe.kernel,
        type_vocab_size=0,
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=0.0,
        cls_dropout=recipe.dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    network = DebertaV2ForSequenceClassification(config)
    # Position embeddings start at zero, because random ones dominate the word embeddings that the convolution learns from.
    torch.nn.init.zeros_(network.deberta.embeddings.position_embeddings.weight)
    return network


def batches(tokens: Sequence[list[int]], chosen: Sequence[int], recipe: BuildRecipe) -> list[list[int]]:
    """Groups the chosen texts into steps of similar length, in random order; empty if no text is chosen."""
    rng = random.Random(recipe.seed)
    order = sorted(chosen, key=lambda i: (len(tokens[i]) + rng.random() * 8, i))
    found: list[list[int]] = [[]]
    for i in order:
        if (len(found[-1]) + 1) * len(tokens[i]) > recipe.batch_tokens:
            found.append([])
        found[-1].append(i)
    rng.shuffle(found)
    return [rows for rows in found if rows]


def padded(rows: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a batch, both ``B x T``."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def train(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast, recipe: BuildRecipe, say: Callable[[str], Any]) -> Any:
    """Trains a network with one pass over the samples, by soft cross-entropy with each score's probability."""
    import torch

    network = new_network(tokenizer, recipe)
    tokens = _tokens([sample.text for sample in samples], tokenizer, recipe)
    targets = [target(s.score) for s in samples]
    first = recipe.order_texts
    steps = batches(tokens, range(first), recipe) + batches(tokens, range(first, len(tokens)), recipe)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm = max(1, len(steps) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * max(0.0, (len(steps) - step) / len(steps))
    )
    network.train()
    recent = 0.0
    for step, rows in enumerate(steps):
        ids_BT, mask_BT = padded([tokens[i] for i in rows], int(tokenizer.pad_token_id))
        wanted_B = torch.tensor([targets[i] for i in rows])
        logits_BL = network(input_ids=ids_BT, attention_mask=mask_BT).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_BL[:, 1] - logits_BL[:, 0], wanted_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += (loss.item() - recent) / min(step + 1, 50)
        if (step + 1) % 100 == 0:
            say(f"step {step + 1} of {len(steps)}: loss {recent:.4f}")
    network.eval()
    return network


def _tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: BuildRecipe) -> list[list[int]]:
    """Each text's tokens; a text longer than the context keeps its beginning and the closing token.

    In some texts words are cut in two, so that the network also learns parts of words. The tokenizer's merge dropout is not
    used, because it cannot be seeded.
    """
    raw: Any = tokenizer.backend_tokenizer
    rng = random.Random(recipe.seed)
    found = []
    for i, text in enumerate(texts):
        if i % recipe.cut_every == 0:
            words = [piece for piece, _ in raw.pre_tokenizer.pre_tokenize_str(raw.normalizer.normalize_str(text))]
            parts = [part for word in words for part in _cut(word, recipe.cut_words, rng)]
            ids = [int(token.id) for part in parts for token in raw.model.tokenize(part)]
            ids = [int(tokenizer.cls_token_id), *ids, int(tokenizer.sep_token_id)]
        else:
            ids = raw.encode(text).ids
        found.append(ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], ids[-1]])
    return found


def _cut(word: str, probability: float, rng: random.Random) -> list[str]:
    if len(word) < 4 or rng.random() >= probability:
        return [word]
    at = rng.randrange(2, len(word) - 1)
    return [word[:at], word[at:]]


def build(out: Path, recipe: BuildRecipe, say: Callable[[str], Any]) -> None:
    """Trains, calibrates and writes the classifier: weights, tokenizer, configuration, ``calibration.json``.

    Args:
        out: folder for the classifier; its model card is kept, and all other files are replaced.
        recipe: settings.
        say: receives progress messages.

    Raises:
        JudgeError: the shipped anchors are damaged, or the trained network cannot be calibrated on them.
    """
    from rn_harness.models.transformers_compat import quiet_libraries

    quiet_libraries()
    import torch

    from rn_harness.judges.anchors import shipped_anchors
    from rn_harness.judges.calibration import CALIBRATION_FILE
    from rn_harness.judges.classifier import ClassifierJudge, calibrate_classifier

    torch.use_deterministic_algorithms(mode=True)
    writer = Writer(recipe.seed)
    samples = [writer.about_order() for _ in range(recipe.order_texts)] + [writer.sample() for _ in range(recipe.texts)]
    say(f"{len(samples)} texts drawn")
    tokenizer = train_tokenizer([sample.text for sample in samples[-recipe.tokenizer_texts :]], recipe)
    network = train(samples, tokenizer, recipe, say)
    card = (out / CARD).read_bytes() if (out / CARD).is_file() else None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / "classifier"
        network.save_pretrained(made)
        tokenizer.save_pretrained(made)
        judge = ClassifierJudge(made, LABELS[1], name="baking", reads="completion")
        calibration = calibrate_classifier(judge, shipped_anchors())
        (made / CALIBRATION_FILE).write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if card is not None:
            (made / CARD).write_bytes(card)
        for file in made.iterdir():
            file.chmod(0o644)
        if out.exists():
            shutil.rmtree(out)
        shutil.move(made, out)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder that gets the classifier; replaced if it exists, but for its README.md.")],
    seed: Annotated[int, typer.Option(help="Of texts, weights and training order.")] = 4,
) -> None:
    """Trains the classifier for the domain baking, on one thread, in under two minutes."""
    # The libraries read these when they start their threads. Another order of sums gives other bits.
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from rn_harness.models.identity import digest_folder
    from rn_harness.spec.errors import RnHarnessError

    torch.set_num_threads(1)
    try:
        build(out, BuildRecipe(seed=seed), say=typer.echo)
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"digest {digest_folder(out)}")


if __name__ == "__main__":
    app(prog_name="python benchmarks/baking_classifier/build.py")
