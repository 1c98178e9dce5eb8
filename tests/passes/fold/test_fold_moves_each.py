"""Which operators move data on integers, and on which: each between quantizers, run by ONNX Runtime."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.errors import Unsupported
from graphpress.graph.movement import TABLE, movement
from graphpress.passes.fold.conversions import conversions
from graphpress.passes.fold.move_qdq import MoveQdq
from graphpress.target import Target
from tests.kit import apply, assert_same_outputs, parse, random_feeds, show

SHAPED = "float[1,4,4,4] x) => (float[?] y)"
MOVES = {
    "Concat<axis = 1>(h, h)": "",
    "Expand(h, i)": "int64[4] i = {2, 4, 4, 4}",
    "Flatten(h)": "",
    "Gather<axis = 1>(h, i)": "int64[2] i = {3, 1}",
    "GatherElements<axis = 3>(h, i)": "int64[1,1,1,2] i = {3, 1}",
    "GatherND(h, i)": "int64[2,2] i = {0, 1, 0, 3}",
    "Identity(h)": "",
    "Reshape(h, i)": "int64[2] i = {4, 16}",
    "ReverseSequence<batch_axis = 1, time_axis = 0>(h, i)": "int64[4] i = {1, 1, 1, 1}",
    "Slice(h, i, j)": "int64[2] i = {0, 1}, int64[2] j = {1, 3}",
    "Squeeze(h, i)": "int64[1] i = {0}",
    "Tile(h, i)": "int64[4] i = {1, 2, 1, 1}",
    "Transpose<perm = [0, 2, 3, 1]>(h)": "",
    "Unsqueeze(h, i)": "int64[1] i = {0}",
    "Clip(h, lo, hi)": "float lo = {-0.4}, float hi = {1.77}",
    "Clip(h, , hi)": "float hi = {0.503}",
    "DepthToSpace<blocksize = 2>(h)": "",
    "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(h)": "",
    "Pad(h, i)": "int64[8] i = {0, 0, 1, 1, 0, 0, 0, 2}",
    "Pad(h, i, lo)": "int64[8] i = {0, 0, 1, 1, 0, 0, 0, 2}, float lo = {-0.777}",
    'Pad<mode = "edge">(h, i)': "int64[8] i = {0, 0, 1, 1, 0, 0, 0, 2}",
    "ReduceMax(h, i)": "int64[2] i = {2, 3}",
    "ReduceMin<keepdims = 0>(h, i)": "int64[2] i = {2, 3}",
    "Relu(h)": "",
    'Resize<mode = "nearest">(h, , i)': "float[4] i = {1, 1, 2, 2}",
    "SpaceToDepth<blocksize = 2>(h)": "",
}
TARGET = Target.load("ort-cpu", "x86-64")
WIDE = {  # those of which no kernel is missing, by the ONNX Runtime that is installed: see the second test below
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "ReverseSequence",
    "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip


def _one(op: str, constants: str, dtype: str, where: str, opset: int) -> ir.Model:
    """The operator between Q and Q, or behind a DQ alone."""
    zero = {"int8": 3, "uint8": 120, "int16": -400, "uint16": 33000}[dtype]
    body = "m = Neg(x)  q = QuantizeLinear(m, s, z)  h = DequantizeLinear(q, s, z)" if where != "Q" else "h = Neg(x)"
    tail = "y = Neg(r)" if where == "DQ" else "p = QuantizeLinear(r, s, z)  y = DequantizeLinear(p, s, z)"
    values = ", ".join(filter(None, [f"float s = {{0.0173}}, {dtype} z = {{{zero}}}", constants]))
    model = parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g ({SHAPED} <{values}> {{ {body}  r = {op}  {tail} }}'
    )
    model.graph.outputs[0].shape = None
    return model


@pytest.mark.parametrize(
    ("opset", "dtype"),
    [(18, "uint8"), (21, "int8"), (21, "uint8"), (21, "int16"), (21, "uint16"), (25, "uint8")],
)
@pytest.mark.parametrize(("op", "constants"), MOVES.items())
def test_each_runs_on_integers_and_means_the_same(op: str, constants: str, dtype: str, opset: int) -> None:
    for where in ("DQ-Q", "DQ", "Q"):
        before = _one(op, constants, dtype, where, opset)
        node = next(n for n in before.graph if n.outputs[0].name == "r")
        assert movement(node) is not None
        after, [report] = apply(before, MoveQdq(), ctx=Context(target=TARGET))
        on_grid = not op.startswith(("Clip", "Pad(h, i, lo)")) or where != "DQ"
        assert report.changed == (on_grid and (dtype in ("int8", "uint8") or node.op_type in WIDE)), show(after)
        feeds = random_feeds(before)
        assert_same_outputs(before, after, feeds)
        if report.changed:
            moved = next(n for n in after.graph if n.name == node.name)
            assert moved.outputs[0].dtype == ir.DataType[dtype.upper()]
            assert len(conversions(after)) <= len(conversions(before))


@pytest.mark.parametrize("op", [op for op in MOVES if "(h" in op and op.split("<")[0].split("(")[0] not in WIDE])
def test_what_the_target_does_not_list_is_refused_on_16_bits(op: str) -> None:
    bold = dataclasses.replace(TARGET, wide_moves=frozenset(TABLE))
    refused = 0
    for dtype in ("int16", "uint16"):
        after, [report] = apply(_one(op, MOVES[op], dtype, "Q", 21), MoveQdq(), ctx=Context(target=bold))
        assert report.changed
        try:
            reference.execute(after)
        except Unsupported:
            refused += 1
    assert refused


def test_without_a_target_nothing_is_known_of_16_bits() -> None:
    assert [apply(_one("Flatten(h)", "", d, "Q", 21), MoveQdq())[1][0].changed for d in ("int8", "int16")] == [1, 0]


@pytest.mark.parametrize(
    "op",
    [
        'Resize<mode = "linear">(h, , c)',
        'Resize<coordinate_transformation_mode = "tf_crop_and_resize">(h, , c)',
        "AveragePool<kernel_shape = [2, 2]>(h)",
        "ReduceMean(h)",
        "Tanh(h)",
        "Clip(h, computed)",
    ],
)
def test_what_makes_new_numbers_stays_in_float(op: str) -> None:
    model = _one(op, "float[4] c = {1, 1, 2, 2}", "uint8", "DQ-Q", 21)
    assert movement(next(n for n in model.graph if n.outputs[0].name == "r")) is None


def test_a_pool_that_tells_positions_stays_in_float() -> None:
    model = parse(
        "g (float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] i) { y, i = MaxPool<kernel_shape = [2,2]>(x) }"
    )
    assert movement(model.graph[0]) is None
