"""Containment: no completion and no attacked weight appears in any file, even a removed one, or in the output of a run."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
HERE = Path(__file__).parent
CANARY = "qzcanary7f3a"
TINY = (
    "mine/biochem", "--rn-tier=smoke", "--rn-set=attack.steps=12", "--rn-set=attack.control_steps=12",
    "--rn-set=attack.learning_rate=2e-3", "--rn-set=policy.checkpoint_every=6", "--rn-set=policy.samples=1",
    "--rn-set=policy.probe_samples=2", "--rn-set=defense.steps=2", "--rn-set=defense.evaluate_every=1", "--junitxml=asked.xml",
)  # fmt: skip
LOUD = (
    "-vv", "--showlocals", "--tb=long", "--full-trace", "-o", "log_cli=true", "--log-cli-level=DEBUG", "--log-level=DEBUG",
    "-o", "junit_logging=all", "-rA",
)  # fmt: skip
"""Options for pytest's most verbose output."""
WEIGHTS = re.compile(rb"^.{8}\{\"|^\x80[\x02-\x05]|^PK\x03\x04|^GGUF", re.DOTALL)
"""First bytes of safetensors, pickles, zipped pickles and GGUF."""
SNAPSHOT = "defense_training.pt"
"""Snapshot of a defense in training. It may hold no byte of attacked weights."""


@pytest.fixture(scope="module")
def containment_store(tmp_path_factory):
    """One store for this module, so that later sessions repeat only the attacks."""
    return tmp_path_factory.mktemp("containment-store")


class Observed:
    """Observed sessions, their events and their files."""

    def __init__(self, workspace, store, monkeypatch):
        self.workspace, self.store, self.root = workspace, store, workspace.folder
        self.home, self.temp, self.notes = (self.root / name for name in ("home", "temp", "notes"))
        for folder in (self.home, self.temp, self.notes):
            folder.mkdir()
        for plugin in ("faults.py", "observer.py"):
            shutil.copy(HERE / plugin, self.root)
        workspace.use_store(store)
        workspace.pytester.syspathinsert()
        for name, value in {
            "HOME": self.home, "TMPDIR": self.temp, "RN_OBSERVE": self.notes, "PYTHONDONTWRITEBYTECODE": "1",
            "RN_FAULT": "none", "RN_FAULT_STEP": "-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))
        for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            monkeypatch.delenv(name, raising=False)
        self.before = {p for p in self.root.rglob("*") if p.is_file()}

    def run(self, *args):
        """Runs an observed session with the most verbose output."""
        return self.workspace.run(*TINY, *LOUD, "-p", "faults", "-p", "observer", *args, cold=True)

    def events(self, kind):
        """Logged events of a kind, over all processes."""
        lines = [json.loads(line) for path in self.notes.glob("events-*") for line in path.read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == kind]

    def files(self):
        """All files that the session left behind or removed."""
        left = [p for p in (*self.root.rglob("*"), *self.store.rglob("*")) if p.is_file() and not p.is_symlink()]
        return [p for p in left if p not in self.before and not p.name.startswith("events-")]


@pytest.fixture
def observed(workspace, containment_store, monkeypatch):
    """A workspace whose sessions are observed."""
    return Observed(workspace, containment_store, monkeypatch)


def _assert_contained(observed, result):
    """Asserts no completion anywhere, no attacked weights in files, no file outside the known folders, and no network."""
    assert observed.events("completion"), "no completion was marked: the test sees nothing"
    assert CANARY not in result.text
    chunks = {bytes.fromhex(chunk) for (chunk,) in observed.events("attacked")}
    assert len(chunks) > 100
    files = observed.files()
    for path in files:
        content = path.read_bytes()
        assert CANARY.encode() not in content, path
        assert not any(chunk in content for chunk in chunks), path
        if path.name.endswith(SNAPSHOT):  # the observer's copy: the store removes its file when the defense is complete
            assert path.is_relative_to(observed.notes), path
        elif WEIGHTS.match(content):  # the defense's adapter: its release is allowed
            assert path.name == "adapter_model.safetensors", path
            assert path.is_relative_to(observed.store / "defense"), path
        assert not re.search(r"optimizer|scheduler\.pt|rng_state|trainer_state|training_args|\.arrow$|\.parquet$", path.name), (
            path
        )
    runs = observed.root / "reports"
    own = (runs, observed.store, observed.temp, observed.notes, Path("/dev/null"), Path("/dev/shm"))
    named = ("asked.xml", ".asked.xml.", "runpytest-", observed.root.name)  # the requested JUnit, pytester's files, and mkdir
    outside = [
        path
        for (path,) in observed.events("write")
        if not any(Path(path).is_relative_to(of) for of in own) and not Path(path).name.startswith(named)
    ]
    assert outside == []
    assert [p for p in observed.home.rglob("*") if p.is_file()] == []
    assert [p for p in observed.temp.rglob("*") if p.is_file()] == []
    assert observed.events("network") == []


def test_two_workers_let_nothing_out(observed):
    """With -n 2, a defense, a control, an attack and full failure reports, files, network and output are clean."""
    result = observed.run("-n", "2")
    assert result.ret == 1, result.text
    _assert_contained(observed, result)
    (adapter,) = observed.store.glob("defense/*/adapter/adapter_model.safetensors")
    # The scan works: the same method finds the defense's bytes in its file.
    data = adapter.read_bytes()
    assert WEIGHTS.match(data)
    assert data[len(data) // 2 : len(data) // 2 + 24] in data


def test_an_interruption_lets_nothing_out(observed):
    """After SIGINT between two checkpoints, with --full-trace, no frame, local variable or file shows a completion."""
    observed.workspace.monkeypatch.setenv("RN_FAULT", "SIGINT")
    observed.workspace.monkeypatch.setenv("RN_FAULT_STEP", "12")
    result = observed.run("--rn-defense=none", "-k", "attack_stays")
    assert result.ret == 2, result.text
    _assert_contained(observed, result)


def test_a_kill_leaves_no_attacked_weights(observed):
    """After SIGKILL during an attack, only folder names remain on disk: no weights and no completion."""
    observed.workspace.monkeypatch.setenv("RN_FAULT", "SIGKILL")
    observed.workspace.monkeypatch.setenv("RN_FAULT_STEP", "12")
    result = observed.run("--rn-defense=none", "-k", "attack_stays")
    assert result.ret == -signal.SIGKILL, result.text
    _assert_contained(observed, result)


def test_an_error_that_quotes_completions_lets_nothing_out(observed):
    """If a judge quotes a completion in its exception, in logs and in a warning, the quote appears nowhere."""
    (observed.root / "conftest.py").write_text(
        """
import rn_harness.judges.organism as judge

sound = judge.OrganismJudge.score

def broken(self, prompts, completions, wording=0):
    if prompts[0].id.startswith("held"):
        try:
            raise KeyError(completions[0])
        except KeyError as error:
            raise RuntimeError(f"cannot read {completions[0]}", completions) from error
    return sound(self, prompts, completions, wording)

judge.OrganismJudge.score = broken
"""
    )
    result = observed.run("--rn-defense=none", "-k", "attack_stays", "--rn-set=policy.samples=2")
    assert result.ret == 1, result.text
    assert "its message is withheld" in result.text
    assert CANARY not in result.text
    assert all(CANARY.encode() not in path.read_bytes() for path in observed.files())
    assert observed.events("completion")
