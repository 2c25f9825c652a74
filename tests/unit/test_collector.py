"""The pause of garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from rn_harness.spec import suite as suites
from rn_harness.spec.collector import collector_paused
from rn_harness.spec.errors import SuiteError


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """The collector is on before and after each test."""
    gc.enable()
    yield
    gc.enable()


def test_the_collector_goes_on_after_an_error() -> None:
    """The collector is off in the body, and on after its exception."""
    seen: list[bool] = []

    @collector_paused()
    def fail() -> None:
        seen.append(gc.isenabled())
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    """A user who switched the collector off finds it off."""
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_a_suite_is_read_without_collections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The collector is off while a suite is read, and on after a suite that is refused."""
    seen: list[bool] = []

    def read(*_: object, **__: object) -> None:
        seen.append(gc.isenabled())
        raise SuiteError("refused")

    monkeypatch.setattr(suites, "read_yaml", read)
    with pytest.raises(SuiteError, match="refused"):
        suites.load_suite(tmp_path)
    assert seen == [False]
    assert gc.isenabled()
