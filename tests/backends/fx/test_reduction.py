"""Reductions in all their forms: axes, nothing to reduce, integers, NaN; running sums; derivatives."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import reduction
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

X = normal(3, 4, 5)
OPS = [f"Reduce{n}" for n in ("Sum", "Prod", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")]
EMPTY = {
    "ReduceProd": 1.0,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceLogSum": -np.inf,
    "ReduceLogSumExp": -np.inf,
}
EXACT = ("ReduceMax", "ReduceMin")


def data(op: str) -> np.ndarray:
    return np.abs(X) + np.float32(0.1) if op == "ReduceLogSum" else X


def axes_input(axes: list[int] | None) -> list[np.ndarray]:
    return [] if axes is None else [np.array(axes, np.int64)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", [None, [], [0], [-1, 0], [1, 2, 0]])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("noop", [0, 1])
def test_axes(op: str, axes: list[int] | None, keepdims: int, noop: int) -> None:
    options = {"keepdims": keepdims, "noop_with_empty_axes": noop, "opset": 18}
    inputs = (data(op), *axes_input(axes))
    same(in_torch(op, *inputs, **options), in_ort(op, *inputs, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("opset", [1, 11])
def test_axes_as_an_attribute(op: str, opset: int) -> None:
    for axes in ({}, {"axes": [1]}, {"axes": [0, 2]}):
        options: dict[str, Any] = {"opset": 11, **axes}
        expected = in_ort(op, data(op), **options)
        same(in_torch(op, data(op), **(options | {"opset": opset})), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [o for o in OPS if o != "ReduceMean"])
@pytest.mark.parametrize("shape", [(2, 0, 3), (0,)])
def test_of_nothing(op: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    for axes in (None, [0], [-1], [len(shape) // 2]):
        inputs = (x, *axes_input(axes))
        expected = np.sum(x, axis=tuple(axes) if axes else None, keepdims=True)
        if axes is None or any(shape[a] == 0 for a in axes):
            expected = np.full_like(expected, EMPTY.get(op, 0.0))
        same(in_torch(op, *inputs, opset=18), expected)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint32", "uint64"])
def test_extremes_of_integers(op: str, dtype: str) -> None:
    low, high = (False, True) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    x = np.array([[low, high, high], [low, low, high]], dtype)
    same(in_torch(op, x, np.array([0]), opset=20), (np.max if op == "ReduceMax" else np.min)(x, 0, keepdims=True))
    least = np.full((2, 1), low if op == "ReduceMax" else high, dtype)
    same(in_torch(op, x[:, :0], np.array([1]), opset=20), least)


@pytest.mark.parametrize("op", [o for o in OPS if o not in ("ReduceLogSum", "ReduceLogSumExp")])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(op: str, dtype: str) -> None:
    x = (5 * X).astype(dtype)
    x[x == 0] = 1
    inputs = (x[:2], np.array([0, 1]))
    expected = (in_onnx if op == "ReduceProd" else in_ort)(op, *inputs, opset=18)
    same(in_torch(op, *inputs, opset=18), expected)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_unsigned_wrap(dtype: str) -> None:
    top = np.array(2 ** (np.iinfo(dtype).bits - 1), dtype)
    x = np.array([[top, 3], [top + 1, 5]], dtype)
    with np.errstate(over="ignore"):
        expected = {"ReduceSum": x.sum(0, dtype=dtype), "ReduceProd": x.prod(0, dtype=dtype)}
        expected |= {"ReduceL1": expected["ReduceSum"], "ReduceSumSquare": (x * x).sum(0, dtype=dtype)}
    expected["ReduceL2"] = np.sqrt(expected["ReduceSumSquare"].astype(np.float64)).astype(dtype)
    expected["ReduceMean"] = np.array([int(top), 4], dtype)
    for op, y in expected.items():
        same(in_torch(op, x, np.array([0]), keepdims=0, opset=18), y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_rounded_once(op: str, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    x = (data(op) * 100 if op == "ReduceSumSquare" else data(op)).astype(kind)[:1, :2]
    exact = in_torch(op, x.astype(np.float64), np.array([1, 2]), opset=18)
    found = in_torch(op, x, np.array([1, 2]), opset=18)
    assert found.dtype == kind
    finite = exact.astype(kind).astype(np.float64)
    steps = 4 if op == "ReduceProd" else 1  # torch multiplies axis after axis
    np.testing.assert_allclose(found.astype(np.float64), finite, rtol=steps * float(ml_dtypes.finfo(kind).eps))


@pytest.mark.parametrize("op", EXACT)
def test_nan_is_the_extreme(op: str) -> None:
    x = np.array([[1, np.nan], [2, 3]], np.float32)
    same(
        in_torch(op, x, np.array([1]), keepdims=0, opset=20),
        np.array([np.nan, 3 if op == "ReduceMax" else 2], np.float32),
    )


@pytest.mark.parametrize("op", OPS)
def test_a_number(op: str) -> None:
    x = np.array(2.5, np.float32)
    for keepdims in (0, 1):
        expected = {"ReduceSumSquare": 6.25, "ReduceLogSum": np.log(x)}.get(op, 2.5)
        same(in_torch(op, x, opset=18, keepdims=keepdims), np.array(expected, np.float32), rtol=1e-6)


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running(op: str, exclusive: int, reverse: int) -> None:
    options = {"exclusive": exclusive, "reverse": reverse, "opset": 26}
    high = np.array([[2**31, 3, 2**31 + 1], [2**32 - 1, 7, 5]], np.uint32)
    for x in (X, (3 * X).astype(np.int32), X.astype(np.float64), high, X[:, :0], np.array([np.inf, 1.0], np.float32)):
        for axis in {0, x.ndim - 1, -1}:
            with np.errstate(all="ignore"):
                expected = _running(op, x, axis, exclusive, reverse)
            same(in_torch(op, x, np.array(axis), **options), expected, rtol=1e-5, atol=1e-6)
            same(in_torch(op, x, np.array(axis, np.int32), constants=[1], **options), expected, rtol=1e-5, atol=1e-6)


def _running(op: str, x: np.ndarray, axis: int, exclusive: int, reverse: int) -> np.ndarray:
    x = np.moveaxis(x[::-1] if reverse and axis == 0 else x, axis, 0)
    x = x[::-1] if reverse and axis != 0 else x
    function, neutral = (np.cumsum, 0) if op == "CumSum" else (np.cumprod, 1)
    if exclusive:
        x = np.concatenate([np.full_like(x[:1], neutral), x[:-1]])
    x = function(x, axis=0, dtype=x.dtype)
    return np.moveaxis(x[::-1] if reverse else x, 0, axis)


@pytest.mark.parametrize("op", OPS)
def test_gradients(op: str) -> None:
    function = reduction.OPS[op]
    x = doubles(2, 3, 2) if op != "ReduceLogSum" else (doubles(2, 3, 2).detach().abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, [0, -1]), x)
    assert torch.autograd.gradcheck(lambda x: function(x, noop_with_empty_axes=1), x)


def test_gradients_of_running_sums() -> None:
    assert torch.autograd.gradcheck(lambda x: reduction.cum_sum(x, 1, exclusive=1, reverse=1), doubles(2, 3))
    assert torch.autograd.gradcheck(lambda x: reduction.cum_prod(x, 0, exclusive=1), doubles(2, 3))


@pytest.mark.parametrize("op", OPS)
def test_no_graph_breaks(op: str) -> None:
    built = module(op, data(op), np.array([1]), constants=[1], opset=18)
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    x = torch.from_numpy(data(op))
    same(compiled(x).numpy(), built(x).numpy())
