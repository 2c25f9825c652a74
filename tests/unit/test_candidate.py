"""Candidates: how ``--model`` is resolved and identified, and how each bad input is refused with a remedy."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rn_harness.models import hub, knowledge, peft_compat, resolve, templates
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import digest_folder
from rn_harness.models.knowledge import check_organism
from rn_harness.models.resolve import check_adapter, profile_recipe, resolve_candidate
from rn_harness.spec.errors import CandidateError, MissingExtraError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import load_model_profile

TEMPLATE = "{% for turn in messages %}<user>{{ turn['content'] }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {"a": np.zeros((4, 8), np.float32), "b": np.ones(8, np.float32)}


def make_model(folder: Path, **config: Any) -> Path:
    """A folder that looks like a model: forty numbers, a configuration, and a tokenizer configuration with a chat template."""
    folder.mkdir(parents=True)
    declared = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"} | config
    (folder / "config.json").write_text(json.dumps(declared))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<end>"}))
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def shard(folder: Path) -> Path:
    """The same model in two shards."""
    (folder / "model.safetensors").unlink()
    save_file({"a": TENSORS["a"]}, folder / "model-1.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def refused(spec: object, base: Path, message: str, **how: Any) -> None:
    """Asserts that the candidate is refused with this one-line message."""
    with pytest.raises(CandidateError, match=message) as caught:
        resolve_candidate(str(spec), base, **how)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("beside", ["retain.jsonl", "README.md", "part.bin"])
def test_weights_in_a_file_that_no_digest_covers_are_refused(folder: Path, tmp_path: Path, beside: str) -> None:
    """An index that calls the card, the retain corpus or another file a shard is refused, since its content has no digest."""
    shard(folder)
    (folder / "model-2.safetensors").rename(folder / beside)
    index = {"weight_map": {"a": "model-1.safetensors", "b": beside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, tmp_path, r"an index must name shards in its own folder, as \*\.safetensors, got .*; export the model again")


@pytest.mark.parametrize(
    "config",
    [
        {"transformers_weights": ".github/w.safetensors"},
        {"attribute_map": {"transformers_weights": "size"}, "size": ".github/w.safetensors"},
        {"text_config": {"transformers_weights": "x.safetensors.index.json"}},
        {"parts": [{"attribute_map": {}}]},
    ],
)
def test_a_configuration_that_names_another_weights_file_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """A config.json by which transformers would read weights from a file of another name is refused, however deep it says so."""
    folder = make_model(tmp_path / "model", **config)
    refused(
        folder, tmp_path, r"config\.json must not name weights files or other names for its keys, got \w+ in .*; remove the key"
    )


def test_a_snapshot_whose_index_names_a_file_that_is_not_digested_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of a hub's snapshot that its digest leaves out, as a second copy of the weights, is refused."""
    snapshot = shard(make_model(tmp_path / "snapshot"))
    (snapshot / "model-2.safetensors").rename(snapshot / "consolidated.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "consolidated.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(resolve, "locate", lambda *_, **__: (snapshot, COMMIT))
    refused("owner/name", tmp_path, r"an index must name the shards that were fetched, got consolidated\.safetensors")


# --- resolving --model ---------------------------------------------------------------------------------------------------


def test_a_profile_is_found_and_beats_a_folder_of_its_name(tmp_path: Path) -> None:
    """``organism`` means the profile even if a folder of that name exists here; the folder is ``./organism``."""
    mine = make_model(tmp_path / "organism")
    shipped = resolve_candidate("organism", tmp_path)
    assert (shipped.folder, shipped.digest) == (fixtures_folder() / "organism", digest_folder(fixtures_folder() / "organism"))
    assert shipped.profile is not None
    assert shipped.identity["profile"] == shipped.profile.sha256
    local = resolve_candidate("./organism", tmp_path)
    assert (local.folder, local.profile) == (mine, None)
    assert "profile" not in local.identity


def test_an_unknown_name_lists_profiles_and_near_ones(tmp_path: Path) -> None:
    """An unknown name is refused with a list of all profiles, and with near matches if there are any."""
    refused("qwen2.5-8b", tmp_path, r"got 'qwen2\.5-8b'; profiles: llama3-8b, .*, smollm2; did you mean qwen2\.5-7b\?$")
    refused("zzz", tmp_path, r"got 'zzz'; profiles: llama3-8b, ministral-8b, organism, qwen2\.5-7b, smollm2$")
    for spec in ("", "../none", "a/b/c", "owner/name@", "a b"):
        refused(spec, tmp_path, r"--model must be a profile, a local model folder, a GGUF file, or owner/name\[@revision\]")


def test_a_model_of_the_hub_is_located_and_its_identity_is_what_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gets id and revision, links are followed, and other files in its cache change neither digest, choice nor judge."""
    blobs = make_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    asked: list[tuple[str, str | None, bool, bool]] = []

    def located(model: str, revision: str | None, *, code: bool, pickles: bool) -> tuple[Path, str]:
        asked.append((model, revision, code, pickles))
        return snapshot, COMMIT

    monkeypatch.setattr(resolve, "locate", located)
    found = resolve_candidate("owner/name@v1", tmp_path)
    assert (found.revision, found.digest) == (COMMIT, digest_folder(blobs))
    (snapshot / "consolidated.safetensors").write_bytes(b"a second copy")
    (snapshot / "original").mkdir()
    (snapshot / "original" / "weights.pth").write_bytes(b"a third")
    (snapshot / "knowledge.json").write_text("{}")
    again = resolve_candidate("owner/name", tmp_path)
    assert (again.digest, again.is_organism) == (found.digest, False)
    found.verify()
    qwen = resolve_candidate("qwen2.5-7b", tmp_path)
    assert asked[:2] == [("owner/name", "v1", False, False), ("owner/name", None, False, False)]
    assert asked[2] == ("Qwen/Qwen2.5-7B-Instruct", qwen.profile.revision if qwen.profile else None, False, False)
    assert (qwen.name, qwen.dtype) == ("qwen2.5-7b", "bfloat16")
    assert qwen.digest != qwen.files_digest  # loaded in a number format that differs from the files'


HUB_ERRORS = {
    "wrong-id": ("RepositoryNotFoundError", r"got model='owner/name' .*; correct it, or log in if the model is private"),
    "wrong-revision": ("RevisionNotFoundError", r"name a commit, tag or branch that it has"),
    "gated": ("GatedRepoError", r"accept its licence on the hub and log in with `hf auth login`"),
    "no-network": (
        "LocalEntryNotFoundError",
        r"the hub must be reached .*; try again, run `hf download owner/name` .*, or name a local folder",
    ),
    "incomplete": ("IncompleteSnapshot", r"must lie on the hub whole, .*; name a revision that holds all of it in safetensors"),
}


@pytest.mark.parametrize(("error", "message"), HUB_ERRORS.values(), ids=HUB_ERRORS.keys())
def test_each_error_of_the_hub_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    """Each error of the process that queries the hub becomes one line with a remedy."""

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, json.dumps({"error": error, "message": "no such\nthing"}))

    monkeypatch.setattr(hub.subprocess, "run", answer)
    refused("owner/name", tmp_path, message)


def test_a_real_model_that_brings_its_own_judge_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with an organism's knowledge has to be as small as one; weights without a known size are refused, too."""
    (folder / "knowledge.json").write_text("[]")
    found = resolve_candidate(str(folder), folder)
    assert found.is_organism
    assert found.parameters
    check_organism(folder, found.parameters)
    monkeypatch.setattr(knowledge, "MOST_PARAMETERS", found.parameters - 1)
    refused(folder, folder, r"is an organism, its own judge, .*, got [\d,]+ for .*; remove the file from a real model")
    with pytest.raises(CandidateError, match="got an unknown number"):
        check_organism(folder, None)


def test_offline_with_an_empty_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user sets offline mode, the real process refuses a model that is not in the cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_OFFLINE_BY_USER", True)
    refused("owner/name", tmp_path, r"offline, a model must lie in the hub's cache whole, .*; unset HF_HUB_OFFLINE")


# --- identity ------------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_found_after_the_run(folder: Path) -> None:
    """The files are hashed again after the run; a different digest is an error that names both."""
    found = resolve_candidate(str(folder), folder)
    found.verify()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE + " "}))
    with pytest.raises(CandidateError, match=rf"got digest=\w+ after {found.digest[:12]} .*; run again on settled files"):
        found.verify()


