"""Every script of examples/ runs as it stands, away from the checkout, and is short enough to copy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LINES = 40


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    assert script.read_text().count("\n") <= LINES
    done = subprocess.run([sys.executable, script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip()
    saves = "gp.save" in script.read_text()
    assert bool(list(tmp_path.glob("*.onnx"))) == saves


def test_the_pass_of_the_examples_runs_from_the_command_line(tmp_path: Path) -> None:
    demo, graphpress = files("graphpress.tools.demo"), Path(sys.executable).with_name("graphpress")
    command = [graphpress, "opt", str(demo / "digits.onnx"), "--out", tmp_path / "out.onnx", "--json"]
    command += ["-p", "lift-constants,own_pass:RoundWeights{bits=10}"]
    done = subprocess.run(command, cwd=EXAMPLES, check=True, capture_output=True, text=True)
    assert [p["pass"] for p in json.loads(done.stdout)["passes"]] == ["lift-constants", "round-weights"]
    assert (tmp_path / "out.onnx").exists()
