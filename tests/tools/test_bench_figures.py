"""The command of the figures: what it finds, prints and refuses."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.runner import quiet
from graphpress.tools.bench.figures import __main__ as command
from graphpress.tools.bench.figures import formats
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.task import Task
from graphpress.types import Scheme, per_channel, per_group
from tests.passes.quantizing import model


def test_each_family_has_measure() -> None:
    import importlib

    for name in command.names():
        assert callable(importlib.import_module(f"graphpress.tools.bench.figures.{name}").measure)


def test_a_row_says_whether_the_bar_holds() -> None:
    assert command.line(Figure("loss", "<= 0.1", "0.2", False)) == "| loss | <= 0.1 | 0.2 | NOT met |  |"
    assert command.line(Figure("loss", "", "0.2")) == "| loss |  | 0.2 |  |  |"


def test_an_unknown_family_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert command.main(["--zoo", str(tmp_path), "--only", "nothing"]) == 2
    assert "--only 'nothing': has no figures" in capsys.readouterr().err


def test_the_formula_counts_codes_and_what_stands_beside_them() -> None:
    """By hand for [512, 256] in groups along the first axis; NVFP4 has a scale of the tensor and a table of levels."""
    count, groups = 512 * 256, 8 * 256
    cases = [
        (Scheme("int4", per_group(0, 64)), 4 * count + 32 * groups),
        (Scheme("uint4", per_group(0, 64), symmetric=False), 4 * count + (32 + 4) * groups),
        (Scheme("int3", per_group(0, 64)), 3 * count + 32 * groups),
        (Scheme("int4", per_group(0, 16), quantizer="nvfp4"), 4 * count + 8 * 4 * groups + 32 + 16 * 32),
        (Scheme("float8e4m3fn", per_channel(1), quantizer="float8"), 8 * count + 32 * 256),
    ]
    for scheme, bits in cases:
        assert formats._bits((512, 256), scheme) == bits, scheme


def test_a_format_is_scored_from_its_file_and_its_bytes_are_those_of_the_formula(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    made = model("g (float[N, 64] x, float[64, 256] w) => (float[N, 256] y) { [one] y = MatMul(x, w) }", {"w": w})
    ir.save(made, tmp_path / "float.onnx")
    x = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)

    def score(run: FileRunner, whole: FileRunner) -> dict[str, float]:
        return {"": float(np.square(run({"x": x})["y"] - whole({"x": x})["y"]).sum())}

    task = Task("one", "language", lambda _: tmp_path / "float.onnx", lambda: {"x": x}, score, lambda n: {"x": x[:n]})
    row, whole = formats._Row("in 4 bits", "w4a16"), FileRunner(tmp_path / "float.onnx")
    found = formats._measured(task, tmp_path / "float.onnx", made, whole, row, tmp_path / "out.onnx", quiet)
    assert found.met and "4.50 bits a weight" in found.note and float(found.measured.split()[0]) > 0