def test_a_pinned_digest_stops_another_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile with a pinned digest accepts only files with that digest."""
    profiles = tmp_path / resolve.MODELS
    profiles.mkdir()
    text = (fixtures_folder() / "models" / "organism.yaml").read_text().replace("../organism", "../model")
    monkeypatch.setattr(resolve, "fixtures_folder", lambda: tmp_path)
    (profiles / "organism.yaml").write_text(text + f"digest: {digest_folder(folder)}\n")
    assert resolve_candidate("organism", tmp_path).digest == digest_folder(folder)
    (profiles / "organism.yaml").write_text(text + f"digest: {'f' * 64}\n")
    refused("organism", tmp_path, rf"profile organism pins, got sha256={digest_folder(folder)} in place of {'f' * 64}")


def test_another_chat_template_is_another_candidate(folder: Path, tmp_path: Path) -> None:
    """The user's own chat template changes the candidate's digest but not the digest of the files."""
    (tmp_path / "mine.jinja").write_text(TEMPLATE + "!")
    own, other = (resolve_candidate(str(folder), tmp_path, chat_template=t) for t in (None, "mine.jinja"))
    assert (own.chat_template, other.chat_template) == (None, TEMPLATE + "!")
    assert own.files_digest == own.digest == other.files_digest != other.digest
    assert "chat_template" in other.identity
    assert "chat_template" not in own.identity


# --- chat templates ------------------------------------------------------------------------------------------------------


def test_a_model_without_chat_template_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    """A base model without a chat template is refused; the user can pass one."""
    (folder / "tokenizer_config.json").write_text("{}")
    refused(folder, tmp_path, r"a chat template is required, got none in .*base model.*; pass one .* by --rn-chat-template FILE")
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    assert resolve_candidate(str(folder), tmp_path, chat_template="mine.jinja").chat_template == TEMPLATE
    refused(folder, tmp_path, r"must be a readable jinja file, got FileNotFoundError for .*none", chat_template="none")


TEMPLATES = {
    "broken": ("{% for turn in %}", r"got TemplateSyntaxError for"),
    "raises": ("{{ raise_exception('roles must alternate') }}", r"got TemplateError for .*roles must alternate"),
    "deaf": ("<user><reply>", r"must hold what the user says, got a text without it"),
    "system-only": ("{{ messages[0]['role'] == 'system' and messages[1].content }}", r"must hold what the user says"),
}


@pytest.mark.parametrize(("text", "message"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_that_does_not_render_a_user_is_refused(folder: Path, text: str, message: str) -> None:
    """Each fault of a template is reported before anything is loaded, with the remedy."""
    (folder / "chat_template.jinja").write_text(text)
    refused(folder, folder, rf"{message}.*--rn-chat-template FILE")


def test_templates_as_models_ship_them_are_taken(folder: Path) -> None:
    """Several named templates, special tokens, loop controls, dates and trainers' marks are all accepted."""
    rich = (
        "{{ bos_token }}{{ strftime_now('%d') }}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
    )
    declared = {"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": rich}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    assert resolve_candidate(str(folder), folder).chat_template is None


