"""Normalizations, softmax and dropout: old opsets, types, statistics, gradients, one graph for all sizes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import normalization
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

CLOSE = {"rtol": 1e-5, "atol": 2e-6}
X = normal(3, 4, 5, 6) * 2 + 1
SCALE, BIAS, MEAN, VARIANCE = normal(4, seed=1), normal(4, seed=2), normal(4, seed=3), np.abs(normal(4, seed=4)) + 0.1
GIVEN = (SCALE, BIAS, MEAN, VARIANCE)


def along(statistic: np.ndarray, rank: int = 4) -> np.ndarray:
    return statistic.reshape(-1, *(1,) * (rank - 2))


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Scaled and shifted by the statistics of channels."""
    centred = (x - along(mean, x.ndim)) / np.sqrt(along(variance, x.ndim) + epsilon)
    return centred * along(SCALE, x.ndim) + along(BIAS, x.ndim)


def of_batch(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axes = (0, *range(2, x.ndim))
    return x.mean(axes), x.var(axes)


# -- BatchNormalization


@pytest.mark.parametrize(("opset", "attributes"), [
    (1, {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}), (6, {"is_test": 1}), (7, {"spatial": 1}), (9, {}),
    (14, {}), (15, {"training_mode": 0, "momentum": 0.3}),
])  # fmt: skip
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_normalization_by_given_statistics(opset: int, attributes: dict[str, Any], rank: int) -> None:
    if opset == 1 and rank != 4:
        pytest.skip("opset 1 has pictures only")
    x = normal(3, 4, *(5, 6, 2)[: rank - 2])
    y = in_torch("BatchNormalization", x, *GIVEN, opset=opset, epsilon=1e-3, **attributes)
    same(y, normalized(x, MEAN, VARIANCE, 1e-3), **CLOSE)


def test_batch_normalization_of_one_axis() -> None:
    """There is one channel."""
    x, one = normal(5), [p[:1] for p in GIVEN]
    expected = (x - MEAN[0]) / np.sqrt(VARIANCE[0] + 1e-5) * SCALE[0] + BIAS[0]
    same(in_torch("BatchNormalization", x, *one, opset=15), expected, **CLOSE)


@pytest.mark.parametrize("opset", [6, 7])
def test_statistics_of_places(opset: int) -> None:
    scale, bias, mean, variance = (normal(4, 5, 6, seed=i) for i in range(4))
    variance = np.abs(variance) + 0.1
    attributes = {"spatial": 0, **({"is_test": 1} if opset == 6 else {})}
    y = in_torch("BatchNormalization", X, scale, bias, mean, variance, opset=opset, **attributes)
    same(y, (X - mean) / np.sqrt(variance + 1e-5) * scale + bias, **CLOSE)
    found = in_torch("BatchNormalization", X, scale, bias, mean, variance, opset=7, spatial=0, outputs=5)
    same(found[0], (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    same(found[1], 0.9 * mean + 0.1 * X.mean(0), **CLOSE)
    same(found[4], X.var(0), **CLOSE)


@pytest.mark.parametrize(("opset", "outputs", "attributes"), [
    (1, 1, {}), (6, 5, {"is_test": 0}), (7, 5, {}), (9, 5, {}), (14, 3, {"training_mode": 1}),
    (15, 3, {"training_mode": 1}),
])  # fmt: skip
def test_training(opset: int, outputs: int, attributes: dict[str, Any]) -> None:
    options = {"opset": opset, "outputs": outputs, "momentum": 0.7, **attributes}
    found = in_torch("BatchNormalization", X, *GIVEN, **options)
    found = [found] if outputs == 1 else found
    mean, variance = of_batch(X)
    expected = [normalized(X, mean, variance), 0.7 * MEAN + 0.3 * mean, 0.7 * VARIANCE + 0.3 * variance, mean, variance]
    assert len(found) == outputs
    for given, wanted in zip(found, expected, strict=False):
        same(given, wanted, **CLOSE)


def test_training_by_one_value() -> None:
    """F.batch_norm refuses it."""
    y = in_torch("BatchNormalization", normal(1, 4), *GIVEN, opset=15, training_mode=1, outputs=3)[0]
    same(y, BIAS[None], **CLOSE)


def test_statistics_of_half_precision_do_not_overflow() -> None:
    x = (normal(8, 4, 6, 6) * 3 + 300).astype(np.float16)
    half = [p.astype(np.float16) for p in GIVEN]
    y, mean, variance = in_torch("BatchNormalization", x, *half, opset=15, training_mode=1, outputs=3, momentum=0.0)
    expected = of_batch(x.astype(np.float32))
    same(mean, expected[0].astype(np.float16), rtol=1e-3)
    same(variance, expected[1].astype(np.float16), rtol=2e-3)
    same(y, normalized(x.astype(np.float32), *expected).astype(np.float16), rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("types", ["ehhff", "effff", "ehhhh", "fhhff", "fffhh", "dffff"])
def test_types_of_statistics(types: str) -> None:
    """Those of the data, of scale and bias, and of mean and variance are three."""
    kinds = {"e": np.float16, "h": np.float16, "f": np.float32, "d": np.float64}
    given = [a.astype(kinds[t]) for a, t in zip((X, *GIVEN), types, strict=True)]
    y = in_torch("BatchNormalization", *given, opset=15)
    wide = [a.astype(np.float64) for a in given]
    expected = (wide[0] - along(wide[3])) / np.sqrt(along(wide[4]) + 1e-5) * along(wide[1]) + along(wide[2])
    tolerance = 2e-3 if types[0] == "e" else 1e-5 if types[0] == "f" else 1e-12
    same(y, expected.astype(given[0].dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [0, 1])
def test_batch_normalization_has_all_derivatives(training: int) -> None:
    arrays = [normal(3, 2, 4, dtype=np.float64), *(p[:2].astype(np.float64) for p in GIVEN)]
    built = module("BatchNormalization", *arrays, opset=15, training_mode=training, outputs=3 if training else 1)
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    assert torch.autograd.gradcheck(built, tensors)


# -- the others by channels and groups


@pytest.mark.parametrize("opset", [1, 6, 22])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 6), (2, 4, 2, 3, 4)])
def test_instance_normalization(opset: int, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    axes = tuple(range(2, x.ndim))
    centred = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)
    expected = centred * along(SCALE, x.ndim) + along(BIAS, x.ndim)
    same(in_torch("InstanceNormalization", x, SCALE, BIAS, opset=opset, epsilon=1e-3), expected, **CLOSE)


def test_one_place_has_no_variance() -> None:
    """F.instance_norm and F.group_norm refuse it."""
    x = normal(1, 4, 1, 1)
    same(in_torch("InstanceNormalization", x, SCALE, BIAS), BIAS.reshape(1, 4, 1, 1), **CLOSE)
    same(in_torch("GroupNormalization", x, SCALE, BIAS, num_groups=4), BIAS.reshape(1, 4, 1, 1), **CLOSE)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_group_normalization(opset: int, dtype: type) -> None:
    x = normal(2, 4, 5, 3).astype(dtype)
    scale, bias = (p[: 2 if opset == 18 else 4].astype(dtype) for p in (SCALE, BIAS))
    groups = x.astype(np.float64).reshape(2, 2, -1)
    centred = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-2)
    each = 2 if opset == 18 else 1
    wide = [along(p.astype(np.float64).repeat(each)) for p in (scale, bias)]
    expected = (centred.reshape(x.shape) * wide[0] + wide[1]).astype(dtype)
    y = in_torch("GroupNormalization", x, scale, bias, opset=opset, num_groups=2, epsilon=1e-2)
    same(y, expected, **CLOSE if dtype == np.float32 else {"rtol": 2e-3, "atol": 2e-3})


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("axes", [[0, 2, 3], [2, 3], [-1], [1]])
def test_mean_variance_normalization(opset: int, axes: list[int]) -> None:
    options = {"opset": opset, "axes": axes}
    expected = in_onnx("MeanVarianceNormalization", X, **options)
    same(in_torch("MeanVarianceNormalization", X, **options), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_vary_becomes_zero() -> None:
    """The mean of squares less the square of the mean may be negative, the root of which is no number."""
    x = np.full((1, 2, 3, 3), 1.1, np.float32)
    same(in_torch("MeanVarianceNormalization", x, opset=13, axes=[0, 2, 3]), np.zeros_like(x), atol=0.2)


# -- LayerNormalization and RMSNormalization


@pytest.mark.parametrize("axis", [-1, 1, 2, -3, 0])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_layer_normalization(axis: int, outputs: int) -> None:
    shape = X.shape[axis:]
    inputs = (X, normal(*shape, seed=1), normal(*shape, seed=2))
    options = {"opset": 17, "axis": axis, "outputs": outputs, "epsilon": 1e-3}
    found, expected = (run("LayerNormalization", *inputs, **options) for run in (in_torch, in_ort))
    for given, wanted in zip(*([found], [expected]) if outputs == 1 else (found, expected), strict=True):
        same(given, wanted, **CLOSE)


@pytest.mark.parametrize(("scale", "bias"), [((6,), (5, 6)), ((5, 1), None), ((1,), (1,)), ((5, 6), (6,))])
def test_layer_normalization_broadcasts(scale: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    inputs = [X, normal(*scale, seed=1), *([normal(*bias, seed=2)] if bias else [])]
    same(in_torch("LayerNormalization", *inputs, opset=17, axis=2),
         in_onnx("LayerNormalization", *inputs, opset=17, axis=2), **CLOSE)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization_keeps_its_statistics_in_the_stash_type(dtype: type, outputs: int) -> None:
    """Squares of these overflow float16."""
    x = (normal(2, 3, 16) * 500).astype(dtype)
    scale, bias = normal(16, seed=1).astype(dtype), normal(16, seed=2).astype(dtype)
    found = in_torch("LayerNormalization", x, scale, bias, opset=17, outputs=outputs)
    wide = x.astype(np.float64)
    mean, inverse = wide.mean(-1, keepdims=True), 1 / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = (wide - mean) * inverse * scale.astype(np.float64) + bias.astype(np.float64)
    y = found if outputs == 1 else found[0]
    assert y.dtype == dtype
    step = {2: 2e-3 if dtype == np.float16 else 2e-2, 8: 1e-12}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=step, atol=2 * step)
    for given, wanted in zip(found[1:] if outputs == 3 else (), (mean, inverse), strict=False):
        same(given, wanted.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize("scale", [None, (1,)])
def test_rms_normalization(axis: int, scale: tuple[int, ...] | None) -> None:
    inputs = (X, normal(*(scale or X.shape[axis:]), seed=1))
    options = {"opset": 23, "axis": axis, "epsilon": 1e-3}
    same(in_torch("RMSNormalization", *inputs, **options), in_onnx("RMSNormalization", *inputs, **options), **CLOSE)


@pytest.mark.parametrize("types", [(np.float16, np.float32), (np.float32, np.float16), (np.float16, np.float16)])
def test_rms_normalization_has_the_type_of_the_scale(types: tuple[type, type]) -> None:
    x, scale = (normal(2, 16) * 500).astype(types[0]), normal(16, seed=1).astype(types[1])
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-5) * scale
    y = normalization.rms_normalization(torch.from_numpy(x), torch.from_numpy(scale))
    same(y.numpy(), expected.astype(types[1]), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("op", "opset", "outputs"), [
    ("LayerNormalization", 17, 1), ("LayerNormalization", 17, 3), ("RMSNormalization", 23, 1),
    ("InstanceNormalization", 21, 1),
])  # fmt: skip
def test_normalizations_have_derivatives(op: str, opset: int, outputs: int) -> None:
    shapes = ((2, 3, 4), (3,), (3,)) if op == "InstanceNormalization" else ((2, 3, 4), (4,), (4,))
    tensors = [doubles(*s, seed=i) for i, s in enumerate(shapes[: 2 if op == "RMSNormalization" else 3])]
    built = module(op, *(t.detach().numpy() for t in tensors), opset=opset, outputs=outputs)

    def first(*xs: torch.Tensor) -> Any:
        found = built(*xs)
        return found[0] if outputs > 1 else found  # statistics in float32 are too coarse for a finite difference

    assert torch.autograd.gradcheck(first, tensors)


# -- LRN and LpNormalization


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 4), (1, 5, 2, 2, 2)])
def test_lrn(size: int, shape: tuple[int, ...]) -> None:
    x = normal(*shape) * 3
    total = np.zeros_like(x)
    for c in range(5):
        total[:, c] = (x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1] ** 2).sum(1)
    y = in_torch("LRN", x, opset=13, size=size, alpha=0.3, beta=0.6, bias=1.5)
    same(y, (x / (1.5 + 0.3 / size * total) ** 0.6).astype(np.float32), **CLOSE)


