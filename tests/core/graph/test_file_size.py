"""The bytes of a file: guessed before it is written, and short names in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.graph import file_size
from tests import kit
from tests.passes.quantizing import model, normal

LONG = "model/encoder/layers/0/self_attention/output_projection/pointwise_convolution/conv"


def chain(count: int) -> ir.Model:
    """Convolutions whose values, weights and nodes have long names."""
    inputs = ", ".join(f"float[4, 4, 1, 1] w{i}" for i in range(count))
    body, last = "", "x"
    for i in range(count):
        out = f"r{i}" if i < count - 1 else "y"
        body, last = f"{body} [n{i}] c{i} = Conv({last}, w{i}) [m{i}] {out} = LeakyRelu(c{i})", out
    text = f"g (float[N, 4, 6, 6] x, {inputs}) => (float[N, 4, 6, 6] y) {{ {body} }}"
    made = model(text, {f"w{i}": normal(4, 4, 1, 1, seed=i) for i in range(count)})
    for i, node in enumerate(made.graph):
        node.name = f"{LONG}/{i}"
        if node.outputs[0].name != "y":
            node.outputs[0].name = f"{LONG}/{i}/out"
    return made


@pytest.mark.parametrize("external", [False, True])
def test_what_is_guessed_is_what_is_written(tmp_path: Path, external: bool) -> None:
    made = chain(6)
    made.graph.initializers["w0"].const_value = ir.tensor(np.zeros((4, 4, 1, 1), np.float32), name="w0")
    gp.save(made, tmp_path / "m.onnx", external=external)
    written = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert file_size.file_bytes(made) == pytest.approx(written, rel=0.01 if not external else 0.1)


def test_a_file_says_types_of_its_tensors_once(tmp_path: Path) -> None:
    gp.save(chain(3), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    assert not {i.name for i in proto.graph.initializer} & {v.name for v in proto.graph.value_info}
    again = gp.load(tmp_path / "m.onnx")
    assert again.graph.initializers["w0"].dtype == ir.DataType.FLOAT
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


def test_names_that_were_added_are_short_and_the_users_stay(tmp_path: Path) -> None:
    made, feeds = chain(8), {"x": normal(40, 4, 6, 6)}
    before = file_size.names(made)
    low, report = gp.compile(made, "w8a8", feeds, gate=False, prove=False)
    added = file_size.names(low)
    assert max(len(n) for n in added - before) <= file_size.LONG
    assert {n.name for n in made.graph} <= added  # sites are found by them
    gp.save(made, tmp_path / "before.onnx")
    gp.save(low, tmp_path / "after.onnx")
    sizes = [(tmp_path / f"{n}.onnx").stat().st_size for n in ("before", "after")]
    assert sizes[1] < 3.5 * sizes[0]  # 9 times with names as long as the user's
    assert [report.size[f"file_{n}"] for n in ("before", "after")] == pytest.approx(sizes, rel=0.02)
    (grown,) = (w.why for w in report.warnings if w.where == "file size")
    assert "larger than before" in grown


def test_short_names_change_no_number() -> None:
    made = chain(4)
    short = made.clone()
    file_size.shorten(short, ())
    assert max(len(v.name or "") for n in short.graph for v in n.outputs) < len(LONG)
    feeds = {"x": normal(2, 4, 6, 6)}
    np.testing.assert_array_equal(kit.run(made, feeds)["y"], kit.run(short, feeds)["y"])
    assert list(short.graph.initializers) == [v.name for v in short.graph.initializers.values()]
