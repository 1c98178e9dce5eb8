"""Ctrl-C at any time: exit code 130, one line at most, nothing new on the disk, an old output folder as it was."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from graphpress import interrupts
from graphpress.errors import BadRequest
from graphpress.job import bundle
from tests import warm

DEMO = resources.files("graphpress.tools.demo")
# Runs the command with a place where it interrupts itself, as Ctrl-C would right there.
INTERRUPTED = """
import importlib, os, signal, sys
name, arguments = sys.argv[1], sys.argv[2:]
sys.argv = ["graphpress", *arguments]
import graphpress.tools.cli.commands
module, _, attribute = name.rpartition(":")
holder = importlib.import_module(module)
*path, last = attribute.split(".")
for part in path:
    holder = getattr(holder, part)
whole = getattr(holder, last)
def cut(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return whole(*args, **kwargs)
setattr(holder, last, cut)
from graphpress.tools.cli import main
main()
"""
# What runs in each phase; the last three are in the middle of writing.
PHASES = {
    "load": "graphpress.frontends.onnx_file:load",
    "data": "graphpress.observe.data:CalibrationData.check",
    "passes": "graphpress.passes.quantize.quantize:Quantize.run",
    "calibrate": "graphpress.observe.observers:Observer.range",
    "lower": "graphpress.backends.ort:lower",
    "gate": "graphpress.job.job:compare_outputs",
    "prove": "graphpress.backends.ort:audit",
    "latency": "graphpress.job.latency:_once",
    "lock": "graphpress.job.bundle:_lock",
    "draft": "tempfile:mkdtemp",
    "model": "graphpress.frontends.onnx_file:save",
    "page": "graphpress.report.page:render",
    "publish": "graphpress.job.bundle:publish",
}
ALWAYS = ("passes", "publish")  # amid the work, and while writing


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Interrupts come through, also where the tests run in the background of a shell, which ignores them there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with data and an output folder of an earlier run."""
    with np.load(str(DEMO / "digits.npz")) as data:
        np.savez(tmp_path / "d.npz", **{k: data[k][:80] for k in data})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"made_by": "graphpress"}')
    (tmp_path / "out" / "model.onnx").write_text("old")
    return tmp_path


def compile_(out: str) -> list[str]:
    return ["compile", str(DEMO / "digits.onnx"), "--recipe", "w8a8", "--data", "d.npz", "--out", out]


@pytest.mark.parametrize(
    "phase", [phase if phase in ALWAYS else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES]
)
def test_in_each_phase(here: Path, phase: str) -> None:
    before = snapshot(here)
    for out in ("out", "new/deep") if phase in ("draft", "page") else ("out",):
        done = warm.python(INTERRUPTED, PHASES[phase], *compile_(out), cwd=here)
        assert (done.returncode, done.stdout) == (130, ""), done.stderr
        assert re.fullmatch(r"graphpress: interrupted: nothing was written; with --state .*\n", done.stderr)
        assert snapshot(here) == before


@pytest.mark.slow
@pytest.mark.parametrize("after", np.linspace(0.05, 3, 24).round(2).tolist())
def test_at_any_time(here: Path, after: float) -> None:
    """Whatever it was doing; a run that was done before the signal came has written everything."""
    before = snapshot(here)
    command = [sys.executable, "-m", "graphpress.tools.cli", *compile_("out")]
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(after, process.send_signal, [signal.SIGINT])
    timer.start()
    _, err = process.communicate(timeout=120)
    timer.cancel()
    left = snapshot(here)
    if process.returncode == 0:
        assert "out/report.html" in left
        return
    assert process.returncode in (130, -signal.SIGINT)  # the latter while Python itself was starting
    assert err.startswith("graphpress: interrupted: nothing") or "out/report.html" in left or after < 1
    assert not [name for name in left if name.startswith(".")]
    assert left == before or "out/report.html" in left


def test_held_interrupts_come_at_the_end() -> None:
    done = []

    def section() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of it")

    with pytest.raises(KeyboardInterrupt):
        section()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_held_lets_errors_through_and_does_nothing_in_a_thread() -> None:
    with pytest.raises(ValueError, match="mine"), interrupts.held():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def work() -> None:
        with interrupts.held():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_rename_that_fails_puts_the_old_folder_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(here)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".") and not self.name.endswith(".old"):
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BadRequest, match="cannot be written"), bundle.claim(here / "out") as draft:
        bundle.publish(draft, here / "out")
    assert snapshot(here) == before