def test_lrn_of_half_precision_does_not_overflow() -> None:
    x = np.full((1, 3, 2, 2), 400, np.float16)
    expected = 400 / (1 + 1e-4 / 3 * 400.0**2 * np.array([2, 3, 2])) ** 0.75
    y = in_torch("LRN", x, opset=13, size=3)
    same(y, np.broadcast_to(along(expected), x.shape).astype(np.float16), rtol=1e-3)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_normalization(p: int, axis: int) -> None:
    same(in_torch("LpNormalization", X, p=p, axis=axis), in_ort("LpNormalization", X, p=p, axis=axis), **CLOSE)


@pytest.mark.parametrize("p", [1, 2])
def test_no_length_stays_none(p: int) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]], requires_grad=True)
    y = module("LpNormalization", x.detach().numpy(), p=p)(x)
    y.sum().backward()
    assert y[0].eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    large = np.full((1, 4), 3e4, np.float16)
    expected = np.full((1, 4), 0.5 if p == 2 else 0.25, np.float16)
    same(in_torch("LpNormalization", large, p=p, opset=22), expected, rtol=1e-3)


# -- softmax


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [7, 11, 12, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
def test_softmax(op: str, opset: int, axis: int | None) -> None:
    if opset < 11 and axis is not None and axis < 0:
        pytest.skip("opset 11 was the first to count from the back")
    options = {"opset": opset, **({} if axis is None else {"axis": axis})}
    same(in_torch(op, X, **options), in_ort(op, X, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [1, 11])
def test_softmax_of_nothing(opset: int) -> None:
    assert in_torch("Softmax", np.zeros((0, 3, 4), np.float32), opset=opset, axis=1).shape == (0, 3, 4)


@pytest.mark.parametrize("opset", [11, 13])
def test_the_first_of_the_largest(opset: int) -> None:
    x = np.array([[1, 3, 3, 0], [2, 2, 2, 2], [-1, -1, -2, -1]], np.float32)
    expected = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    same(in_torch("Hardmax", x, opset=opset, axis=1), expected)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (13, 1)])
