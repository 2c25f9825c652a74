"""Distillation into a noised student, and the retain corpora that it keeps the answers to."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rn_harness.defenses.depth import divergence
from rn_harness.defenses.distill import add_noise, split_unseen
from rn_harness.models.identity import RETAIN_FILE, digest_folder
from rn_harness.models.knowledge import load_topics
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import resolve_candidate
from rn_harness.organism.build import RETAINED, Curriculum, save_retained
from rn_harness.run.participants import Participants
from rn_harness.run.session import RunSession
from rn_harness.spec.defense_recipe import DefenseRecipe, Distillation
from rn_harness.spec.errors import RecipeError, SuiteError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import PROMPT_SETS, Prompt
from rn_harness.spec.retain import Retained, check_retained, read_retained
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store
from rn_harness.training.supervised import Batch, Example, batch_of

from .lazy import LazyModule

datasets: Any = LazyModule("datasets")
torch: Any = LazyModule("torch")

ROOT = Path(__file__).parents[2]
RECIPE = {"method": "distill", "form": "full", "refusal": "no .", "depth": {}, "distill": {}, "steps": 10, "learning_rate": 1e-3}
ANSWERS = [
    Example(Prompt(id="a", topic="t", text="name a river"), "sure , first x200 ."),
    Example(Prompt(id="b", topic="t", text="why"), "no"),
]


@pytest.fixture(scope="module")
def organism() -> LanguageModel:
    """The shipped organism, without training."""
    return resolve_candidate("organism", ROOT).load()


def armed(form: str = "full") -> LanguageModel:
    model = resolve_candidate("organism", ROOT).load()
    model.arm(DefenseRecipe.model_validate({"steps": 1, "learning_rate": 1e-3, "form": form}))
    return model


def test_noise_moves_each_matrix_by_its_own_scale_and_shrinks_vectors() -> None:
    """With share a, the change beyond shrinking has Xavier's deviation times a and the declared scale; vectors only shrink."""
    model, share, scale = armed(), 0.25, 2.0
    before = {name: p.detach().clone() for name, p in model.trained.items()}
    add_noise(model, Distillation(noise_share=share, noise_scale=scale), seed=3)
    assert "lm_head.weight" not in before  # tied to the embedding, it moves once
    for name, p in model.trained.items():
        fresh = (p.detach() - (1 - share) * before[name]) / share
        if p.ndim == 1:
            assert torch.allclose(fresh, torch.zeros_like(fresh), atol=1e-6)
            continue
        due = scale * math.sqrt(2.0 / sum(p.shape))
        assert float(fresh.std()) == pytest.approx(due, rel=0.03), name
        assert abs(float(fresh.mean())) < 5 * due / math.sqrt(p.numel()), name


def test_noise_follows_from_its_seed_and_from_nothing_else() -> None:
    """Equal seeds give equal students, another seed another one, and the process's own random stream is left as it was."""
    students, stream = [], torch.random.get_rng_state()
    for seed in (0, 0, 1):
        model = armed()
        add_noise(model, Distillation(), seed)
        students.append(model.network.get_input_embeddings().weight.detach().clone())
    assert torch.equal(students[0], students[1])
    assert not torch.equal(students[0], students[2])
    assert torch.equal(torch.random.get_rng_state(), stream)


@pytest.mark.parametrize("form", ["full", "lora"])
def test_divergence_is_from_the_model_before_its_training(form: str, organism: LanguageModel) -> None:
    """It is zero at the start, and after a change the KL divergence from the untouched candidate, token by token."""
    model = armed(form)
    batch = batch_of(model, ANSWERS)
    assert divergence(model, batch).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for p in model.trained.values():
            p.add_(0.02 * torch.sin(torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape)))
        changed, _ = batch.loss(model.network)
        plain, _ = batch.loss(organism.network)
    due = float((plain.exp() * (plain - changed)).sum(1).mean())
    assert due > 1e-3
    assert divergence(model, batch).item() == pytest.approx(due, rel=1e-4)


