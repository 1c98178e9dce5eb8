"""Every script of examples/ runs as it stands, away from the checkout, and is short enough to copy."""

from __future__ import annotations

import subprocess
import sys
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
