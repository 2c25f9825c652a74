"""The sampler in training: names, TRL's arguments, refused combinations, and effects on plan and keys."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rn_harness.models.memory import GIB
from rn_harness.run import participants, training_limits
from rn_harness.run.preflight import check_training
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import MissingExtraError, RecipeError
from rn_harness.spec.options import Options
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store
from rn_harness.training.trainer_settings import TRANSFORMERS, Sampler

from .builders import write_suite

LOCAL = "vllm:http://127.0.0.1:8000"
FITS: dict[str, bool] = {"cpu": False, "quantised": False, "gguf": False}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Pretends that vLLM is installed, in a version that a test can change."""
    versions = {"vllm": "0.24.0+cu129"}
    find = importlib.util.find_spec
    version = importlib.metadata.version
    monkeypatch.setattr("rn_harness.spec.extras.importlib.util.find_spec", lambda name: name if name == "vllm" else find(name))
    monkeypatch.setattr(
        "rn_harness.training.trainer_settings.importlib.metadata.version", lambda name: versions.get(name) or version(name)
    )
    return versions


def test_transformers_sample_unless_another_is_named() -> None:
    """The default sampler passes no argument to TRL, so that earlier results stay valid."""
    assert Sampler.of("transformers") == TRANSFORMERS
    assert (TRANSFORMERS.settings, TRANSFORMERS.name) == ({}, None)
    TRANSFORMERS.check(cpu=True, quantised=True, gguf=True)


@pytest.mark.parametrize("spec", ["vlm", "vllm:", "transformers:x", "", "server"])
def test_an_unknown_sampler_is_refused(spec: str) -> None:
    """An unknown sampler is refused with a list of the possible ones."""
    with pytest.raises(RecipeError, match=rf"must be one of transformers, vllm, vllm:URL, got '{spec}'; correct it"):
        Sampler.of(spec)


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "https://vllm.example.org", "http://0.0.0.0:8000", "127.0.0.1:8000"])
def test_attacked_weights_stay_on_the_machine(url: str) -> None:
    """Attacked weights are sent only to a vLLM server on this machine."""
    with pytest.raises(RecipeError, match="attacked weights stay on this machine"):
        Sampler.of(f"vllm:{url}")
    for local in ("http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000"):
        assert Sampler.of(f"vllm:{local}").url == local


def test_trl_takes_the_settings(installed: dict[str, str], tmp_path: Path) -> None:
    """Each argument is a field of TRL's GRPOConfig and keeps its value, in both modes."""
    import trl

    for spec, mode in (("vllm", "colocate"), (LOCAL, "server")):
        sampler = Sampler.of(spec)
        given = sampler.settings
        config: Any = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
        assert {name: getattr(config, name) for name in given} == given
        assert (given["use_vllm"], given["vllm_mode"]) == (True, mode)
        assert sampler.name == f"vllm 0.24.0+cu129 {mode}"
    assert Sampler.of(LOCAL).settings["vllm_server_base_url"] == "http://127.0.0.1:8000"


def test_the_versions_are_those_that_trl_supports(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL warns outside our range of vLLM versions and does not warn at its ends."""
    import warnings

    from trl import import_utils

    for version, known in (("0.21.9", False), ("0.22.0", True), ("0.31.0", True), ("0.32.0", False), ("0.33.1", False)):
        installed["vllm"] = version
        with warnings.catch_warnings(record=True) as told, monkeypatch.context() as patch:
            warnings.simplefilter("always")
            patch.setattr(import_utils, "_is_package_available", lambda *_, version=version, **__: (True, version))
            import_utils.is_vllm_available()
        assert (not told) == known, version
        if known:
            Sampler.of("vllm").check(**FITS)
        else:
            with pytest.raises(RecipeError, match=rf"from 0\.22 to below 0\.32, got vllm={version}"):
                Sampler.of("vllm").check(**FITS)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cpu", "vLLM samples on cards, got a CPU; leave out --rn-sampler"),
        ("quantised", "sent weights in plain numbers, .*, got --rn-quantise; leave out --rn-sampler"),
        ("gguf", "sent weights in plain numbers, .*, got a GGUF file; leave out --rn-sampler"),
    ],
)
def test_what_vllm_cannot_sample_is_refused(installed: dict[str, str], what: str, message: str) -> None:
    """vLLM is refused on a CPU, with 4-bit weights, and with a GGUF file."""
    Sampler.of("vllm").check(**FITS)
    with pytest.raises(RecipeError, match=message):
        Sampler.of("vllm").check(**{**FITS, what: True})


def test_without_the_package_it_says_how_to_get_it() -> None:
    """If vLLM is not installed, the error names the extra."""
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(MissingExtraError, match=r"--rn-sampler vllm needs the extra vllm, .*'rn-harness\[vllm\]'"):
        Sampler.of("vllm").check(**FITS)


def test_the_session_checks_plans_and_keys_the_sampler(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the session refuses vLLM; on a GPU its memory is planned, and results have another key."""
    suite = load_suite(write_suite(tmp_path / "demo"))

    def run(sampler: str) -> RunSession:
        options = Options(model="organism", defense="quick", tier="smoke", base=tmp_path, sampler=sampler)
        return RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None, free=80 * GIB)

    monkeypatch.setattr(participants, "device", lambda: "cpu")
    with pytest.raises(RecipeError, match="got a CPU"):
        check_training(run("vllm"), suite)
    monkeypatch.setattr(participants, "device", lambda: "a card")
    monkeypatch.setattr(training_limits, "card_memory", lambda: 80.0 * GIB)
    plain, beside, served = (run(spec) for spec in ("transformers", "vllm", LOCAL))
    for each in (plain, beside, served):
        check_training(each, suite)
    plans = [each.limits.largest(suite) for each in (plain, beside, served)]
    assert [p and p.work.sampler for p in plans] == [0.0, 24 * GIB, 0.0]
    assert ", vLLM 24.0; peak" in beside.limits.memory_line([suite])
    keys = [each.common_inputs(suite, {}, {}).get("sampler") for each in (plain, beside, served)]
    assert keys == [None, "vllm 0.24.0+cu129 colocate", "vllm 0.24.0+cu129 server"]
