"""Shapes, slices, joins and padding: old opsets, corner cases, symbolic sizes, gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.backends import fx as backend
from graphpress.backends.fx.ops import movement
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, model, normal, same

HUGE = 2**63 - 1
X = normal(2, 3, 4)
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# -- shapes


@pytest.mark.parametrize(
    ("shape", "expected"), [((0, -1), (2, 12)), ((4, 0, 2), (4, 3, 2)), ((-1,), (24,)), ((2, 0, 2, 2), (2, 3, 2, 2))]
)
@pytest.mark.parametrize("constants", [[1], []])
def test_reshape(shape: tuple[int, ...], expected: tuple[int, ...], constants: list[int]) -> None:
    same(in_torch("Reshape", X, ints(*shape), constants=constants), X.reshape(expected))


def test_reshape_of_nothing() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert in_torch("Reshape", empty, ints(3, 0), constants=[1], allowzero=1).shape == (3, 0)
    assert in_torch("Reshape", empty, ints(-1, 5), constants=[1]).shape == (0, 5)
    assert in_torch("Reshape", empty, ints(0, 1, 3), constants=[1]).shape == (0, 1, 3)


def test_reshape_and_scalars() -> None:
    same(in_torch("Reshape", X[:1, :1, :1], ints(), constants=[1]), X[0, 0, 0].reshape(()))
    same(in_torch("Reshape", X[0, 0, 0].reshape(()), ints(1, 1), constants=[1]), X[:1, 0, :1])


def test_reshape_by_an_attribute() -> None:
    same(in_torch("Reshape", X, opset=1, shape=[0, -1], consumed_inputs=[0]), X.reshape(2, 12))


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2, 3])
def test_flatten(axis: int) -> None:
    same(in_torch("Flatten", X, axis=axis), in_ort("Flatten", X, axis=axis))


def test_flatten_few_axes() -> None:
    same(in_torch("Flatten", X[0, 0]), X[0, 0].reshape(4, 1))
    same(in_torch("Flatten", X[0, 0, 0].reshape(()), axis=0), X[:1, :1, 0])
    assert in_torch("Flatten", np.zeros((2, 0, 3), np.float32), axis=2).shape == (0, 3)


@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 2), (2, 0), (-1, -3), ()])
def test_squeeze(axes: tuple[int, ...]) -> None:
    x = normal(1, 3, 1)
    same(in_torch("Squeeze", x, ints(*axes), constants=[1]), in_ort("Squeeze", x, ints(*axes), constants=[1]))


def test_squeeze_by_an_attribute() -> None:
    x = normal(1, 3, 1)
    same(in_torch("Squeeze", x, opset=11, axes=[-1]), x[..., 0])
    same(in_torch("Squeeze", x, opset=1), x[0, :, 0])


@pytest.mark.parametrize("axes", [(0,), (-1,), (3,), (0, 2), (4, 0), (-1, -3), (1, 2, -1)])
def test_unsqueeze(axes: tuple[int, ...]) -> None:
    expected = in_ort("Unsqueeze", X, ints(*axes), constants=[1])
    same(in_torch("Unsqueeze", X, ints(*axes), constants=[1]), expected)
    same(in_torch("Unsqueeze", X, opset=11, axes=list(axes)), expected)


@pytest.mark.parametrize("perm", [None, [0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_transpose(perm: list[int] | None) -> None:
    attributes = {} if perm is None else {"perm": perm}
    same(in_torch("Transpose", X, opset=1, **attributes), X.transpose(perm))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (4,), (5, 1, 3, 1), (1,), ()])
def test_expand(shape: tuple[int, ...]) -> None:
    x = normal(2, 3, 1) if shape != (2, 3, 4) else normal(3, 1)
    expected = in_ort("Expand", x, ints(*shape), constants=[1])
    same(in_torch("Expand", x, ints(*shape), constants=[1]), expected)
    same(in_torch("Expand", x, ints(*shape)), expected)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "uint64", "int4", "bfloat16", "float64", *FLOAT8])
def test_constant_of_shape(dtype: str) -> None:
    value = np.array([1], np.float32).astype(getattr(ml_dtypes, dtype, None) or dtype)
    found = in_torch("ConstantOfShape", ints(2, 0, 3), opset=25, value=ir.tensor(value))
    assert found.dtype == value.dtype
    assert found.shape == (2, 0, 3)
    same(
        in_torch("ConstantOfShape", ints(2), constants=[0], opset=25, value=ir.tensor(value)).astype(np.float32),
        np.ones(2, np.float32),
    )


def test_constant_of_shape_by_default_and_beyond_int64() -> None:
    same(in_torch("ConstantOfShape", ints(3)), np.zeros(3, np.float32))
    same(in_torch("ConstantOfShape", ints()), np.zeros((), np.float32))
    most = np.array([2**64 - 2], np.uint64)
    same(in_torch("ConstantOfShape", ints(1), value=ir.tensor(most)), most)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_8_bit_floats_move(dtype: str) -> None:
    x = normal(1, 3, 2).astype(getattr(ml_dtypes, dtype))
    same(in_torch("Transpose", x, opset=24, perm=[2, 0, 1]), x.transpose(2, 0, 1))
    same(in_torch("Reshape", x, ints(-1), opset=24), x.reshape(-1))
    same(in_torch("Squeeze", x, ints(0), opset=24), x[0])
    same(in_torch("Unsqueeze", x, ints(0), opset=24), x[None])
    same(in_torch("Flatten", x, opset=24), x.reshape(1, 6))
    one = np.ones((), x.dtype)
    padded = in_torch("Pad", x, ints(0, 0, 1, 0, 0, 0), one, opset=24)
    same(padded, np.concatenate([np.ones((1, 3, 1), x.dtype), x], 2))


# -- joins and parts


def test_concat_by_an_attribute() -> None:
    same(in_torch("Concat", X, X, opset=1), np.concatenate([X, X], 1))
    same(in_torch("Concat", X, X[:1], opset=4, axis=0), np.concatenate([X, X[:1]], 0))
    same(in_torch("Concat", X, X, X, axis=-1), np.concatenate([X, X, X], -1))


def test_split_by_attributes() -> None:
    a, b = in_torch("Split", X, opset=2, axis=-1, split=[1, 3], outputs=2)
    same(a, X[..., :1])
    same(b, X[..., 1:])
    same(in_torch("Split", X, opset=11, axis=1, outputs=3)[2], X[:, 2:])
    same(in_torch("Split", X, opset=1, axis=1, split=[3], outputs=1), X)
    same(in_torch("Split", X, np.array([1, 2], np.float32), opset=1, axis=1, outputs=2)[1], X[:, 1:])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_split_into_a_number_of_parts(count: int) -> None:
    x = normal(9, 2)
    given = in_torch("Split", x, opset=18, num_outputs=count, outputs=count)
    expected = in_ort("Split", x, opset=18, num_outputs=count, outputs=count)
    for a, b in zip([given] if count == 1 else given, [expected] if count == 1 else expected, strict=True):
        same(a, b)


def test_split_by_an_input() -> None:
    parts = in_torch("Split", X, ints(0, 3, 1), axis=2, outputs=3)
    assert [p.shape[2] for p in parts] == [0, 3, 1]
    same(parts[1], X[..., :3])


def test_split_of_a_symbolic_axis() -> None:
    x = normal(6, 3)
    free = _open(model("Split", x, opset=18, axis=0, num_outputs=2, outputs=2), 0)
    exported = torch.export.export(free, (torch.from_numpy(x),), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    a, b = exported(torch.ones(9, 3))
    assert (a.shape, b.shape) == ((5, 3), (4, 3))


def _open(graph: Any, *axes: int) -> torch.fx.GraphModule:
    """A module whose first input has no fixed size on these axes."""
    value = graph.graph.inputs[0]
    value.shape = type(value.shape)([None if i in axes else d for i, d in enumerate(value.shape)])
    return backend.build(graph)


@settings(max_examples=60)
@given(
    starts=st.integers(-7, 7),
    ends=st.one_of(st.integers(-7, 7), st.sampled_from([HUGE, -HUGE - 1])),
    step=st.sampled_from([1, 2, 5, -1, -2, -5, HUGE, -HUGE]),
    size=st.integers(0, 5),
)
def test_slice_agrees_with_onnx_runtime(starts: int, ends: int, step: int, size: int) -> None:
    x = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
    assume(step > 0 or ends != HUGE)  # ONNX Runtime takes it for the beginning, the standard does not
    arguments = (x, ints(starts), ints(ends), ints(0), ints(step))
    same(in_torch("Slice", *arguments, constants=[1, 2, 3, 4]), in_ort("Slice", *arguments))


def test_slice_of_several_axes() -> None:
    found = in_torch("Slice", X, ints(0, -1), ints(HUGE, -HUGE - 1), ints(1, -1), ints(2, -1), constants=[1, 2, 3, 4])
    same(found, X[:, ::2, ::-1])
    same(in_torch("Slice", X, ints(1, 0), ints(2, 2)), X[1:2, :2])


def test_slice_by_attributes() -> None:
    same(in_torch("Slice", X, opset=1, starts=[0, 1], ends=[HUGE, -1], axes=[0, 2]), X[:, :, 1:-1])
    same(in_torch("Slice", X, opset=1, starts=[1], ends=[2]), X[1:2])


@pytest.mark.parametrize("step", [1, -1, -2])
def test_slice_of_a_symbolic_axis(step: int) -> None:
    arguments = (X, ints(-1 if step < 0 else 1), ints(-HUGE if step < 0 else -1), ints(0), ints(step))
    free = _open(model("Slice", *arguments, constants=[1, 2, 3, 4]), 0)
    exported = torch.export.export(
        free, (torch.from_numpy(normal(6, 3, 4)),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    ).module()
    for size in (4, 7):
        x = normal(size, 3, 4, seed=size)
        same(exported(torch.from_numpy(x)).numpy(), x[::step] if step < 0 else x[1:-1])


def test_tile() -> None:
    same(in_torch("Tile", X, ints(1, 2, 0)), np.tile(X, (1, 2, 0)))
    same(in_torch("Tile", X, ints(2, 1, 3), constants=[1], opset=6), np.tile(X, (2, 1, 3)))
    tiles, axis = np.array(3, np.float32), np.array(1, np.float32)
    same(in_torch("Tile", X, tiles, axis, opset=1), np.tile(X, (1, 3, 1)))


# -- padding


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 5), (2, 3, 4, 5), (2, 2, 3, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_pad(mode: str, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(1)
    x = (10 * normal(*shape)).astype(dtype)
    for axes in (range(len(shape)), range(min(2, len(shape) - 1), len(shape))):
        pads = [int(rng.integers(0, 2)) if i % len(shape) in axes else 0 for i in range(2 * len(shape))]
        expected = in_onnx("Pad", x, ints(*pads), mode=mode)
        same(in_torch("Pad", x, ints(*pads), constants=[1], mode=mode), expected)
        same(in_torch("Pad", x, ints(*pads), mode=mode), expected)


@pytest.mark.parametrize("mode", ["edge", "wrap", "constant"])
@pytest.mark.parametrize("pads", [(0, 5, 0, 7), (0, -1, 0, 3), (0, 2, 0, -1), (-1, 2, 1, -2), (7, 0, 0, 0)])
def test_pads_beyond_the_size_and_below_zero(mode: str, pads: tuple[int, ...]) -> None:
    x = normal(2, 3)
    same(in_torch("Pad", x, ints(*pads), mode=mode), in_ort("Pad", x, ints(*pads), mode=mode))


def test_reflections_of_reflections() -> None:
    x = normal(2, 3, 2, 4)
    pads = ints(0, 0, 3, 9, 0, 0, 2, 5)
    same(in_torch("Pad", x, pads, mode="reflect"), in_onnx("Pad", x, pads, mode="reflect"))


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int64", "float64", "bool", "bfloat16"])
@pytest.mark.parametrize("constants", [[1, 2, 3], []])
def test_pad_with_a_value(dtype: str, constants: list[int]) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    x, value = np.ones((2, 3), kind), np.array(7).astype(kind)
    found = in_torch("Pad", x, ints(1, -1), value, ints(-1), constants=constants)
    expected = np.concatenate([np.full((2, 1), value), x[:, :-1]], 1)
    same(found, expected)


def test_pad_keeps_large_integers() -> None:
    x, value = ints(2**62 + 1), np.array(2**53 + 1)
    same(in_torch("Pad", x, ints(0, 1), value, constants=[1, 2]), ints(2**62 + 1, 2**53 + 1))


def test_pad_by_attributes() -> None:
    same(
        in_torch("Pad", X[0], opset=1, paddings=[0, 1, 0, 0], value=2.0),
        np.pad(X[0], ((0, 0), (1, 0)), constant_values=2),
    )
    same(in_torch("Pad", X[0], opset=2, pads=[0, 1, 0, 2], mode="edge"), np.pad(X[0], ((0, 0), (1, 2)), "edge"))


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(Unsupported, match="symmetric"):
        movement.pad(torch.ones(2), [1, 1], mode="symmetric")


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_gradient_of_pad(mode: str) -> None:
    assert torch.autograd.gradcheck(lambda x: movement.pad(x, [0, 0, 1, 0, 0, 1], mode=mode), doubles(1, 2, 3))
    assert torch.autograd.gradcheck(lambda x: movement.pad(x, [1, 0, 0, 1], mode=mode), doubles(2, 3))


def test_gradient_of_a_pad_value() -> None:
    value = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v: movement.pad(x, [1, 2], v), (doubles(3), value))


def test_gradient_of_slices() -> None:
    assert torch.autograd.gradcheck(lambda x: movement.slice_(x, [-1, 0], [-HUGE, 2], [0, 1], [-2, 1]), doubles(4, 3))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_of_a_symbolic_axis(mode: str) -> None:
    free = _open(model("Pad", X, ints(0, 0, 1, 0, 0, 2), constants=[1], mode=mode), 0, 2)
    dims = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)
    exported = torch.export.export(free, (torch.from_numpy(X),), dynamic_shapes=dims).module()
    x = normal(3, 3, 7)
    same(exported(torch.from_numpy(x)).numpy(), np.pad(x, ((0, 0), (0, 0), (1, 2)), mode))
