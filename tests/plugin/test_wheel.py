"""A wheel works without the checkout, because it contains the fixtures."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_runs_a_suite_that_lies_elsewhere(workspace, tmp_path):
    """A built and unpacked wheel finds its organism and judges a suite in another folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("rn_harness-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "from rn_harness.spec.fixtures import fixtures_folder; print(fixtures_folder())"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    ).stdout.strip()
    assert Path(where) == site / "rn_harness" / "fixtures"
    assert (site / "rn_harness" / "py.typed").is_file()
    workspace.monkeypatch.setenv("PYTHONPATH", str(site))
    result = workspace.run("mine/biochem", "--rn-tier=smoke", "-k", "candidate", cold=True)
    assert result.ret == 0, result.text
    assert workspace.cases()["candidate"]["verdict"]["outcome"] == "PASS"
