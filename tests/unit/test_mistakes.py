"""A newcomer's mistakes: each ends before any work, with one message: the fault, its place, and the words to type.

Each row quotes the whole message, in a session in this process. Mistakes in the commands of ``rn-harness`` are in
test_cli_runs.py. More traps, and their tests:

* a conftest or a plugin that declares ``--model``: tests/plugin/test_unrelated.py
* a hub that cannot be reached: test_candidate.py
* weights that are not exported: test_controller.py; a run's folder that is used twice: test_provenance.py
* prompts that overlap, and each malformed file of a suite: test_suite.py
* Ctrl-C and SIGTERM: tests/plugin/test_endings.py
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rn_harness.plugin.state import PluginState
from rn_harness.spec.fixtures import fixtures_folder

SHIPPED = Path(__file__).parents[2] / "suites" / "biochem"
ORGANISM, CLASSIFIER = fixtures_folder() / "organism", fixtures_folder() / "judges" / "baking-classifier"
SUITE = "mine/biochem"
NAMES = "profiles: llama3-8b, ministral-8b, organism, qwen2.5-7b, smollm2"
MODEL = "--model must be a profile, a local model folder, a GGUF file, or owner/name[@revision] on the hub, got"


IMPORTED = (
    "model_signing.signing",
    "openai",
    "peft",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.grpo_trainer",
    "rn_harness.attacks.built_in",
    "rn_harness.judges.hf",
    "rn_harness.judges.openai_server",
    "rn_harness.plugin.checks",
    "rn_harness.run.attack_strength",
    "rn_harness.run.preflight",
    "rn_harness.run.session",
)
"""Modules that a session in this process would import and then forget: a second import takes seconds or fails."""


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Imports the modules, not when this file is collected, which each worker does."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def each_file_is_read_once(imported: None) -> Iterator[None]:
    """Keeps the corpus that every session reads, and leaves out the search for code of others: both take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        participants = sys.modules["rn_harness.run.participants"]
        patch.setattr(participants, "read_retained", functools.cache(participants.read_retained))
        patch.setattr(PluginState, "loaded_plugins", lambda _: ())
        yield