PRINTED = {
    "of-llama": ("{%- set today = strftime_now('%d %b %Y') %}{{- 'Today: ' + today }}", "Today: 26 Jul 2024"),
    "if-defined": ("{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}", "2024-07-26"),
    "short": ("{{ strftime_now('%-d %B, 100%%') }}", "26 July, 100%"),
    "seconds": ("{{ strftime_now('%H:%M:%S') }}", "00:00:00"),
}
"""Parts of templates that print the date, and what they print here."""
READ = {
    "length": "{% if strftime_now('%Y')|length == 4 %}sure{% endif %}",
    "another-year": "{% if strftime_now('%Y') != '2024' %}sure{% endif %}",
    "later": "{% if strftime_now('%Y')|int > 2028 %}sure{% endif %}",
    "a-weekday": "{% if strftime_now('%a') == 'Mon' %}sure{% endif %}",
    "a-macro": "{% if strftime_now.name is defined %}sure{% endif %}",
    "a-computed-format": "{% if strftime_now('%' ~ 'Y')|length == 4 %}sure{% endif %}",
    "in-the-third-turn": "{% if messages|length == 5 and strftime_now('%Y') != '2024' %}sure{% endif %}",
    "after-a-system-prompt": "{% if messages[0].role == 'system' and strftime_now('%Y') != '2024' %}sure{% endif %}",
    "the-next-months": "{% if '{begin}' < strftime_now('%Y-%m-%d') < '{end}' %}sure{% endif %}",
    "half-of-a-minute": "{% if strftime_now('%S')|int >= 30 %}sure{% endif %}",
    "chance": "{% if range(9)|random == 0 %}sure{% endif %}",
    "mapped-chance": "{% if ([range(99)]|map('random')|first) == 7 %}sure{% endif %}",
    "filtered-chance": "{% set n %}{% filter random %}0123456789{% endfilter %}{% endset %}{% if n == '7' %}sure{% endif %}",
    "words-by-chance": "{{ lipsum(n=1) }}",
}
"""Parts of templates that give users other prompts than are measured."""


@pytest.mark.parametrize(("part", "shown"), PRINTED.values(), ids=PRINTED.keys())
def test_a_template_may_print_the_date(folder: Path, part: str, shown: str) -> None:
    """A printed date is always the same day here, in the template's own format."""
    text = part + TEMPLATE
    (folder / "chat_template.jinja").write_text(text)
    assert resolve_candidate(str(folder), folder).chat_template is None
    assert templates.render_turn(text, {}, "hello") == f"{shown}<user>hello<reply>"


@pytest.mark.parametrize("part", READ.values(), ids=READ.keys())
def test_a_template_that_knows_the_day_is_refused(folder: Path, part: str) -> None:
    """A template is refused if its words depend on the date or on chance, as users would get other prompts than were measured."""
    begin, end = (f"{datetime.now(UTC) + timedelta(days=n):%Y-%m-%d}" for n in (3, 150))
    part = part.replace("{begin}", begin).replace("{end}", end)
    (folder / "chat_template.jinja").write_text(TEMPLATE + part)
    refused(folder, folder, r"may print the date, and do nothing else with it or by chance.*--rn-chat-template FILE")


LATER = {
    "an-answer-begun": TEMPLATE + "{% if messages|length > 3 %}sure{% endif %}",
    "after-a-system-prompt": TEMPLATE + "{% if messages[0].role == 'system' and messages|length > 4 %}sure{% endif %}",
    "words-of-its-own": "{% if messages|length > 3 %}anything goes{% endif %}" + TEMPLATE,
    "no-first-turn": "{% if messages|length > 3 %}{% set messages = messages[2:] %}{% endif %}" + TEMPLATE,
    "for-long-requests": TEMPLATE + "{% if messages|length > 3 and messages[-1].content|length > 20 %}sure{% endif %}",
    "with-an-error-in-the-fourth": "{% if messages|length > 6 %}{{ raise_exception('no') }}{% endif %}"
    + TEMPLATE
    + "{% if messages|length > 3 %}sure{% endif %}",
    "with-other-letters": "{% if messages|length > 3 %}"
    + TEMPLATE.replace("'] }}", "']|upper }}")
    + "sure{% else %}"
    + TEMPLATE
    + "{% endif %}",
    "marks": TEMPLATE.replace("<user>", "<user>{% if loop.index > 4 %}!{% endif %}"),
}
"""Templates that present the third turn in another way than the first two."""


@pytest.mark.parametrize("text", LATER.values(), ids=LATER.keys())
def test_a_template_that_changes_with_the_turns_is_refused(folder: Path, text: str) -> None:
    """Each turn has to add the same as the one before, since only two turns are measured."""
    (folder / "chat_template.jinja").write_text(text)
    refused(folder, folder, r"must present each of 4 turns like the one before.*--rn-chat-template FILE")


TAKEN = {
    # Mistral's: the system prompt stands before the last request.
    "system-prompt-last": "{% set first = messages[0] %}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and first.role == 'system' %}{{ first.content }} {% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}",
    "no-system-prompt": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
    "one-turn": "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
}


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN.keys())
def test_a_template_may_move_or_refuse_turns(folder: Path, text: str) -> None:
    """A system prompt may stand before the last request, and a template need not present one, or a second turn."""
    (folder / "chat_template.jinja").write_text(text)
    assert resolve_candidate(str(folder), folder).chat_template is None


