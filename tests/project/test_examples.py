"""Every script of examples/ runs as it stands, away from the checkout, and is short enough to copy."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tests import warm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LINES = 40


_LONG = ("mixed_precision", "quantize_onnx", "recover_4bit", "torch_int8")


@pytest.mark.parametrize(
    "script",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in _LONG), id=p.stem) for p in sorted(EXAMPLES.glob("*.py"))],
)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    assert script.read_text().count("\n") <= LINES
    done = warm.python(script, cwd=tmp_path, torch=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    saves = "gp.save" in script.read_text()
    assert bool(list(tmp_path.glob("*.onnx"))) == saves


def test_the_pass_of_the_examples_runs_from_the_command_line(tmp_path: Path) -> None:
    model, out = files("graphpress.tools.demo") / "digits.onnx", tmp_path / "out.onnx"
    passes = "lift-constants,own_pass:RoundWeights{bits=10}"
    done = warm.graphpress("opt", str(model), "--out", out, "--json", "-p", passes, cwd=EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert [p["pass"] for p in json.loads(done.stdout)["passes"]] == ["lift-constants", "round-weights"]
    assert (tmp_path / "out.onnx").exists()
