"""Reading and writing by index, order, masks: negative indices, ties, NaN, reductions, old opsets, gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphpress.backends import fx as backend
from graphpress.backends.fx.ops import indexing
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, model, module, normal, same

X = normal(3, 4, 5)
NAN = np.array([1, np.nan, 3, np.nan, -np.inf, 3], np.float32)
TIES = np.array([[1, 5, 3, 5, 5], [4, 4, -9, 4, -9]], np.float32)
REDUCTIONS = ("add", "mul", "max", "min")


def indices(low: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(low, high, shape)


# -- read


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("index", [[0, -1, 2], [[0, -1], [2, 1]], -2, [], [[1]], [2]])
@pytest.mark.parametrize("constants", [[], [1]])
def test_gather(axis: int, index: Any, constants: list[int]) -> None:
    for dtype in ("int32", "int64"):
        chosen = np.array(index, dtype)
        same(in_torch("Gather", X, chosen, constants=constants, axis=axis), np.take(X, chosen, axis=axis))


def test_gather_one_number() -> None:
    same(in_torch("Gather", X[0, 0], np.array(-2)), X[0, 0, -2].reshape(()))


def test_gather_elements_of_fewer() -> None:
    index = indices(-4, 4, 2, 6, 3)
    expected = np.take_along_axis(X[:2, :, :3], index % 4, 1)
    same(in_torch("GatherElements", X, index, axis=1), expected)
    same(in_torch("GatherElements", X, index.astype(np.int32), axis=-2), expected)


@pytest.mark.parametrize(
    ("shape", "batch_dims"), [((2, 2), 0), ((3,), 0), ((2, 2, 1), 0), ((3, 1), 1), ((3, 2, 2), 1), ((3, 4, 2, 1), 2)]
)
def test_gather_nd(shape: tuple[int, ...], batch_dims: int) -> None:
    index = indices(-3, 3, *shape)
    same(in_torch("GatherND", X, index, batch_dims=batch_dims), in_ort("GatherND", X, index, batch_dims=batch_dims))


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_compress_by_a_short_condition(axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    condition = np.array([True, False, True])
    same(in_torch("Compress", X, condition, **attributes), np.compress(condition, X, axis))


def test_non_zero() -> None:
    same(in_torch("NonZero", TIES > 3), np.stack(np.nonzero(TIES > 3)))
    assert in_torch("NonZero", np.array(3.0, np.float32)).shape == (0, 1)  # as the standard has it, not numpy


def test_reverse_sequence_by_batch_or_time_first() -> None:
    lengths = np.array([3, 0, 2, 1])
    same(in_torch("ReverseSequence", X, lengths, opset=10), in_ort("ReverseSequence", X, lengths, opset=10))
    lengths = np.array([1, 4, 2])
    first = {"batch_axis": 0, "time_axis": 1}
    same(in_torch("ReverseSequence", X, lengths, **first), in_ort("ReverseSequence", X, lengths, **first))
    with pytest.raises(Unsupported, match="time_axis=2"):
        indexing.reverse_sequence(torch.ones(2, 2, 2), torch.ones(2), batch_axis=1, time_axis=2)


# -- write


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_reductions(reduction: str, dtype: str) -> None:
    x, updates = (3 * X).astype(dtype), (3 * normal(2, 3, 4, seed=3)).astype(dtype)
    for axis in (0, 1, -1):
        arguments = (x, indices(-3, 3, 2, 3, 4), updates)
        options: dict[str, Any] = {"axis": axis, "reduction": reduction, "opset": 18}
        execute = in_onnx if dtype == "bool" and reduction in ("max", "min") else in_ort
        same(
            in_torch("ScatterElements", *arguments, **options),
            execute("ScatterElements", *arguments, **options),
            rtol=1e-6,
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_reductions_in_half_precision(reduction: str, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    x, updates = np.arange(6).astype(kind), np.array([2, 3, 4]).astype(kind)
    found = in_torch("ScatterElements", x, np.array([1, -1, 1]), updates, reduction=reduction)
    expected = {"add": [0, 7, 2, 3, 4, 8], "mul": [0, 8, 2, 3, 4, 15]}
    expected |= {"max": [0, 4, 2, 3, 4, 5], "min": [0, 1, 2, 3, 4, 3]}
    same(found, np.array(expected[reduction]).astype(kind))


@pytest.mark.parametrize(("op", "opset"), [("Scatter", 9), ("ScatterElements", 11), ("ScatterElements", 16)])
def test_scatter_without_reduction(op: str, opset: int) -> None:
    index = np.array([[[0, -1, 2]]])
    same(
        in_torch(op, X, index, -X[:1, :1, :3], axis=1, opset=opset),
        in_ort(op, X, index, -X[:1, :1, :3], axis=1, opset=opset),
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("reduction", ["none", *REDUCTIONS])
def test_scatter_nd(reduction: str, dtype: str, depth: int) -> None:
    index = indices(-3, 3, 4, depth) if reduction != "none" else np.array([[0] * depth, [-1] * depth])
    updates = (3 * normal(len(index), *X.shape[depth:], seed=2)).astype(dtype)
    x = (3 * X).astype(dtype)
    execute = in_onnx if reduction in ("max", "min") and dtype == "bool" else in_ort
    expected = execute("ScatterND", x, index, updates, reduction=reduction, opset=18)
    same(in_torch("ScatterND", x, index, updates, reduction=reduction, opset=18), expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_nd_of_one_or_none(reduction: str) -> None:
    index, update = np.array([1, 2, -1]), np.array(5, np.float32)
    expected = X.copy()
    expected[1, 2, -1] = {"none": 5, "add": X[1, 2, -1] + np.float32(5), "max": 5}[reduction]
    same(in_torch("ScatterND", X, index, update, reduction=reduction), expected)
    none = np.zeros((0, 2), np.int64), np.zeros((0, 5), np.float32)
    same(in_torch("ScatterND", X, *none, reduction=reduction), X)


def test_unknown_reductions_are_refused() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(Unsupported, match="median"):
        indexing.scatter_elements(torch.ones(2), one, torch.ones(1), reduction="median")
    with pytest.raises(Unsupported, match="median"):
        indexing.scatter_nd(torch.ones(2), one.reshape(1, 1), torch.ones(1), reduction="median")


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, -1])
def test_tensor_scatter(mode: str, axis: int) -> None:
    past = normal(2, 4, 5, 6)
    shape = list(past.shape)
    shape[axis] = 2
    update = normal(*shape, seed=1)
    for write in (None, np.array([0, 2]), np.array([3, 9])):
        if mode == "circular" or write is None or write[1] < 3:
            expected = _written(past, update, write, mode, axis)
            same(in_torch("TensorScatter", past, update, write, mode=mode, axis=axis, opset=24), expected)


def _written(past: np.ndarray, update: np.ndarray, write: np.ndarray | None, mode: str, axis: int) -> np.ndarray:
    """The standard's loop."""
    present, axis = np.moveaxis(past.copy(), axis, 1), axis % past.ndim
    new = np.moveaxis(update, axis, 1)
    for sample in range(len(past)):
        for step in range(new.shape[1]):
            place = step + (0 if write is None else write[sample])
            present[sample, place % present.shape[1] if mode == "circular" else place] = new[sample, step]
    return np.moveaxis(present, 1, axis)


