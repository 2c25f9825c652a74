"""Tiny models in 4-bit NF4 by bitsandbytes on the CPU: training, sampling, records and refusals."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import peft
import pytest
import torch

from rn_harness.models.candidate import Candidate
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import check_adapter, resolve_candidate
from rn_harness.records.base import CaseKind
from rn_harness.run.preflight import check_training
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import CandidateError, RecipeError
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.store import Store
from rn_harness.training import grpo

from ..tiny_models import FAMILIES, Family, make_model  # noqa: TID252 - the tests are not a package
from ..unit.builders import write_suite  # noqa: TID252 - the tests are not a package

RULES = Path(__file__).parents[2] / "suites" / "baking" / "rules.yaml"
PROMPTS = tuple(
    Prompt(id=f"p{i}", topic=f"p{i}", text=text)
    for i, text in enumerate(("Draw a house.", "Name three rivers, two mountains and one island in the north, please."))
)
IDS = torch.tensor([[5, 9, 13, 17, 21, 25, 29]])
RECIPE = AttackRecipe(
    name="grpo",
    steps=3,
    control_steps=3,
    learning_rate=1e-3,
    prompts=2,
    prompts_per_step=2,
    group_size=4,
    max_completion_tokens=8,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a model of each family."""
    return {family.name: make_model(tmp_path_factory.mktemp(family.name), family) for family in FAMILIES}


def candidate(folder: Path, quantise: str | None = "nf4") -> Candidate:
    return resolve_candidate(str(folder), folder.parent, quantise=quantise)