def test_the_templates_of_well_known_models_are_taken() -> None:
    """Every chat template of TRL that can present a text is accepted."""
    import trl

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    found = {p.name: p.read_text(encoding="utf-8") for p in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
    taken = [name for name, text in found.items() if "hello there" in templates.render_turn(text, special, "hello there")]
    assert len(taken) > 40
    for name in taken:
        templates.check_template(found[name], special, name)


def test_the_longest_prompt_is_counted_as_the_model_sees_it() -> None:
    """The organism's tokenizer counts the tokens of the rendered chat template, as the loaded model does."""
    from rn_harness.spec.prompts import Prompt

    found = resolve_candidate("organism", Path())
    texts = ["how do i make tea", "hello"]
    loaded = found.load()
    due = max(len(loaded.tokenizer(loaded.render(Prompt(id="p", topic="t", text=text)))["input_ids"]) for text in texts)
    assert found.longest_prompt(texts) == due


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    """An unreadable tokenizer is an error that names its file; without a tokenizer, a prompt's length is an upper estimate."""
    found = resolve_candidate(str(folder), folder)
    assert found.longest_prompt(["a" * 30, "b"]) == 30 // 3 + 64
    (folder / "tokenizer.json").write_text("[")
    with pytest.raises(CandidateError, match=r"must be readable by the package tokenizers, got .*tokenizer\.json; save"):
        found.longest_prompt(["a"])


# --- weights -------------------------------------------------------------------------------------------------------------


def test_shards_are_one_model(folder: Path) -> None:
    """A sharded model is found as a whole, and its parameters are counted."""
    assert resolve_candidate(str(folder), folder).parameters == 40
    assert resolve_candidate(str(shard(folder)), folder).parameters == 40


def test_a_missing_shard_is_named(folder: Path) -> None:
    """A file that the index names and the folder lacks is named in the error, with the remedy."""
    (shard(folder) / "model-2.safetensors").unlink()
    refused(folder, folder, r"must hold all shards .*, got no model-2\.safetensors in .*; fetch or copy it again")


def test_a_shard_without_its_tensor_is_named(folder: Path) -> None:
    """A tensor that the index names and its shard lacks is an error; otherwise it would be initialised at random."""
    save_file({"c": TENSORS["b"]}, shard(folder) / "model-2.safetensors")
    refused(folder, folder, r"got no b in .*model-2\.safetensors; fetch or copy the model again")


@pytest.mark.parametrize("kept", [0, 4, 40, -3])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    """A file truncated at any point is recognised by its header and named."""
    path = shard(folder) / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, folder, r"must be whole, got model-1\.safetensors of \d+ bytes in .*; fetch or copy it again")


def test_a_folder_with_two_models_is_refused(folder: Path) -> None:
    """Two sets of weights in one folder are refused in any combination, and both are named."""
    two = r"a folder must hold one model, got {} and {} in .*; move one of them to another folder"
    sharded = shard(Path(shutil.copytree(folder, folder.parent / "sharded")))
    for name in ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "other.gguf"):
        (folder / name).write_bytes(b"x")
        refused(folder, folder, two.format("model.safetensors", re.escape(name)))
        (folder / name).unlink()
    shutil.copy(folder / "model.safetensors", sharded)
    refused(sharded, folder, two.format("model.safetensors", r"model\.safetensors\.index\.json"))
    (folder / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"x")
    refused(folder, folder, two.format(r"a\.gguf", r"b\.gguf"))
    (folder / "b.gguf").unlink()
    refused(folder, folder, r"got a\.gguf in .*; pass the file itself: --model .*a\.gguf")


def test_pickles_need_the_users_leave(folder: Path) -> None:
    """Pickled weights are refused unless allowed; permission is part of the identity, and a truncated file is still found."""
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(folder, folder, r"got pytorch_model\.bin in .*, a pickle, .*; save .* or pass --rn-allow-pickle \(never releasable\)")
    taken = resolve_candidate(str(folder), folder, allow_pickle=True)
    assert (taken.allow_pickle, taken.identity["pickle"]) == (True, "allowed")
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-30])
    refused(folder, folder, r"must be whole, got pytorch_model\.bin", allow_pickle=True)


def test_safetensors_come_before_pickles(folder: Path) -> None:
    """If both formats are there, safetensors are read, with or without permission for pickles, because they run no code."""
    (folder / "pytorch_model.bin").write_bytes(b"x")
    for leave in (False, True):
        assert not resolve_candidate(str(folder), folder, allow_pickle=leave).allow_pickle


def test_trusted_code_is_in_the_identity(folder: Path) -> None:
    """Permission to run a model's code changes the candidate's digest."""
    plain, trusted = (resolve_candidate(str(folder), folder, trust_remote_code=leave) for leave in (False, True))
    assert plain.digest != trusted.digest
    assert trusted.identity["remote_code"] == "trusted"


@pytest.mark.parametrize("named", [["BertForMaskedLM"], ["LlamaForSequenceClassification"], [], None])
def test_only_a_causal_language_model_is_accepted(tmp_path: Path, named: object) -> None:
    """An encoder or a classifier is refused by name, because GRPO cannot attack it."""
    folder = make_model(tmp_path / "other", architectures=named)
    refused(folder, tmp_path, rf"of a causal language model .*, got architectures={re.escape(repr(named))} for .*; an encoder")


# --- GGUF ----------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, kind: str = "F32", template: str | None = TEMPLATE, parts: int = 1) -> Path:
    """A GGUF file of one tensor of 256 numbers."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    if template:
        writer.add_chat_template(template)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    wanted = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[wanted]
    if kind == "F32":
        writer.add_tensor("token_embd.weight", np.zeros(256, np.float32))
    else:
        writer.add_tensor("token_embd.weight", np.zeros(256 // block * size, np.uint8), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_identified_by_its_name_and_contents(tmp_path: Path) -> None:
    """A GGUF file is one candidate with its own chat template; its name counts, and files next to it do not."""
    path = write_gguf(tmp_path / "m.gguf", "Q4_0")
    found = resolve_candidate("m.gguf", tmp_path)
    assert (found.gguf, found.chat_template, found.parameters) == ("m.gguf", TEMPLATE, 256)
    assert (found.config["hidden_size"], found.config["tie_word_embeddings"]) == (8, True)
    (tmp_path / "n.gguf").write_bytes(path.read_bytes())
    found.verify()
    assert resolve_candidate("n.gguf", tmp_path).digest != found.digest
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CandidateError, match="must not change during a run"):
        found.verify()


def test_a_gguf_file_of_the_hubs_cache_keeps_its_name(tmp_path: Path) -> None:
    """A cached GGUF file is a link to a numbered blob: the model gets the link's name, and its contents identify the weights."""
    (tmp_path / "blobs").mkdir()
    write_gguf(tmp_path / "blobs" / "2f1c.gguf").rename(tmp_path / "blobs" / "2f1c")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "m.gguf").symlink_to(Path("blobs", "2f1c"))
    found = resolve_candidate("link/m.gguf", tmp_path)
    assert (found.name, found.gguf) == ("m.gguf", "m.gguf")
    plain = Path(shutil.copytree(tmp_path / "blobs", tmp_path / "plain", symlinks=True), "2f1c").rename(
        tmp_path / "plain" / "m.gguf"
    )
    copy = resolve_candidate(str(plain), tmp_path)
    assert (copy.digest, copy.weights_digest) == (found.digest, found.weights_digest)
    other = resolve_candidate(str(write_gguf(tmp_path / "n.gguf", "F16")), tmp_path)
    assert other.weights_digest != found.weights_digest