def test_tensor_scatter_of_8_bit_floats() -> None:
    kind = ml_dtypes.float8_e4m3fn
    past, update = normal(2, 3, 4, 5).astype(kind), normal(2, 3, 1, 5).astype(kind)
    expected = past.copy()
    expected[0, :, 1], expected[1, :, 3] = update[0, :, 0], update[1, :, 0]
    same(in_torch("TensorScatter", past, update, np.array([1, 3]), opset=24), expected)
    with pytest.raises(Unsupported, match="ring"):
        indexing.tensor_scatter(torch.ones(1, 2, 3), torch.ones(1, 1, 3), mode="ring")


# -- order


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int64", "uint8"])
def test_top_k_takes_the_first_of_equals(dtype: str, largest: int) -> None:
    x = np.abs(TIES).astype(dtype)
    k = np.array([4])
    order = np.argsort(-x.astype(np.float64) if largest else x, -1, kind="stable")[:, :4]
    values, index = in_torch("TopK", x, k, constants=[1], largest=largest, outputs=2)
    same(index, order)
    same(values, np.take_along_axis(x, order, -1))
    same(in_torch("TopK", x.T.copy(), k[:1] // 2, axis=0, largest=largest, outputs=2)[1], order.T[:2])


def test_top_k_of_old_opsets_and_unsigned() -> None:
    same(in_torch("TopK", TIES, opset=1, k=2, outputs=2)[1], np.array([[1, 3], [0, 1]]))
    same(in_torch("TopK", TIES, np.array([2]), opset=10, axis=1, outputs=2)[0], np.array([[5, 5], [4, 4]], np.float32))
    x = np.array([2**63 + 1, 1, 2**64 - 1, 5], np.uint64)
    values, index = in_torch("TopK", x, np.array([3]), outputs=2)
    same(values, x[[2, 0, 3]])
    same(index, np.array([2, 0, 3]))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_max_and_min(op: str, last: int, keepdims: int) -> None:
    options: dict[str, Any] = {"keepdims": keepdims, "select_last_index": last, "opset": 13}
    for x in (TIES, TIES.astype(np.int32), TIES.astype(np.float16), np.abs(TIES).astype(np.uint16)):
        for axis in (0, -1):
            same(in_torch(op, x, axis=axis, **options), in_onnx(op, x, axis=axis, **options))
    x = np.array([2**63 + 1, 1, 2**64 - 1, 2**64 - 1, 1], np.uint64)
    place = {("ArgMax", 0): 2, ("ArgMax", 1): 3, ("ArgMin", 0): 1, ("ArgMin", 1): 4}[op, last]
    assert in_torch(op, x, **options) == place


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("x", [TIES, TIES.astype(np.int64), NAN, NAN[:0], np.array([3, 1, 3, 2], np.int8)])
def test_unique_numbers(x: np.ndarray, in_order: int) -> None:
    values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    order = np.arange(len(values)) if in_order else np.argsort(first)
    found = in_torch("Unique", x, sorted=in_order, outputs=4)
    expected = values[order], first[order], np.argsort(order)[inverse.reshape(-1)], counts[order]
    for a, b in zip(found, expected, strict=True):
        same(a, b)


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_unique_slices(axis: int, in_order: int) -> None:
    x = np.array([[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0]], np.float32)
    expected = in_ort("Unique", x, axis=axis, sorted=in_order, outputs=4)
    for a, b in zip(in_torch("Unique", x, axis=axis, sorted=in_order, outputs=4), expected, strict=True):
        same(a, b)


def test_unique_of_unsigned() -> None:
    x = np.array([2**63 + 1, 1, 2**63 + 1, 5], np.uint64)
    values, first = in_torch("Unique", x, outputs=2)
    same(values, np.array([1, 5, 2**63 + 1], np.uint64))
    same(first, np.array([1, 3, 0]))


# -- masks


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("depth", [np.array(3), np.array([3.0], np.float32)])
def test_one_hot(axis: int, depth: np.ndarray) -> None:
    index, values = np.array([0, 2, -1, 5, -9, -3]), np.array([2, 7], np.float32)
    expected = in_ort("OneHot", index, np.array(3), values, axis=axis)
    same(in_torch("OneHot", index, depth, values, axis=axis), expected)
    same(in_torch("OneHot", index, depth, values, axis=axis, constants=[1]), expected)
    same(in_torch("OneHot", index + np.float32(0.0), depth, values > 3, axis=axis), expected > 3)


@pytest.mark.parametrize("k", [-5, -1, 0, 2, 7])
@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("constants", [[], [1]])
def test_trilu(k: int, upper: int, constants: list[int]) -> None:
    for x in (X, X > 0, X.astype(np.int64)):
        same(in_torch("Trilu", x, np.array(k), upper=upper, constants=constants), (np.triu if upper else np.tril)(x, k))


def test_trilu_by_default() -> None:
    same(in_torch("Trilu", X), np.triu(X))


@pytest.mark.parametrize("k", [-9, -1, 0, 2])
def test_eye_like(k: int) -> None:
    same(in_torch("EyeLike", X[0], k=k), np.eye(4, 5, k, np.float32))
    same(in_torch("EyeLike", X[0], k=k, dtype=ir.DataType.UINT16.value), np.eye(4, 5, k, np.uint16))


# -- derivatives, compilation


def test_gradients() -> None:
    check = torch.autograd.gradcheck
    place = torch.tensor([[1, -1], [0, 2]])
    assert check(lambda x: indexing.gather(x, place, axis=1), doubles(2, 3))
    assert check(lambda x: indexing.gather_nd(x, place), doubles(2, 3))
    assert check(lambda x: indexing.gather_elements(x, place, axis=1), doubles(2, 3))
    assert check(lambda x: indexing.top_k(x, 2)[0], doubles(2, 4))
    assert check(lambda x: indexing.unique(x)[0], doubles(2, 2))
    for reduction in ("none", *REDUCTIONS):
        updates = doubles(2, 2, seed=1)
        assert check(
            lambda x, u, r=reduction: indexing.scatter_elements(x, place, u, axis=1, reduction=r),
            (doubles(2, 3), updates),
        )
        assert check(
            lambda x, u, r=reduction: indexing.scatter_nd(x, place, u, reduction=r), (doubles(2, 3), doubles(2, seed=2))
        )


CASES = {
    "Gather": (X, np.array([[0, -1]])), "GatherElements": (X, np.zeros((3, 1, 2), np.int64)),
    "GatherND": (X, np.array([1, -1])), "ScatterND": (X, np.array([[0], [-1]]), X[:2]),
    "ReverseSequence": (X, np.array([1, 2, 3, 0])), "Trilu": (X, np.array(1)), "EyeLike": (X[0],),
}  # fmt: skip


@pytest.mark.parametrize("op", CASES)
def test_no_graph_breaks(op: str) -> None:
    inputs = CASES[op]
    built = module(op, *inputs)
    given = [torch.from_numpy(x) for x in inputs]
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    same(compiled(*given).numpy(), built(*given).numpy())


def test_indices_on_meta() -> None:
    built = backend.build(model("GatherND", X, np.array([[0, 1]])))
    assert built(torch.empty(3, 4, 5, device="meta"), torch.empty(1, 2, dtype=torch.int64, device="meta")).shape == (
        1,
        5,
    )