def test_softmax_has_derivatives(op: str, opset: int, axis: int) -> None:
    built = module(op, normal(2, 3, 4, dtype=np.float64), opset=opset, axis=axis)
    assert torch.autograd.gradcheck(built, (doubles(2, 3, 4),))


# -- Dropout


@pytest.mark.parametrize(("opset", "mask_type", "attributes"), [
    (1, np.float32, {"is_test": 1, "ratio": 0.3, "consumed_inputs": [0]}), (6, np.float32, {"is_test": 1}),
    (7, np.float32, {"ratio": 0.9}), (10, np.bool_, {}), (12, np.bool_, {"seed": 3}), (22, np.bool_, {}),
])  # fmt: skip
def test_nothing_is_dropped(opset: int, mask_type: type, attributes: dict[str, Any]) -> None:
    y, mask = in_torch("Dropout", X, opset=opset, outputs=2, **attributes)
    same(y, X)
    same(mask, np.ones(X.shape, mask_type))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_dropped_but_in_training(training: bool) -> None:
    flags = (np.array(0.25, np.float32), np.array(training))
    x = np.ones((100, 100), np.float32)
    for constants in ([1, 2], []):
        y, mask = in_torch("Dropout", x, *flags, opset=13, outputs=2, seed=7, constants=constants)
        same(y, np.where(mask, np.float32(1 / 0.75 if training else 1), np.float32(0)), rtol=1e-6)
        assert abs(mask.mean() - (0.75 if training else 1)) < 0.02  # 4.6 standard deviations
    same(in_torch("Dropout", x, flags[0] * 0, np.array(True), opset=13, constants=[1, 2]), x)