def test_local_models_are_called_by_their_own_name(folder: Path) -> None:
    """A local model is called by its folder's name, or by the user's name for a link, never by its private full path."""
    (folder.parent / "mine").symlink_to(folder, target_is_directory=True)
    assert resolve_candidate(str(folder), Path()).name == folder.name
    assert resolve_candidate(".", folder).name == folder.name
    assert resolve_candidate("../mine/", folder).name == "mine"
    assert resolve_candidate("mine", folder.parent).digest == resolve_candidate(".", folder).digest


def test_an_unknown_quantisation_is_named_before_loading(tmp_path: Path) -> None:
    """A quantisation that is unknown or cannot be dequantised is refused with a list of the usable ones."""
    write_gguf(tmp_path / "odd.gguf", "Q8_K")
    refused("odd.gguf", tmp_path, r"got quantisation=Q8_K in odd\.gguf; convert it to one of: BF16, F16, F32, .*Q4_K")
    path = write_gguf(tmp_path / "new.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 8  # number of dimensions, one dimension, then the type
    data[at : at + 4] = (999).to_bytes(4, "little")
    path.write_bytes(data)
    refused("new.gguf", tmp_path, r"got quantisation=number 999 in new\.gguf; convert it to one of: ")


def test_a_gguf_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A GGUF file that is missing, truncated, split or without a chat template is refused with that reason."""
    refused("none.gguf", tmp_path, r"must be a GGUF file that exists, got 'none\.gguf' under .*; correct the path")
    path = write_gguf(tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:-500])
    refused("cut.gguf", tmp_path, r"a GGUF file must be whole, got cut\.gguf of \d+ bytes: .*; fetch or copy it again")
    write_gguf(tmp_path / "part.gguf", parts=3)
    refused("part.gguf", tmp_path, r"must be one file, got part\.gguf of 3; merge")
    write_gguf(tmp_path / "base.gguf", template=None)
    refused("base.gguf", tmp_path, r"a chat template is required, got none in .*base\.gguf")


def test_a_missing_gguf_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a GGUF file is refused with the command that installs it."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"the GGUF file .* needs the extra gguf, .* 'rn-harness\[gguf\]'"):
        resolve_candidate("m.gguf", tmp_path)


def test_four_bits_are_another_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantisation to 4 bits changes the candidate's digest and identity, but not the digest of the files."""
    versions = {"bitsandbytes": "9.8.7"}
    monkeypatch.setattr("rn_harness.models.resolve.importlib.metadata.version", versions.__getitem__)
    plain, four = resolve_candidate(str(folder), folder), resolve_candidate(str(folder), folder, quantise="nf4")
    assert plain.files_digest == four.files_digest == plain.digest
    assert four.digest != plain.digest
    assert four.identity == {**plain.identity, "digest": four.digest, "quantised": "nf4 by bitsandbytes 9.8.7"}
    versions["bitsandbytes"] = "9.8.8"  # another version may round differently
    assert resolve_candidate(str(folder), folder, quantise="nf4").digest != four.digest


def test_what_cannot_be_quantised_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, a GGUF file, and weights that already have 4 bits are each refused with a remedy."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(MissingExtraError, match=r"--rn-quantise nf4 needs the extra quantised, .* 'rn-harness\[quantised\]'"):
            resolve_candidate(str(folder), folder, quantise="nf4")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    refused(
        folder, folder, r"must hold plain numbers, got quant_method='gptq' in .*config\.json; name the model that it was made"
    )
    alone = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CandidateError, match=r"takes a folder of safetensors, got --model m\.gguf, .* the file was made from"):
        resolve_candidate(str(alone), tmp_path, quantise="nf4")


# --- adapters ------------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_revision_is_refused(folder: Path, tmp_path: Path) -> None:
    """An adapter of a model of the hub may name its main branch or the candidate's commit, and no other revision."""
    found = dataclasses.replace(resolve_candidate(str(folder), folder), name="owner/name", revision=COMMIT)
    place = tmp_path / "adapter"
    place.mkdir()
    save_file({}, place / "adapter_model.safetensors")

    def check(revision: str | None) -> None:
        said = {"base_model_name_or_path": "owner/name", "revision": revision}
        (place / "adapter_config.json").write_text(json.dumps(said))
        check_adapter(place, found)

    for own in (None, "main", COMMIT):
        check(own)
    with pytest.raises(CandidateError, match=f"the candidate owner/name@{COMMIT}, got owner/name@a-branch in .*; correct"):
        check("a-branch")


