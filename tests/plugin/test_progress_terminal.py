"""Progress on a real terminal (a pty): bars appear in each capture mode, and records are the same with or without them."""

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

WIDTH = 100
WORK = """
from rn_harness.plugin.state import STATE
from rn_harness.report.progress import Progress

def test_work(request):
    for step in range(3):
        print("what the test says itself")
        request.config.stash[STATE].show_progress(Progress("demo: work", step, 2, "all well" if step != 1 else None))

def test_more():
    pass
"""
TINY = (
    "mine/biochem", "--rn-tier=smoke", "--rn-defense=none", "--rn-set=attack.steps=4", "--rn-set=attack.control_steps=4",
    "--rn-set=policy.checkpoint_every=2", "--rn-set=policy.samples=0", "-k", "control_breaks",
)  # fmt: skip
LAST = re.compile(r"^demo: work \[#+\] 2/2, took 00:00, all well *$", re.MULTILINE)


def on_a_terminal(folder, *args, **variables):
    """A pytest session's output on a terminal of 100 columns, and its exit code."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER", "NO_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
    with subprocess.Popen(
        command, cwd=folder, env=kept | {"TERM": "xterm-256color"} | variables, stdin=follower, stdout=follower, stderr=follower
    ) as session:
        os.close(follower)
        said = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
        os.close(leader)
    return said.decode(), session.returncode


def screen(said):
    """The lines that a reader sees; text after a carriage return overwrites the line."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", said).split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        lines.append(seen)
    return "\n".join(lines)


@pytest.mark.parametrize("options", [[], ["-q"], ["-v"], ["-s"], ["--capture=sys"]], ids=lambda of: " ".join(of) or "default")
def test_a_bar_is_redrawn_on_one_line(pytester, options):
    """Three updates are one line on the screen, closed at the end, without plain lines and no wider than the terminal."""
    pytester.makepyfile(WORK)
    said, code = on_a_terminal(pytester.path, *options)
    assert code == 0, said
    assert said.count("\rdemo: work [") == 3
    seen = screen(said)
    assert len(LAST.findall(seen)) == 1, seen
    assert "demo: work: step" not in said
    assert "2 passed" in seen
    bars = re.findall(r"\r(demo: work \[[^\r\n]*took 00:00, all well *|demo: work \[[^\r\n]* left, all well *)", said)
    assert len(bars) == 3
    assert max(len(bar) for bar in bars) < WIDTH
    assert not [bar for bar in bars if "\x1b" in bar]  # no colour


def test_no_color_is_honoured(pytester):
    """With NO_COLOR the session writes no escape code, and the bar is the same."""
    pytester.makepyfile(WORK)
    said, code = on_a_terminal(pytester.path, NO_COLOR="1")
    assert code == 0
    assert "\x1b" not in said
    assert len(LAST.findall(screen(said))) == 1


@pytest.mark.parametrize("options", [["-n", "1"], []], ids=["xdist", "CI"])
def test_workers_and_builds_write_plain_lines(pytester, options):
    """Workers, and builds with a terminal, write one plain line per measurement."""
    pytester.makepyfile(WORK)
    said, code = on_a_terminal(pytester.path, *options, **({} if options else {"CI": "true"}))
    assert code == 0, said
    assert "demo: work [" not in said
    assert re.findall(r"demo: work: step [^\r\n]*", said) == [f"demo: work: step {n}/2: all well" for n in (0, 2)]


@pytest.mark.parametrize("options", [[], ["-n", "1"], ["-s"]], ids=["alone", "xdist", "-s"])
def test_quiet_says_nothing(pytester, options):
    """With ``--rn-quiet`` there is neither a bar nor a line, with or without workers."""
    pytester.makepyfile(WORK)
    said, code = on_a_terminal(pytester.path, "--rn-quiet", *options)
    assert code == 0, said
    assert "demo: work" not in said
    plain = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--rn-quiet", *options)
    assert "demo: work" not in plain.stdout.str() + plain.stderr.str()


def test_records_do_not_depend_on_progress_output(workspace, tmp_path):
    """Bars, lines or no progress leave the same evidence and options, except for times."""
    found = []
    for name in ("bars", "lines", "quiet"):
        workspace.use_store(tmp_path / name)
        if name == "bars":
            said, code = on_a_terminal(workspace.folder, *TINY)
            assert re.search(r"\rbiochem: control-grpo-p5-lr5e-4-s0 \[[#.]+\] 3/4, [^\r\n]* left, max", said)  # each step
            assert re.search(r"\] 4/4, took [0-9:]+, max", said)
            assert "step 2/4" not in said
        else:
            result = workspace.run(*TINY, *(["--rn-quiet"] if name == "quiet" else []))
            code = result.ret
            assert ("control-grpo-p5-lr5e-4-s0: step 2/4: max" in result.text) == (name == "lines")
            assert "step 3/4" not in result.text
            assert "[#" not in result.text
        assert code == 1  # in four steps nothing breaks
        record = workspace.record()
        found.append((workspace.cases()["control-grpo-p5-lr5e-4-s0"]["evidence"], record["options"], sorted(record)))
        assert "quiet" not in json.dumps(record)
    assert found[0] == found[1] == found[2]
