"""What is imported late: a stand-in for the module in the block alone, and the module itself once it is asked."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphpress.tools.cli.late import late

SLOW, EARLY, OTHER = "gp_slow", "gp_early", "gp_other"
PROGRAM = """
import sys
from graphpress.tools.cli.late import import_onnx_ir
import_onnx_ir()
import onnx_ir as ir
size = ir.SymbolicDim("n")
assert str(size) == "n" and not {"sympy", "onnx_ir._symbolic_shapes"} & sys.modules.keys()
print((size + 1).value, (ir.SymbolicDim("max(a, 2) // 2") * size).evaluate({"a": 5, "n": 3}))
from sympy.core.expr import Expr
import sympy
assert isinstance(sympy.Symbol("q"), Expr) and sys.modules["sympy.core.expr"].Expr is Expr
print(ir.SymbolicDim(sympy.Symbol("q")).value)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that notes when it is run, and two that import it."""
    (tmp_path / "gp_slow.py").write_text("import sys\nsys.gp_runs = getattr(sys, 'gp_runs', 0) + 1\nTHREE = 3\n")
    (tmp_path / "gp_early.py").write_text("import gp_slow\ndef three():\n    return gp_slow.THREE\n")
    (tmp_path / "gp_other.py").write_text("from gp_slow import THREE\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in (SLOW, EARLY, OTHER):
        sys.modules.pop(name, None)
    if hasattr(sys, "gp_runs"):
        del sys.gp_runs


def test_a_module_is_run_when_it_is_used(folder: Path) -> None:
    with late(SLOW):
        early = importlib.import_module(EARLY)
    assert not hasattr(sys, "gp_runs")
    assert SLOW not in sys.modules
    assert early.three() == 3
    assert sys.gp_runs == 1
    assert importlib.import_module(SLOW).THREE == importlib.import_module(OTHER).THREE == 3
    assert sys.gp_runs == 1  # there is one of it


def test_one_that_is_used_in_the_block_is_itself_from_then_on(folder: Path) -> None:
    with late(SLOW):
        other = importlib.import_module(OTHER)
        assert type(sys.modules[SLOW]).__name__ == "module"
    assert (other.THREE, sys.gp_runs) == (3, 1)
    assert sys.modules[SLOW].THREE == 3


def test_one_that_is_there_stays(folder: Path) -> None:
    there = importlib.import_module(SLOW)
    with late(SLOW):
        assert importlib.import_module(SLOW) is there
    assert sys.modules[SLOW] is there


def test_what_a_module_lacks_is_an_attribute_error(folder: Path) -> None:
    with late(SLOW):
        early = importlib.import_module(EARLY)
    with pytest.raises(AttributeError, match="FOUR"):
        _ = early.gp_slow.FOUR


def test_onnx_ir_comes_without_sympy_and_computes_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["n + 1 6", "q"]