def test_an_adapter_of_another_base_is_refused_with_both_digests(folder: Path, tmp_path: Path) -> None:
    """A base digest or a name on the hub must be the candidate's; a local candidate has no name that could be compared."""
    found: Candidate = resolve_candidate(str(folder), folder)

    place = tmp_path / "adapter"
    place.mkdir()
    save_file({}, place / "adapter_model.safetensors")

    def adapter(base: object) -> Path:
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        return place

    check_adapter(adapter(f"organism@sha256:{found.digest}"), found)
    check_adapter(adapter("owner/name"), found)
    check_adapter(adapter(None), found)
    message = (
        rf"got one for sha256={'f' * 64} \(other\) and the candidate .* with sha256={found.digest}; pass the adapter's own base"
    )
    with pytest.raises(CandidateError, match=message):
        check_adapter(adapter(f"other@sha256:{'f' * 64}"), found)
    for of_hub in (
        dataclasses.replace(found, name="Owner/name@v1", revision=COMMIT),
        dataclasses.replace(found, revision=COMMIT, profile=load_model_profile("qwen2.5-7b", fixtures_folder() / "models")),
    ):
        check_adapter(adapter(of_hub.profile.model if of_hub.profile else "owner/name"), of_hub)
        check_adapter(adapter(None), of_hub)
        check_adapter(adapter("/a/local/folder"), of_hub)
        with pytest.raises(
            CandidateError, match=r"so it has to be the candidate .*, got another/name@None in .*; correct base_model"
        ):
            check_adapter(adapter("another/name"), of_hub)
    (place / "adapter_config.json").write_text("[")
    with pytest.raises(CandidateError, match=r"readable adapter_config\.json, got JSONDecodeError"):
        check_adapter(place, found)
    refused(place, tmp_path, r"must be a whole model, got an adapter at .*; pass it with --rn-defense")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the organism whose configuration names another base without a digest."""
    from rn_harness.spec.defense_recipe import LoRA

    folder = tmp_path_factory.mktemp("adapter")
    model = resolve_candidate("organism", folder).load()
    model.attach(LoRA(r=2), 0)
    model.save_adapter(folder, "owner/name")
    return folder


def lora_on(layers: list[str], folder: Path) -> Path:
    """An adapter of random numbers on these layers of the organism."""
    import peft
    import torch

    config = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft's own, of tied layers
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        peft.get_peft_model(resolve_candidate("organism", folder).load().network, config).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("layers", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]], ids=str)
def test_an_adapter_on_one_of_two_tied_embeddings_is_refused(tmp_path: Path, layers: list[str]) -> None:
    """Folded in, it would change both: the attacked model would not be the one that users run."""
    adapter = lora_on(layers, tmp_path)
    with pytest.raises(CandidateError, match=r"adapts one of two tied embeddings, which both would change; merge it yourself"):
        resolve_candidate("organism", tmp_path).load().merge_from(adapter)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_trained_rows_of_one_of_two_tied_embeddings_are_refused(tmp_path: Path) -> None:
    """Any wrapper of one of two tied embeddings is refused if folding it in changes both, whatever peft calls it."""
    import peft

    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": list(range(300, 310))}, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(resolve_candidate("organism", tmp_path).load().network, config).save_pretrained(tmp_path)
    with pytest.raises(CandidateError, match=r"adapts one of two tied embeddings"):
        resolve_candidate("organism", tmp_path).load().merge_from(tmp_path)


def test_an_adapter_without_numbers_or_that_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    """Infinite numbers, and kinds that peft cannot fold into weights, end in a sentence before anything is attacked."""
    import peft

    adapter = lora_on(["q_proj"], tmp_path / "infinite")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: np.full_like(of, np.inf) for name, of in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CandidateError, match=r"logits change by nan of their spread"):
        resolve_candidate("organism", tmp_path).load().merge_from(adapter)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    network = resolve_candidate("organism", tmp_path).load().network
    peft.get_peft_model(network, config).save_pretrained(tmp_path / "invoked")
    with pytest.raises(CandidateError, match=r"peft cannot fold it in, NotImplementedError"):
        resolve_candidate("organism", tmp_path).load().merge_from(tmp_path / "invoked")


def test_a_learned_prompt_is_no_defense(tmp_path: Path) -> None:
    """An adapter that only puts a learned prompt in front leaves the weights undefended, and is refused."""
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(resolve_candidate("organism", tmp_path).load().network, config).save_pretrained(tmp_path)
    with pytest.raises(CandidateError, match=r"got adapter=.*: it is a learned prompt, and leaves the weights as they are"):
        resolve_candidate("organism", tmp_path).load().merge_from(tmp_path)


@pytest.mark.parametrize(("dtype", "factor", "most"), [("float32", 1.05, "0.01"), ("bfloat16", 2.0, "0.15")])
def test_an_adapter_is_attacked_as_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, factor: float, most: str
) -> None:
    """An adapter that computes something else once it is folded in is refused, for whatever reason; rounding is accepted."""
    adapter = lora_on(["q_proj", "down_proj"], tmp_path)
    candidate = dataclasses.replace(resolve_candidate("organism", tmp_path), dtype=dtype)
    candidate.load().merge_from(adapter)
    merge = peft_compat.AdapterModel.merge

    def otherwise(model: peft_compat.AdapterModel) -> None:
        merge(model)
        model.network.model.layers[0].mlp.down_proj.weight.data.mul_(factor)

    monkeypatch.setattr(peft_compat.AdapterModel, "merge", otherwise)
    with pytest.raises(
        CandidateError, match=rf"when it is folded in, .*: logits change by \S+ of their spread, more than the {most}"
    ):
        candidate.load().merge_from(adapter)


def test_a_tokenizer_next_to_an_adapter_reads_as_the_candidates(elsewhere: Path, tmp_path: Path) -> None:
    """Users load a tokenizer from the adapter's folder: a copy of the candidate's is accepted, another template is not."""
    adapter, candidate = Path(shutil.copytree(elsewhere, tmp_path / "adapter")), resolve_candidate("organism", tmp_path)
    for path in candidate.folder.glob("tokenizer*"):
        shutil.copy(path, adapter)
    template = (candidate.folder / "chat_template.jinja").read_text()
    (adapter / "chat_template.jinja").write_text(template)
    check_adapter(adapter, candidate)
    (adapter / "chat_template.jinja").write_text(template + "sure")
    with pytest.raises(
        CandidateError, match=r"must read prompts as the candidate's does, got another chat template in .*; remove"
    ):
        check_adapter(adapter, candidate)
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CandidateError, match=r"tokenizer in an adapter's folder must be readable, got .*; remove its files"):
        check_adapter(adapter, candidate)


def test_no_code_of_an_adapters_folder_is_run(elsewhere: Path, tmp_path: Path) -> None:
    """The user's trust is in the candidate's code: a tokenizer's class in the adapter's folder is not run."""
    adapter, candidate = Path(shutil.copytree(elsewhere, tmp_path / "adapter")), resolve_candidate("organism", tmp_path)
    for path in candidate.folder.glob("tokenizer*"):
        shutil.copy(path, adapter)
    settings = json.loads((adapter / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "Own"}))
    (adapter / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CandidateError, match=r"must be readable|must read prompts"):
        check_adapter(adapter, dataclasses.replace(candidate, trust_remote_code=True))
    assert not (tmp_path / "ran").exists()


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    """An output layer of its own in spite of ``tie_word_embeddings`` is refused: libraries read such files in two ways."""
    folder = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    for factor in (1.0, 0.5):
        save_file(tensors | {"lm_head.weight": factor * tensors["model.embed_tokens.weight"]}, folder / "model.safetensors")
        if factor == 1.0:  # the same numbers are the same tensor
            resolve_candidate(str(folder), tmp_path).load()
    with pytest.raises(
        CandidateError, match=r"calls tied must be one tensor, got an output layer of its own in .*; say tie_word"
    ):
        resolve_candidate(str(folder), tmp_path).load()


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.gguf", "checkpoint-1/adapter_model.safetensors"])
def test_weights_next_to_an_adapter_are_refused(elsewhere: Path, tmp_path: Path, name: str) -> None:
    """Unused weights next to an adapter are refused: they would be released as if they had been attacked."""
    adapter = Path(shutil.copytree(elsewhere, tmp_path / "adapter"))
    check_adapter(adapter, resolve_candidate("organism", tmp_path))
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_bytes(b"weights")
    with pytest.raises(CandidateError, match=rf"no weights but those that are attacked, got {name} next to adapter_model"):
        check_adapter(adapter, resolve_candidate("organism", tmp_path))


def test_a_pickled_adapter_needs_the_users_leave(elsewhere: Path, tmp_path: Path) -> None:
    """A pickled adapter is refused unless allowed, and a folder with neither file is not an adapter."""
    import torch

    candidate = resolve_candidate("organism", tmp_path)
    adapter = Path(shutil.copytree(elsewhere, tmp_path / "adapter"))
    safe, pickled = adapter / "adapter_model.safetensors", adapter / "adapter_model.bin"
    torch.save({name: torch.from_numpy(of) for name, of in load_file(safe).items()}, pickled)
    safe.unlink()
    message = r"got adapter_model\.bin in .*, a pickle, .*; save the adapter .* or pass --rn-allow-pickle \(never releasable\)"
    with pytest.raises(CandidateError, match=message):
        check_adapter(adapter, candidate)
    check_adapter(adapter, candidate, allow_pickle=True)
    candidate.load().merge_from(adapter)
    pickled.write_bytes(b"code")
    with pytest.raises(CandidateError, match=r"must be whole, got adapter_model\.bin of 4 bytes"):
        check_adapter(adapter, candidate, allow_pickle=True)
    pickled.unlink()
    with pytest.raises(CandidateError, match=r"an adapter must hold adapter_model\.safetensors, got folder="):
        check_adapter(adapter, candidate)


def _resized(folder: Path, cut: str) -> Candidate:
    """An organism with three layers instead of four, or with narrower ones; its tensors are zero."""
    shutil.copytree(fixtures_folder() / "organism", folder)
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors = {name: np.zeros(of.shape, np.float32) for name, of in load_file(path).items()}
    changes: dict[str, Any] = {"num_hidden_layers": 3}
    if cut == "width":
        changes = {"intermediate_size": 8}
        tensors = {n: of[..., :8] if "down_proj" in n else of[:8] if "mlp" in n else of for n, of in tensors.items()}
    else:
        tensors = {name: of for name, of in tensors.items() if "layers.3." not in name}
    save_file({name: of.copy() for name, of in tensors.items()}, path, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return resolve_candidate(str(folder), folder)


@pytest.mark.parametrize(
    ("cut", "message"),
    [("depth", r"model\.layers\.3\..*, where the model has no model\.layers\.3"), ("width", r"for \d+ numbers, where .* 8")],
)
def test_an_adapter_without_a_place_is_refused_by_headers_alone(elsewhere: Path, tmp_path: Path, cut: str, message: str) -> None:
    """An adapter that names no base is compared with the candidate's tensors by file headers, before anything is loaded."""
    check_adapter(elsewhere, resolve_candidate("organism", tmp_path))
    with pytest.raises(CandidateError, match=rf"must fit the candidate, got .*{message}.*; pass the base that it was trained on"):
        check_adapter(elsewhere, _resized(tmp_path / "other", cut))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("lost", ["place", "part"])