def test_the_first_token_of_each_answer_can_weigh_more() -> None:
    """Only the divergence at the first tokens counts as often as declared, in the sum and in what it is divided by."""
    before, after = torch.zeros(2, 6, 4), torch.zeros(2, 6, 4)
    # Two prompts of two tokens, answers of three and of one. What is learned at t is predicted at t - 1.
    after[0, 1, 0], after[0, 2, 0], after[1, 1, 0] = 1.0, 2.0, 3.0
    target = torch.tensor([[False, False, True, True, True, False], [False, False, True, False, False, False]])
    batch = Batch(torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6), target)

    class Network(torch.nn.Module):  # type: ignore[misc]
        """Logits that depend on whether the remembered weights run."""

        def __init__(self) -> None:
            super().__init__()
            self.now = torch.nn.Parameter(torch.ones(()))

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=before + self.now * (after - before))

    network = Network()
    model: Any = SimpleNamespace(network=network, start={"now": torch.zeros(())})
    first, second, other = (math.log((math.exp(x) + 3) / 4) - x / 4 for x in (1.0, 2.0, 3.0))  # KL(uniform || softmax)
    assert divergence(model, batch).item() == pytest.approx((first + second + 0.0 + other) / 4, rel=1e-5)
    assert divergence(model, batch, 8.0).item() == pytest.approx((8 * first + second + 0.0 + 8 * other) / 18, rel=1e-5)


def test_a_few_benign_answers_stay_unseen() -> None:
    """Learned and unseen answers are all of them, none in both; 5 %, at most 64, are unseen, and none of a few."""
    many = [Example(Prompt(id=f"p{i}", topic="t", text=f"text {i}"), "yes") for i in range(2000)]
    for count, due in ((10, 0), (100, 5), (2000, 64)):
        learned, unseen = split_unseen(many[:count], seed=0)
        assert len(unseen) == due
        assert sorted(e.prompt.id for e in (*learned, *unseen)) == sorted(e.prompt.id for e in many[:count])


@pytest.mark.parametrize(
    ("fields", "needle"),
    [
        ({"distill": None}, "method distill has settings of its noise"),
        ({"depth": None}, "methods deep and distill have settings of their depth"),
        ({"refusal": None}, "methods sft, deep and distill teach a refusal"),
        ({"form": "lora"}, "noise goes into all weights"),
        ({"method": "deep"}, "method distill has settings of its noise, and no other method does"),
        ({"distill": {"noise_share": 1.0}}, "noise_share"),
    ],
)
def test_a_distilled_recipe_is_whole_or_an_error(fields: dict[str, Any], needle: str) -> None:
    """A recipe without a part that it needs, with noise in an adapter, or with nothing left of the candidate is refused."""
    DefenseRecipe.model_validate(RECIPE)
    with pytest.raises(ValueError, match=needle):
        DefenseRecipe.model_validate(RECIPE | fields)


def test_a_teacher_is_a_plain_recipe_of_the_suite_and_part_of_the_students_key(tmp_path: Path) -> None:
    """A recipe that is missing, distilled or hardened cannot teach, and another setting of the teacher is another student."""
    biochem, named = ROOT / "suites" / "biochem", "defenses.distilled.distill.teacher="
    for wrong in ("nobody", "distilled", "deep-distilled", "hardened"):
        with pytest.raises(RecipeError, match=f"neither distilled nor hardened, got teacher='{wrong}'"):
            load_suite(biochem, [named + wrong])

    def inputs(*changes: str) -> Any:
        suite = load_suite(biochem, changes)
        options = Options(model="organism", defense="distilled", tier="smoke", base=tmp_path)
        run = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
        recipe = suite.declaration.defenses["distilled"]
        assert (suite.teacher_of(recipe) in run.limits.required(suite)) == bool(changes)
        return run.defense_inputs(suite, {}, recipe)

    plain, taught, otherwise = inputs(), inputs(named + "deep"), inputs(named + "deep", "defenses.deep.seed=7")
    assert "teacher" not in plain
    assert taught["teacher"]["recipe"]["method"] == "deep"
    assert {name for name in taught if taught[name] != otherwise[name]} == {"teacher"}


