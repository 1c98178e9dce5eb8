"""Operators that move data: each row of the table holds for numbers, and what makes new ones is not in it."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.graph.movement import TABLE, Way, interval, movement, moves, rearranges
from tests import kit

X = np.arange(1, 65, dtype=np.float32).reshape(1, 4, 4, 4)
NODES = {
    "Flatten(x)": "",
    "Identity(x)": "",
    "Reshape(x, i)": "int64[2] i = {4, 16}",
    "Squeeze(x, i)": "int64[1] i = {0}",
    "Unsqueeze(x, i)": "int64[1] i = {0}",
    "DepthToSpace<blocksize = 2>(x)": "",
    "ReverseSequence<batch_axis = 0, time_axis = 1>(x, i)": "int64[1] i = {3}",
    "SpaceToDepth<blocksize = 2>(x)": "",
    "Transpose<perm = [0, 3, 1, 2]>(x)": "",
    "Expand(x, i)": "int64[4] i = {2, 4, 4, 4}",
    "Tile(x, i)": "int64[4] i = {1, 2, 1, 1}",
    "Gather<axis = 1>(x, i)": "int64[2] i = {3, 1}",
    "GatherElements<axis = 3>(x, i)": "int64[1,1,1,2] i = {3, 1}",
    "GatherND(x, i)": "int64[2,2] i = {0, 1, 0, 3}",
    'Resize<mode = "nearest">(x, , i)': "float[4] i = {1, 1, 2, 2}",
    "Slice(x, i, j)": "int64[2] i = {0, 1}, int64[2] j = {1, 3}",
    "Split<num_outputs = 1>(x)": "",
    "Concat<axis = 1>(x, x)": "",
    "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)": "",
    "ReduceMax(x, i)": "int64[2] i = {2, 3}",
    "ReduceMin<keepdims = 0>(x, i)": "int64[2] i = {2, 3}",
    "Clip(x, lo, hi)": "float lo = {3.5}, float hi = {9.5}",
    "Pad(x, i, lo)": "int64[8] i = {0, 0, 1, 1, 0, 0, 0, 2}, float lo = {-3}",
    "Relu(x)": "",
}


def test_every_row_of_the_table_has_a_node_here() -> None:
    assert {op.split("<")[0].split("(")[0] for op in NODES} == set(TABLE)


@pytest.mark.parametrize(("op", "constants"), NODES.items())
def test_what_comes_out_went_in_and_commutes_with_what_is_monotone(op: str, constants: str) -> None:
    model = kit.parse(
        f'<ir_version: 10, opset_import: ["" : 18]> g (float[1,4,4,4] x) => (float[?] y) <{constants}> {{ y = {op} }}'
    )
    model.graph.outputs[0].shape = None
    found = movement(model.graph[-1])
    assert found is not None
    out = kit.run(model, {"x": X})["y"]
    came, own = set(out.ravel().tolist()), set(found.literals.values())
    assert came <= set(X.ravel().tolist()) | own
    if found.way is not Way.BOUND:
        assert not own
        np.testing.assert_array_equal(kit.run(model, {"x": np.exp(X / 16)})["y"], np.exp(X / 16).ravel()[_places(out)])
    once = out.size == X.size and len(came) == X.size
    assert rearranges(model.graph[-1]) <= once
    if found.way is Way.VIEW:
        np.testing.assert_array_equal(out.ravel(), X.ravel())
    if found.way in (Way.REPEAT, Way.JOIN):
        assert came == set(X.ravel().tolist())


def _places(out: np.ndarray) -> np.ndarray:
    """X counts from one: a value says where it stood."""
    return out.astype(np.intp) - 1


@pytest.mark.parametrize(
    "op",
    [
        'Resize<mode = "linear">(x, , c)',
        'Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, , c)',
        "Clip(x, x)",
        "Tanh(x)",
        "ReduceMean(x)",
    ],
)
def test_what_makes_new_numbers_moves_none(op: str) -> None:
    model = kit.parse(f"g (float[1,4,4,4] x) => (float[?] y) <float[4] c = {{1, 1, 2, 2}}> {{ y = {op} }}")
    assert movement(model.graph[-1]) is None


def test_only_standard_operators_and_only_the_ways_asked_for() -> None:
    model = kit.parse(
        '<ir_version: 10, opset_import: ["" : 18, "other" : 1]> g (float[4] x) => (float[?] z) '
        "{ y = Identity(x)  z = other.Identity(y) }"
    )
    own, other = model.graph
    assert moves(own, Way.VIEW) and not moves(own, Way.REORDER) and not moves(None, Way.VIEW)
    assert movement(other) is None and not moves(other, Way.VIEW) and not rearranges(other)


@pytest.mark.parametrize(
    ("op", "opset", "limits"),
    [
        ("Relu(x)", 18, (0.0, np.inf)),
        ("Clip(x)", 18, (-np.inf, np.inf)),
        ("Clip(x, , hi)", 18, (-np.inf, 6.0)),
        ("Clip<min = -1.5, max = 2.5>(x)", 10, (-1.5, 2.5)),
        ("Clip(x, x)", 18, None),
        ("Tanh(x)", 18, None),
    ],
)
def test_intervals(op: str, opset: int, limits: tuple[float, float] | None) -> None:
    model = kit.parse(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float x) => (float y) <float hi = {{6}}> {{ y = {op} }}'
    )
    assert interval(model.graph[-1]) == limits