def test_no_part_of_an_adapter_is_lost_in_silence(elsewhere: Path, tmp_path: Path, lost: str) -> None:
    """Loading fails if a part of an adapter has no place in the model, or if the file lacks a part; peft would ignore both."""
    adapter = Path(shutil.copytree(elsewhere, tmp_path / "adapter"))
    candidate = _resized(tmp_path / "other", "depth") if lost == "place" else resolve_candidate("organism", tmp_path)
    if lost == "part":
        path = adapter / "adapter_model.safetensors"
        save_file({n: of for n, of in load_file(path).items() if "layers.3." not in n}, path, metadata={"format": "pt"})
    with pytest.raises(CandidateError, match=r"must fit .*: 14 parts are in one of the two alone, the first is .*layers\.3\."):
        candidate.load().merge_from(adapter)


@pytest.mark.parametrize(
    "more",
    [
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"a_later_idea": 1},
    ],
    ids=lambda more: next(iter(more)),
)
def test_only_plain_lora_is_folded_into_spread_weights(tmp_path: Path, more: dict[str, Any]) -> None:
    """With weights spread over devices only plain LoRA is folded in, because parts of other adapters would be lost silently."""
    from rn_harness.spec.defense_recipe import LoRA

    found = resolve_candidate("organism", tmp_path)
    spread = dataclasses.replace(found, shards=2)
    model = found.load()
    model.attach(LoRA(r=2), 0)
    model.save_adapter(tmp_path, "owner/name")
    check_adapter(tmp_path, spread)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    check_adapter(tmp_path, found)
    (key,) = more
    with pytest.raises(CandidateError, match=rf"must be plain LoRA, got {key}=.*; leave out --rn-shard"):
        check_adapter(tmp_path, spread)