def test_dropout_of_opset_6_trains_by_default() -> None:
    y, mask = in_torch("Dropout", np.ones((100, 100), np.float32), opset=6, ratio=0.4, outputs=2)
    same(y, mask / np.float32(0.6), rtol=1e-6)
    assert abs(mask.mean() - 0.6) < 0.025  # 5 standard deviations


def test_a_seed_repeats_the_mask_and_none_does_not() -> None:
    inputs = (normal(50, 50), np.array(0.5, np.float32), np.array(True))
    seeded, free = (module("Dropout", *inputs, opset=13, constants=[1, 2], **s) for s in ({"seed": 5}, {}))
    x = torch.from_numpy(inputs[0])
    assert torch.equal(seeded(x), seeded(x))
    assert not torch.equal(free(x), free(x))


# -- one graph


@pytest.mark.parametrize(("op", "inputs", "options"), [
    pytest.param("Softmax", (X,), {"opset": 11, "axis": 1}, marks=pytest.mark.slow),
    pytest.param(
        "BatchNormalization", (X, *GIVEN), {"opset": 15, "training_mode": 1, "outputs": 3}, marks=pytest.mark.slow
    ),
    ("GroupNormalization", (X, SCALE[:2], BIAS[:2]), {"opset": 18, "num_groups": 2}),
    ("LRN", (X,), {"size": 3}),
])  # fmt: skip
def test_symbolic_sizes(op: str, inputs: tuple[np.ndarray, ...], options: dict[str, Any]) -> None:
    built = module(op, *inputs, shapes={0: ["n", 4, "h", "w"]}, constants=list(range(1, len(inputs))), **options)
    every = torch.export.Dim.DYNAMIC
    exported = torch.export.export(built, (torch.from_numpy(X),), dynamic_shapes=({0: every, 2: every, 3: every},))
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    x = torch.from_numpy(normal(5, 4, 7, 3))
    for run in (exported.module(), compiled):
        torch.testing.assert_close(run(x), built(x), rtol=1e-6, atol=1e-6)