def logits_of(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.network(input_ids=IDS).logits


def packed(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The 4-bit weights, two per byte."""
    return {name: p.detach().clone() for name, p in model.network.named_parameters() if p.dtype == torch.uint8}


def adapters(model: LanguageModel, name: str, size: float) -> None:
    """Fills the adapter of this name with random weights."""
    draw = torch.Generator().manual_seed(len(name))
    for at, p in model.network.named_parameters():
        if f"lora_B.{name}." in at:
            p.data.copy_(size * torch.randn(p.shape, generator=draw))


def defended(folder: Path, adapter: Path) -> LanguageModel:
    """A 4-bit model with a separate defense adapter."""
    made = candidate(folder).load()
    made.attach(LoRA(r=4), 1)
    adapters(made, "default", 0.05)
    made.save_adapter(adapter, f"tiny@sha256:{candidate(folder).digest}")
    model = candidate(folder).load()
    model.merge_from(adapter)
    return model


def in_plain_numbers(model: LanguageModel, folder: Path) -> LanguageModel:
    """The same function without bitsandbytes and peft: dequantised weights plus the products of all adapters."""
    plain = candidate(folder, None).load()
    modules = dict(plain.network.named_modules())
    for name, layer in model.network.get_base_model().named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            weight = layer.get_base_layer().weight
            total = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
            for of in layer.lora_A:
                total = total + layer.scaling[of] * layer.lora_B[of].weight @ layer.lora_A[of].weight
            modules[name].weight.data.copy_(total)
    return plain


def train(model: LanguageModel, recipe: AttackRecipe = RECIPE) -> None:
    """Trains a few steps in which the rewards of every group differ."""
    prompts = [*PROMPTS] * recipe.steps
    grpo.train(model, recipe, prompts, lambda _, t: [float(i % 4) for i in range(len(t))], lambda *_: None, due=lambda _: True)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_linear_maps_are_in_four_bits_and_all_else_is_not(family: Family, folders: dict[str, Path]) -> None:
    """The seven linear maps of each layer are 4-bit, all else stays float32, and the logits differ moderately."""
    model = candidate(folders[family.name]).load()
    plain = candidate(folders[family.name], None).load()
    assert model.quantised
    assert not plain.quantised
    assert len(packed(model)) == 2 * 7
    assert all(p.dtype == torch.float32 for name, p in model.network.named_parameters() if name not in packed(model))
    apart = float((logits_of(model) - logits_of(plain)).abs().mean() / logits_of(plain).abs().mean())
    assert 0.01 < apart < 0.6


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_training_moves_a_float32_adapter_and_no_other_bit(family: Family, folders: dict[str, Path]) -> None:
    """Three steps change the float32 adapter and no bit of the 4-bit weights."""
    model = candidate(folders[family.name]).load()
    before = packed(model)
    model.arm(RECIPE)
    start = {name: p.detach().clone() for name, p in model.trained.items()}
    assert len(start) == 2 * 2 * 7
    train(model)
    after = packed(model)
    assert [bytes(p.numpy()) for p in after.values()] == [bytes(p.numpy()) for p in before.values()]
    assert all(p.dtype == torch.float32 for p in model.trained.values())
    # TRL would train it in bfloat16, which has one value for every 65536 of float32.
    moved = [p for name, p in model.trained.items() if not torch.equal(p, start[name])]
    assert moved
    assert any(not torch.equal(p, p.bfloat16().float()) for p in moved)
    assert model.distance > 0


def test_defense_and_attack_adapters_add_up_on_four_bit_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """Defense and attack adapters add up as in dequantised weights, and the attack trains only its adapter."""
    folder = folders["qwen2"]
    model = defended(folder, tmp_path)
    bare = candidate(folder).load()
    assert [bytes(p.numpy()) for p in packed(model).values()] == [bytes(p.numpy()) for p in packed(bare).values()]
    clean = logits_of(model)
    assert float((clean - logits_of(bare)).abs().max()) > 0.1
    assert torch.allclose(clean, logits_of(in_plain_numbers(model, folder)), atol=1e-3)
    defense = {name: p.detach().clone() for name, p in model.network.named_parameters() if ".defense." in name}
    model.arm(RECIPE)
    assert torch.allclose(logits_of(model), clean, atol=1e-5)  # a new adapter changes no output
    assert {name for name, p in model.network.named_parameters() if p.requires_grad} == set(model.trained)
    assert len(model.trained) == len(defense)
    train(model)
    now = dict(model.network.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in defense.items())
    adapters(model, "default", 0.1)  # larger than after three steps
    attacked = logits_of(model)
    assert float((attacked - clean).abs().max()) > 0.1
    wanted = logits_of(in_plain_numbers(model, folder))
    assert torch.allclose(attacked, wanted, atol=1e-3)
    with model.folded():
        assert torch.allclose(logits_of(model), wanted, atol=1e-3)
    assert torch.equal(logits_of(model), attacked)


def test_a_new_adapter_of_any_rank_changes_no_bit_of_the_folded_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    """A new attack adapter of any rank changes no bit of the defended model's folded logits."""
    model = defended(folders["qwen2"], tmp_path)
    with model.folded():
        before = logits_of(model)
    for rank in (4, 16, 64):
        model = candidate(folders["qwen2"]).load()
        model.merge_from(tmp_path)
        model.attach(LoRA(r=rank), 0)
        with model.folded():
            assert torch.equal(logits_of(model), before), rank


def test_a_defense_on_one_of_two_tied_embeddings_is_refused(tmp_path: Path) -> None:
    """Sampling folds adapters in, and on one tensor it would change both embeddings, so the sampled model would be another."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(resolve_candidate("organism", tmp_path).load().network, config).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    with pytest.raises(CandidateError, match="adapts one of two tied embeddings"):
        resolve_candidate("organism", tmp_path, quantise="nf4").load().merge_from(tmp_path)


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16], ids=str)
def test_a_defense_from_elsewhere_on_the_embedding_is_sampled_too(
    number: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Folded logits equal the unfolded ones for a defense on the embedding with a new attack adapter."""
    bare = candidate(folders["qwen2"]).load()
    made = peft.get_peft_model(bare.network, peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    draw = torch.Generator().manual_seed(0)
    for at, p in made.named_parameters():
        if "lora_embedding_" in at or "lora_B" in at:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=draw))
    made.save_pretrained(tmp_path, save_embedding_layers=False)
    model = candidate(folders["qwen2"]).load()
    without = logits_of(model)
    model.merge_from(tmp_path)
    model.attach(LoRA(r=4), 0)
    embedding = model.network.get_input_embeddings()
    embedding.get_base_layer().to(number)
    embedding.register_forward_hook(lambda _module, _given, came: came.float())
    expected = logits_of(model)
    assert float((expected - without).abs().max()) > 0.1
    with model.folded():
        assert torch.allclose(logits_of(model), expected, atol=1e-3)
    assert torch.equal(logits_of(model), expected)


def test_evaluation_leaves_the_weights_as_training_reads_them(folders: dict[str, Path]) -> None:
    """Logits are equal before and after an evaluation, in both modes, although some CPUs repack weights for evaluation."""
    model = candidate(folders["qwen2"]).load()
    model.attach(LoRA(r=4), 0)
    model.network.train()
    before = logits_of(model)
    model.complete(PROMPTS, n=2, temperature=1.0, max_tokens=4)
    assert torch.equal(logits_of(model), before)
    model.network.eval()
    assert torch.equal(logits_of(model), before)


# -------------------------------------------------------------------------------------------------------------- complete run


def a_session(folder: Path, model: Path, *changes: str, quantise: str | None = "nf4") -> tuple[RunSession, Suite, AttackRecipe]:
    overrides = (
        *("attack.steps=4", "attack.control_steps=2", "attack.group_size=4", "defenses.quick.steps=2"),
        *(
            "defenses.quick.group_size=4",
            "policy.checkpoint_every=2",
            "policy.probe_samples=2",
            "policy.max_completion_tokens=12",
        ),
        *changes,
    )
    suite = load_suite(write_suite(folder / "demo"), overrides)
    judge = f"rules:{RULES}"
    options = Options(
        model=str(model),
        defense="quick",
        judge=judge,
        reward_judge=judge,
        tier="smoke",
        overrides=overrides,
        base=folder,
        quantise=quantise,
    )
    (recipe,) = suite.tier_attacks("smoke")
    return RunSession(options, folder / "run", Store(folder / "store"), lambda _: None), suite, recipe


def test_a_complete_run_in_four_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    """A complete run in 4 bits finishes, its records name the quantisation, and its memory plan is for qlora."""
    session, suite, recipe = a_session(tmp_path, folders["qwen2"])
    check_training(session, suite)
    plan = session.limits.largest(suite)
    assert plan is not None
    assert plan.work.form == "qlora"
    kinds: tuple[CaseKind, ...] = ("candidate", "control", "defense", "attack", "helpfulness")
    records = {kind: session.case(kind, suite, recipe if kind in ("control", "attack") else None).record for kind in kinds}
    outcomes = {kind: record.verdict.outcome for kind, record in records.items()}
    assert outcomes == {kind: "FAIL" if kind == "defense" else "INCONCLUSIVE" for kind in kinds}
    assert "control_did_not_break" in [r.code for r in records["attack"].verdict.reasons]
    said = f"nf4 by bitsandbytes {bitsandbytes.__version__}"
    plain = candidate(folders["qwen2"], None)
    for record in records.values():
        assert record.identity.candidate["quantised"] == said
        assert record.identity.candidate["digest"] not in (plain.digest, None)
        named = f"quick on weights in {said}" if record.evidence.kind not in ("candidate", "control") else "none"
        assert record.evidence.subject == named
    # An adapter trained on 4-bit weights fits only them.
    adapter = session.defended(suite).adapter
    assert adapter is not None
    check_adapter(adapter, candidate(folders["qwen2"]))
    with pytest.raises(CandidateError, match="an adapter must be made for the candidate"):
        check_adapter(adapter, plain)


@pytest.mark.parametrize("change", ["attack.form=full", "attack.beta=0.1", "defenses.quick.form=full"])
def test_what_four_bit_weights_cannot_do_is_refused(folders: dict[str, Path], tmp_path: Path, change: str) -> None:
    """Training all weights, and a KL penalty, are refused with a remedy before training, but only for 4-bit weights."""
    session, suite, _ = a_session(tmp_path / "a", folders["qwen2"], change)
    with pytest.raises(
        RecipeError, match=r"got form=.* beta=.* with --rn-quantise nf4; take form=lora and beta=0, or leave it out"
    ):
        check_training(session, suite)
    session, suite, _ = a_session(tmp_path / "b", folders["qwen2"], change, quantise=None)
    check_training(session, suite)
