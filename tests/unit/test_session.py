"""The run's session: what it keeps, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rn_harness.records import Judgement
from rn_harness.session import Options, RunSession
from rn_harness.store import Store
from rn_harness.suite import Prompt, load_suite

from .builders import write_suite


class Judge:
    """A judge whose server is down, until it is not."""

    name, digest, exact, wordings = "demo", "1" * 64, False, 1
    down = True

    def about(self, forbidden: str) -> Judge:
        return self

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        told = Judgement(score=None, unscored="judge_error") if self.down else Judgement(score=1.0)
        return [told] * len(prompts)


def test_a_failed_certification_is_not_kept(tmp_path: Path) -> None:
    """Where the judge's machinery failed, the next run asks again; a certificate with scores is asked for once."""
    from rn_harness.anchors import shipped_anchors

    suite = load_suite(write_suite(tmp_path / "demo"))
    options = Options("organism", "quick", None, None, None, None, "standard", (), tmp_path)
    judge = Judge()

    def unscored() -> int:
        session = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
        return session.certificate(judge, shipped_anchors(), suite, "inert").table.unscored.count

    assert unscored() > 0
    judge.down = False
    assert unscored() == 0
    judge.down = True
    assert unscored() == 0  # from the store