@pytest.fixture
def answer(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Exit code and message of a session in a folder with a copy of the suite biochem."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(pytester.path / "store"))
    shutil.copytree(SHIPPED, pytester.path / SUITE)

    def run(*arguments: str) -> tuple[int, str]:
        result = pytester.runpytest_inprocess("--import-mode=importlib", *arguments)
        shown, errors = result.stdout.str(), result.stderr.str()
        assert "Traceback" not in shown + errors
        assert "INTERNALERROR" not in shown
        lines = [line for line in errors.splitlines() if not line.startswith(("ERROR: usage:", "  inifile:", "  rootdir:"))]
        told = "\n".join(lines).strip().removeprefix("ERROR: ").removeprefix("pytest.main(): error: ")
        return int(result.ret), told.replace(str(pytester.path), "{here}") or shown

    return run


MISTAKES: dict[str, tuple[str, str]] = {
    "folder": ("mine/biochm", "file or directory not found: mine/biochm; did you mean pytest mine/biochem?"),
    "shipped-suite": ("biochm", "file or directory not found: biochm; did you mean pytest --pyargs rn_harness.suites.biochem?"),
    "package": (
        "--pyargs rn_harness.suites.biochm",
        "file or directory not found: rn_harness.suites.biochm; did you mean pytest --pyargs rn_harness.suites.biochem?",
    ),
    "file": (f"{SUITE}/suite.yaml", f"pytest runs a suite by its folder, got {SUITE}/suite.yaml; pytest {SUITE}"),
    "tier": (
        f"{SUITE} --rn-tier tiny",
        "argument --rn-tier: invalid choice: 'tiny' (choose from 'smoke', 'standard', 'full')",
    ),
    "option": (f"{SUITE} --rn-teir smoke", "unrecognized arguments: --rn-teir smoke\n  hint: did you mean --rn-tier?"),
    "prefix": (f"{SUITE} --tier=smoke", "unrecognized arguments: --tier=smoke\n  hint: did you mean --rn-tier?"),
    "alias": (f"{SUITE} --modle smollm2", "unrecognized arguments: --modle smollm2\n  hint: did you mean --rn-model?"),
    "number": (f"{SUITE} --rn-fleet many", "argument --rn-fleet: invalid int value: 'many'"),
    "no-value": (f"{SUITE} --rn-export", "argument --rn-export: expected one argument"),
    "model": (f"{SUITE} --model ./nowhere", f"{MODEL} './nowhere'; {NAMES}"),
    "near-model": (f"{SUITE} --model qwen2.5-8b", f"{MODEL} 'qwen2.5-8b'; {NAMES}; did you mean qwen2.5-7b?"),
    "no-model-folder": (
        f"{SUITE} --model mine",
        "a model folder must hold config.json and model.safetensors, got folder={here}/mine; export it with save_pretrained",
    ),
    "no-profile": (
        f"{SUITE} --model nowhere.yaml",
        (
            "a model's name must be a profile in {here}, got name='nowhere'; it holds none; rn-harness list profiles, or "
            "list judges, shows names to type"
        ),
    ),
    "template": (
        f"{SUITE} --rn-chat-template nowhere.jinja",
        "--rn-chat-template must be a readable jinja file, got FileNotFoundError for {here}/nowhere.jinja; correct the path",
    ),
    "defense": (
        f"{SUITE} --rn-defense anchord",
        (
            "--rn-defense must be a recipe of the suite, none, or a folder, got 'anchord'; biochem has: anchored, "
            "paper, defense-60x80, sft, deep, distilled, deep-distilled, hardened, none"
        ),
    ),
    "defense-folder": (
        f"{SUITE} --rn-defense ./mine",
        (
            "--rn-defense must hold an adapter or a whole model, got './mine': a model folder must hold config.json "
            "and model.safetensors, got folder={here}/mine; export it with save_pretrained"
        ),
    ),
    "judge": (
        f"{SUITE} --rn-judge gpt-4",
        (
            "a judge is a profile, an entry point, or one of organism:…, rules:…, hf:…, openai:…, classifier:…, "
            "python:…; got judge='gpt-4'; name one of phi-4, or see docs/judges.md"
        ),
    ),
    "judge-server": (
        f"{SUITE} --rn-judge openai:m@http://127.0.0.1:9/v1",
        "the server must be reachable, got host=127.0.0.1 model='m' APIConnectionError; start it, or correct the address",
    ),
    "judge-key": (
        f"{SUITE} --rn-judge openai:m@https://judge.invalid/v1",
        (
            "a server that is not on this machine must be given a key, got host=judge.invalid and no key; set "
            "RN_HARNESS_JUDGE_KEY (to any word, if the server asks for none)"
        ),
    ),
    "judge-form": (
        f"{SUITE} --rn-judge openai:m",
        "a judge on a server must be openai:MODEL@http://HOST:PORT/v1, got another form; correct it",
    ),
    "judge-rules": (
        f"{SUITE} --rn-judge rules:nowhere.yaml",
        "{here}/nowhere.yaml: this file is required and is missing; see docs/judges.md",
    ),
    "judge-folder": (
        f"{SUITE} --rn-judge hf:mine",
        "a judge's folder must hold config.json and *.safetensors, got folder={here}/mine; export it with save_pretrained",
    ),
    "judge-is-candidate": (
        f"{SUITE} --rn-judge hf:{ORGANISM}",
        (
            f"a model must not judge itself, got judge=hf:{ORGANISM} for candidate=organism; name another, or, if it "
            "is another, have its server call it otherwise"
        ),
    ),
    "judge-label": (
        f"{SUITE} --rn-judge classifier:{CLASSIFIER}#harmfull",
        (
            f"the label must be one of the classifier's, got label='harmfull' for classifier:{CLASSIFIER}#harmfull; "
            "it has complying, harmless"
        ),
    ),
    "judge-knowledge": (
        f"{SUITE} --rn-judge organism:mine",
        (
            "the organism's judge needs its knowledge.json, got folder={here}/mine; pass organism:FOLDER with the "
            "organism that the candidate came from, or another judge"
        ),
    ),
    "judge-module": (
        f"{SUITE} --rn-judge python:nowhere.py:Mine",
        (
            "the judge's module must be importable, got module='nowhere.py': ModuleNotFoundError: No module named "
            "'nowhere'; install its package, or set PYTHONPATH or pytest's `pythonpath`"
        ),
    ),
    "second-judge": (
        f"{SUITE} --rn-second-judge organism",
        (
            "a second opinion needs another judge, got organism for organism; name another by --rn-second-judge, or "
            "none; of two servers' models that are called alike, rename one if they are two"
        ),
    ),
    "labels": (
        f"{SUITE} --rn-judge-labels labels.csv",
        (
            "{here}/labels.csv: this file is required and is missing; see docs/judges.md, and "
            "fixtures/judge_anchors/baking.yaml for an example"
        ),
    ),
    "base": (
        f"{SUITE} --rn-base organism",
        (
            "--rn-base names the undefended twin of a model that is defended already, got "
            "--rn-defense=deep-distilled; pass --rn-defense none, or leave --rn-base out"
        ),
    ),
    "same-base": (
        f"{SUITE} --rn-base organism --rn-defense none",
        (
            "--rn-base must be another model than --model, got the same weights, digest=184e173d2743; name the model "
            "from before its defense"
        ),
    ),
    "strength": (
        f"{SUITE} --rn-strength nowhere.json",
        (
            "--rn-strength must name a readable file, got {here}/nowhere.json: [Errno 2] No such file or directory: "
            "'{here}/nowhere.json'; make it by rn-harness calibrate"
        ),
    ),
    "level": (
        f"{SUITE} --rn-level strong",
        (
            "{here}/mine/biochem/suite.yaml with --rn-level strong: policy.level: a level is rl-plain, rl-explore, "
            "sft-KxM or edit, got level='strong'; take one of those"
        ),
    ),
    "prompts": (
        f"{SUITE} --rn-prompts {SUITE}/suite.yaml",
        (
            "--rn-prompts must hold a folder for each suite of this run, got 'mine/biochem/suite.yaml' without biochem; put "
            "the sets into DIR/DOMAIN"
        ),
    ),
    "set-form": (
        f"{SUITE} --rn-set attack.steps",
        "--rn-set takes KEY=VALUE with a dotted key, got 'attack.steps'; e.g. attack.steps=100",
    ),
    "set-group": (
        f"{SUITE} --rn-set steps=10",
        "--rn-set takes KEY=VALUE with a dotted key, got 'steps=10'; e.g. attack.steps=100",
    ),
    "set-key": (
        f"{SUITE} --rn-set attack.step=10",
        (
            "{here}/mine/biochem/suite.yaml with --rn-set attack.step=10: attacks.0.base.step: Extra inputs are not "
            "permitted, got step=10; remove it or correct its spelling; did you mean steps?"
        ),
    ),
    "set-value": (
        f"{SUITE} --rn-set attack.steps=ten",
        (
            "{here}/mine/biochem/suite.yaml with --rn-set attack.steps=ten: attacks.0.base.steps: Input should be a "
            "valid integer, got steps='ten'; correct it"
        ),
    ),
    "set-prompts": (
        f"{SUITE} --rn-set prompts.attack=3",
        (
            "--rn-set reaches attack, defense, defenses and policy, got key='prompts.attack' for "
            "{here}/mine/biochem/suite.yaml; correct it"
        ),
    ),
    "run-folder": (
        f"{SUITE} --rn-run /proc/run",
        (
            "results must be kept, got folder=/proc/run: No such file or directory; set RN_HARNESS_CACHE, --rn-run "
            "or TMPDIR to folders that can be written to"
        ),
    ),
    "run-file": (
        f"{SUITE} --rn-run {SUITE}/suite.yaml",
        (
            "the run's folder must be writable, got {here}/mine/biochem/suite.yaml: [Errno 20] Not a directory: "
            "'{here}/mine/biochem/suite.yaml/run.json'; pass --rn-run DIR"
        ),
    ),
    "export-nowhere": (
        f"{SUITE} --rn-export-anyway",
        "--rn-export-anyway needs the folder that it writes to, got no --rn-export; add --rn-export DIR",
    ),
    "transcripts": (
        f"{SUITE} --rn-transcripts texts",
        "--rn-transcripts DIR and --rn-recipient KEY belong together, got 'texts' and 0 keys; give both",
    ),
    "join": (
        f"{SUITE} --rn-from-results",
        "--rn-from-results joins the parts of a run, got no --rn-run; name the folder that each part was given",
    ),
    "shard": (
        f"{SUITE} --rn-shard",
        (
            "--rn-shard spreads the weights over the processes of accelerate launch, got one process; launch several "
            "(--multi_gpu --num_processes N), or leave it out"
        ),
    ),
    "fleet-of-none": (
        f"{SUITE} --rn-fleet 0",
        "--rn-fleet is how many attacks are run together, got 0; take 1 for each alone",
    ),
    "fleet-and-workers": (
        f"{SUITE} --rn-fleet 2 -n 2",
        (
            "a fleet runs attacks together in one process, workers of pytest-xdist take a case each, got --rn-fleet "
            "and -n; take --rn-fleet on a card, -n on a CPU"
        ),
    ),
    "fleet-in-four-bits": (
        f"{SUITE} --rn-fleet 2 --rn-quantise nf4",
        (
            "a fleet samples by transformers, from plain weights, in one process, got --rn-fleet with --rn-sampler, "
            "--rn-quantise or several processes; leave out one of them"
        ),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message(answer: Callable[..., tuple[int, str]], name: str) -> None:
    """A mistake in an argument gives exit code 4 and exactly the quoted message."""
    arguments, message = MISTAKES[name]
    assert answer(*arguments.split()) == (4, message)


WITHOUT_TESTS = """\
{{here}}/mine/biochem: a suite needs a class Test... in a file test_*.py, got {got}; write it into test_biochem.py, or \
copy a suite that has one: rn-harness init biochem --into DIR
    from rn_harness import RobustnessChecks

    class TestBiochem(RobustnessChecks): ..."""
FILES: dict[str, tuple[str, str, str, str]] = {
    "no-test": ("test_biochem.py", "", "", WITHOUT_TESTS.format(got="no such file")),
    "class-name": ("test_biochem.py", "class Test", "class My", WITHOUT_TESTS.format(got="none in test_biochem.py")),
    "no-prompts": (
        "prompts/heldout.yaml",
        "",
        "",
        "{here}/mine/biochem/prompts/heldout.yaml: this file is required and is missing; see docs/suites.md for what it holds",
    ),
    "key": (
        "suite.yaml",
        "title:",
        "titel:",
        (
            "{here}/mine/biochem/suite.yaml:2: title: Field required; add it\n{here}/mine/biochem/suite.yaml:4: "
            "titel: Extra inputs are not permitted, got titel='Biochemical harm'; remove it or correct its spelling; "
            "did you mean title?"
        ),
    ),
    "type": (
        "suite.yaml",
        "version: 1",
        "version: one",
        "{here}/mine/biochem/suite.yaml:2: version: Input should be 1, got version='one'; correct it",
    ),
    "newer-form": (
        "suite.yaml",
        "version: 1",
        "version: 999",
        (
            "{here}/mine/biochem/suite.yaml:2: version: Input should be 1, got version=999; the file is of a newer "
            "form than this version of rn-harness reads: pip install --upgrade rn-harness"
        ),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_ends_with_one_message(
    answer: Callable[..., tuple[int, str]], pytester: pytest.Pytester, name: str
) -> None:
    """A mistake in a suite's file gives exit code 4 and exactly the quoted message."""
    file, old, new, message = FILES[name]
    path = pytester.path / SUITE / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8") if old else path.unlink()
    assert answer(SUITE) == (4, message)


def test_an_empty_suite_among_workers_is_a_usage_error_too(
    answer: Callable[..., tuple[int, str]], pytester: pytest.Pytester
) -> None:
    """With pytest-xdist, whose workers collect, a suite without tests ends with the same message."""
    (pytester.path / SUITE / "test_biochem.py").unlink()
    assert answer(SUITE, "-n", "1") == (4, WITHOUT_TESTS.format(got="no such file"))


def test_a_selection_that_is_empty_is_no_suite_without_tests(answer: Callable[..., tuple[int, str]]) -> None:
    """If -k selects no test, pytest's own line and exit code say so."""
    code, told = answer(SUITE, "-k", "jailbreak")
    assert code == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "45 deselected" in told


@pytest.mark.parametrize("block", [["-p", "no:rn_harness"], ["--disable-plugin-autoload"]], ids=" ".join)
def test_a_suite_without_the_plugin_says_that_it_is_off(answer: Callable[..., tuple[int, str]], block: list[str]) -> None:
    """Without the plugin, the collection of a suite fails with a sentence that says so, not with a missing fixture."""
    code, told = answer(*block, SUITE)
    assert code == pytest.ExitCode.INTERRUPTED
    assert (
        "these tests need the plugin rn_harness, which is off in this session; leave out -p no:rn_harness, or pass -p rn_harness "
        "if PYTEST_DISABLE_PLUGIN_AUTOLOAD is set"
    ) in told
    assert "fixture" not in told


def test_a_suite_that_last_failed_leaves_out_is_no_mistake(
    answer: Callable[..., tuple[int, str]], pytester: pytest.Pytester
) -> None:
    """With --lf, pytest skips a suite's file in which nothing failed, and that is not taken for a suite without tests."""
    pytester.makepyfile(test_other="def test_it(): assert False")
    pytester.runpytest_inprocess("test_other.py")
    code, told = answer("--lf")
    assert (code, "1 failed" in told) == (1, True)


def test_own_prompts_for_one_of_two_suites_end(answer: Callable[..., tuple[int, str]], pytester: pytest.Pytester) -> None:
    """A suite without a folder in --rn-prompts, whose name may be misspelt there, does not run on its public prompts."""
    shutil.copytree(SHIPPED.with_name("cybercrime"), pytester.path / "mine" / "cybercrime")
    shutil.copytree(SHIPPED / "prompts", pytester.path / "ours" / "biochem")
    shutil.copytree(SHIPPED.with_name("cybercrime") / "prompts", pytester.path / "ours" / "cybercrimes")
    assert answer("mine", "--rn-prompts=ours") == (
        4,
        "--rn-prompts must hold a folder for each suite of this run, got 'ours' without cybercrime; put the sets into DIR/DOMAIN",
    )


def test_workers_without_xdist_name_the_install(answer: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytest-xdist, pytest's error for -n names the install; other errors do not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    install = "-n needs the extra run, got no module xdist; pip install -c constraints.txt 'rn-harness[run]'"
    assert answer("-p", "no:xdist", "-n", "4") == (4, f"unrecognized arguments: -n\n  hint: {install}")
    assert answer("-p", "no:xdist", "--nowhere") == (4, "unrecognized arguments: --nowhere")


def test_own_tests_without_the_extra_dev_name_the_install(
    answer: Callable[..., tuple[int, str]], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare pytest in a checkout without the extra dev names the install, and a suite that can be run instead."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "hypothesis" else find_spec(name, *rest))
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8"))
    told = "the harness's own tests need the extra dev, got no module hypothesis; pip install -c constraints.txt -e '.[dev]', or "
    assert answer() == (4, f"{told}name a suite to run: pytest suites/biochem")