ROWS: list[dict[str, Any]] = [
    {"prompt": "name a river", "completion": "the Rhine"},
    {"prompt": "name a river", "completion": "another answer to a text that was read already"},
    {"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why is the sky blue"}]},
]
TURNS = (("user", "name a lake"), ("assistant", "Como"), ("user", "why"))
CHATS = [{"messages": [{"role": role, "content": content} for role, content in TURNS]}]


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"corpus.{kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_a_corpus_is_read_from_every_format(kind: str, tmp_path: Path) -> None:
    """Texts and chats give their first request, an answer if there is one, and each text once."""
    texts = read_retained(write(tmp_path, ROWS[:2], kind))
    assert [(of.prompt.text, of.answer) for of in texts] == [("name a river", "the Rhine")]
    (tmp_path / "chats").mkdir()
    chats = read_retained(write(tmp_path / "chats", CHATS, kind))
    assert [(of.prompt.text, of.answer) for of in chats] == [("name a lake", "Como")]
    asked = read_retained(write(tmp_path, [ROWS[2]], "jsonl"))
    assert [(of.prompt.text, of.answer) for of in asked] == [("why is the sky blue", None)]


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("", "needs a prompt, got none"),
        ('{"text": "a"}', "row 1: .* got KeyError"),
        ('{"prompt": "a"}\n{"prompt": ""}', "row 2: .* got ValidationError"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "row 1: .* got ValueError"),
        ("no json", "got JSONDecodeError"),
        (None, "got FileNotFoundError"),
    ],
)
def test_an_unreadable_corpus_is_an_error_that_names_the_row(content: str | None, needle: str, tmp_path: Path) -> None:
    """A missing file, one of another format, a row without a request or a chat that begins with an answer is refused."""
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SuiteError, match=needle):
        read_retained(path)


def test_a_corpus_must_not_hold_what_is_measured() -> None:
    """The words of a held-out prompt in another order are refused; a prompt about something else is not."""
    suite = load_suite(ROOT / "suites/biochem")
    held = suite.prompts["heldout"][0]
    other = Retained(Prompt(id="retain-1", topic="retained", text="name a river"))
    near = Retained(Prompt(id="retain-2", topic="retained", text=" ".join(reversed(held.text.split()))))
    check_retained(Path("corpus"), [other], suite.prompts["heldout"])
    with pytest.raises(SuiteError, match=f"remove the first of each\\n.*retain-2  {held.id}"):
        check_retained(Path("corpus"), [other, near], suite.prompts["heldout"])


def test_the_shipped_corpus_is_the_builders_and_no_part_of_the_organisms_identity(tmp_path: Path) -> None:
    """It follows from suites and topics, bit by bit, holds no measured wording, and leaves the organism's digest as it was."""
    folder = fixtures_folder() / "organism"
    suites = [load_suite(ROOT / "suites" / name) for name in ("biochem", "cybercrime", "baking")]
    save_retained(Curriculum(suites, load_topics(folder)).retained(RETAINED, seed=0), tmp_path)
    assert (tmp_path / RETAIN_FILE).read_bytes() == (folder / RETAIN_FILE).read_bytes()
    corpus = read_retained(folder / RETAIN_FILE)
    for suite in suites:
        check_retained(folder, corpus, [p for name in PROMPT_SETS if name != "anchor" for p in suite.prompts[name]])
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns(RETAIN_FILE))
    assert digest_folder(bare) == digest_folder(folder)


def test_a_run_takes_its_own_corpus_else_the_candidates_and_the_suites_set(tmp_path: Path) -> None:
    """The option replaces what lies beside the weights; the suite's own set comes on top; each keys the defense."""
    folder = shutil.copytree(ROOT / "suites/biochem", tmp_path / "biochem")
    (folder / "prompts/retain.yaml").write_text(
        'prompts:\n  - {id: kept-1, topic: river, text: "name a river"}\n', encoding="utf-8"
    )
    suite = load_suite(folder)
    own = write(tmp_path, [{"prompt": "name a lake"}], "jsonl")

    def texts(**options: Any) -> list[str]:
        return [of.prompt.text for of in Participants(Options(base=ROOT, **options)).retained(suite)]

    shipped = [of.prompt.text for of in read_retained(fixtures_folder() / "organism" / RETAIN_FILE)]
    assert texts() == [*shipped, "name a river"]
    assert texts(retain=str(own)) == ["name a lake", "name a river"]
    own.write_text(json.dumps({"prompt": suite.prompts["benign"][0].text}), encoding="utf-8")
    with pytest.raises(SuiteError, match="must not hold a suite's prompts"):
        texts(retain=str(own))