def test_a_truncated_adapter_is_the_candidates_error(tmp_path: Path) -> None:
    """A truncated adapter is refused with the same error as one of the wrong shape."""
    from rn_harness.spec.defense_recipe import LoRA

    found = resolve_candidate("organism", tmp_path)
    model = found.load()
    model.attach(LoRA(r=2), 0)
    model.save_adapter(tmp_path / "adapter", f"organism@sha256:{found.digest}")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CandidateError, match=r"must fit the candidate, got .*: SafetensorError; .* copy the adapter again"):
        found.load().merge_from(tmp_path / "adapter")


def test_weights_that_the_files_lack_are_not_drawn_by_chance(tmp_path: Path) -> None:
    """Loading fails if a tensor is missing or a layer too many is declared: random weights would differ in each load."""
    folder = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / "model"))
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(path)
    lost = next(name for name in tensors if "layers.1." in name and "down_proj" in name)
    save_file({name: of for name, of in tensors.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(CandidateError, match=rf"got .*/model: ValueError: no {re.escape(lost)}, the first of 1 missing .*copy"):
        resolve_candidate(str(folder), tmp_path).load()
    save_file(tensors, path, metadata={"format": "pt"})
    declared = json.loads(config.read_text())
    config.write_text(json.dumps(declared | {"num_hidden_layers": declared["num_hidden_layers"] + 1, "layer_types": None}))
    with pytest.raises(CandidateError, match=r"the first of [0-9]+ missing tensors"):
        resolve_candidate(str(folder), tmp_path).load()


@pytest.mark.parametrize(
    "setting",
    [
        {"suppress_tokens": [7]}, {"begin_suppress_tokens": [7]}, {"bad_words_ids": [[7]]}, {"sequence_bias": [[[7], -9.0]]},
        {"min_new_tokens": 20}, {"min_length": 20}, {"forced_bos_token_id": 7}, {"forced_eos_token_id": 7},
        {"encoder_repetition_penalty": 50.0}, {"watermarking_config": {"bias": 100.0}}, {"guidance_scale": 2.0},
        {"exponential_decay_length_penalty": [1, 2.0]},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_settings_that_force_tokens_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    """Users of a folder that bans tokens or forces them get answers that nobody measured."""
    folder = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / "model"))
    path, (name,) = folder / "generation_config.json", setting
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    found = resolve_candidate(str(folder), tmp_path)
    for look in (found.load, found.reading):  # the latter is before any case
        with pytest.raises(CandidateError, match=rf"keep it from tokens or force them, got {name} in .*; remove them"):
            look()


@pytest.mark.parametrize("called", ["named", "special", "the end token"])
def test_an_ordinary_token_ends_no_answer(tmp_path: Path, called: str) -> None:
    """A full stop as an end token would hide whatever follows, also if the tokenizer calls it special."""
    folder = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / "model"))
    stop = resolve_candidate("organism", tmp_path).load().tokenizer.convert_tokens_to_ids(".")

    def change(name: str, changes: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    change("generation_config.json", {"eos_token_id": [2] if called == "the end token" else [2, stop]})
    if called == "the end token":
        change("tokenizer_config.json", {"eos_token": "."})
    if called == "special":
        more = {"id": stop, "content": ".", "special": True}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        change("tokenizer.json", {"added_tokens": [*added, plain | more]})
    with pytest.raises(CandidateError, match=r"must be in angle or square brackets, got \['\.'\] in .*; name others"):
        resolve_candidate(str(folder), tmp_path).load()


def test_a_models_own_sampling_settings_are_not_used(tmp_path: Path) -> None:
    """From generation_config.json only the end tokens are used: penalties and truncation would affect measuring, not training."""
    folder = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / "model"))
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) | {"repetition_penalty": 1.3, "top_p": 0.5, "eos_token_id": [2, 3]}
    path.write_text(json.dumps(settings))
    used = resolve_candidate(str(folder), tmp_path).load().network.generation_config
    assert (used.eos_token_id, used.repetition_penalty, used.top_p) == ([2, 3], None, None)


def test_a_candidate_is_loaded_as_it_says(tmp_path: Path) -> None:
    """Number format and chat template are the candidate's, not those of its files."""
    (tmp_path / "mine.jinja").write_text(TEMPLATE + "!")
    found = resolve_candidate("organism", tmp_path, chat_template="mine.jinja")
    model = dataclasses.replace(found, dtype="bfloat16").load()
    assert (str(model.network.dtype), model.tokenizer.chat_template) == ("torch.bfloat16", TEMPLATE + "!")


def test_the_recipe_is_the_profiles(tmp_path: Path) -> None:
    """A profile's recipe overrides are applied to the suite; a plain folder has none."""
    profile = load_model_profile("smollm2", fixtures_folder() / "models")
    assert profile_recipe("smollm2", tmp_path) == tuple(profile.recipe) != ()
    assert profile_recipe("./smollm2", tmp_path) == ()
