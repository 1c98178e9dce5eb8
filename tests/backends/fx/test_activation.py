"""Activation functions: closed forms in float64, all attributes, old opsets, half precision, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import activation
from tests.backends.fx.single import doubles, in_ort, in_torch, module, normal, same

erf = np.vectorize(math.erf)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


# (operator, its opset, attributes, closed form)
FORMS: list[tuple[str, int, dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = [
    ("Celu", 12, {"alpha": 0.5}, lambda x: np.maximum(0, x) + np.minimum(0, 0.5 * np.expm1(x / 0.5))),
    ("Celu", 12, {"alpha": -2.0}, lambda x: np.maximum(0, x) + np.minimum(0, -2 * np.expm1(x / -2))),
    ("Elu", 1, {"alpha": 2.0}, lambda x: np.where(x < 0, 2 * np.expm1(x), x)),
    ("Elu", 22, {}, lambda x: np.where(x < 0, np.expm1(x), x)),
    ("Gelu", 20, {}, lambda x: x / 2 * (1 + erf(x / math.sqrt(2)))),
    ("Gelu", 20, {"approximate": "tanh"}, tanh_gelu),
    ("HardSigmoid", 6, {}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    ("HardSigmoid", 22, {"alpha": 1 / 6}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    ("HardSigmoid", 1, {"alpha": 0.5, "beta": 0.25}, lambda x: np.clip(0.5 * x + 0.25, 0, 1)),
    ("HardSwish", 14, {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    ("LeakyRelu", 1, {}, lambda x: np.where(x < 0, 0.01 * x, x)),
    ("LeakyRelu", 16, {"alpha": 0.3}, lambda x: np.where(x < 0, 0.3 * x, x)),
    ("Mish", 18, {}, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ("Relu", 1, {}, lambda x: np.maximum(x, 0)),
    ("Selu", 1, {}, lambda x: 1.0507 * np.where(x > 0, x, 1.6732 * np.expm1(x))),
    ("Selu", 6, {}, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    ("Selu", 22, {"alpha": 2.0, "gamma": 3.0}, lambda x: 3 * np.where(x > 0, x, 2 * np.expm1(x))),
    ("Shrink", 9, {}, lambda x: np.where(abs(x) > 0.5, x, 0)),
    ("Shrink", 9, {"lambd": 1.0, "bias": 1.0}, lambda x: np.sign(x) * np.maximum(abs(x) - 1, 0)),
    ("Shrink", 9, {"lambd": 1.5, "bias": 0.5}, lambda x: np.where(abs(x) > 1.5, x - 0.5 * np.sign(x), 0)),
    ("Sigmoid", 1, {}, sigmoid),
    ("Softplus", 1, {}, lambda x: np.logaddexp(0, x)),
    ("Softsign", 1, {}, lambda x: x / (1 + abs(x))),
    ("Swish", 24, {}, lambda x: x * sigmoid(x)),
    ("Swish", 24, {"alpha": 1.5}, lambda x: x * sigmoid(1.5 * x)),
    ("Tanh", 1, {}, np.tanh),
    ("ThresholdedRelu", 10, {"alpha": 0.7}, lambda x: np.where(x > 0.7, x, 0)),
]  # fmt: skip
TOLERANCE = {"float32": 1e-6, "float64": 1e-9, "float16": 2e-3, "bfloat16": 2e-2}  # attributes are float32


def spread(dtype: str) -> np.ndarray:
    return np.concatenate([np.linspace(-9, 9, 181), [-60, 30, 39, 41, 60]]).astype(getattr(ml_dtypes, dtype, dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f[0]}{f[1]}{f[2] or ''}")
def test_closed_form(form: Any, dtype: str) -> None:
    op, opset, attributes, exact = form
    x = spread(dtype)
    attributes = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in attributes.items()}
    built = module(op, x.astype(np.float32), opset=opset, **attributes)
    given = built(torch.from_numpy(x.astype(np.float64)).to(getattr(torch, dtype)))
    assert given.dtype == getattr(torch, dtype)
    tolerance = TOLERANCE[dtype] * (100 if dtype == "float64" and "alpha" in attributes else 1)
    with np.errstate(over="ignore"):
        expected = exact(x.astype(np.float64)).astype(x.dtype).astype(np.float64)
    np.testing.assert_allclose(given.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "form", [f for f in FORMS if f[0] != "Swish" and f[1] >= 6], ids=lambda f: f"{f[0]}{f[1]}{f[2] or ''}"
)
def test_as_onnx_runtime(form: Any) -> None:
    op, opset, attributes, _ = form
    if attributes.get("alpha", 1.0) < 0:
        pytest.skip("ONNX Runtime has no negative alpha")
    x = spread("float32")
    same(in_torch(op, x, opset=opset, **attributes), in_ort(op, x, opset=opset, **attributes), rtol=2e-6, atol=2e-6)


SMOOTH = [f for f in FORMS if f[0] in ("Gelu", "Mish", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh")]


@pytest.mark.parametrize("form", [*SMOOTH, FORMS[0], FORMS[2], FORMS[16]], ids=lambda f: f"{f[0]}{f[1]}{f[2] or ''}")
def test_gradients(form: Any) -> None:
    op, opset, attributes, _ = form
    assert torch.autograd.gradcheck(module(op, normal(3, 4), opset=opset, **attributes), (doubles(3, 4),))


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 1, 1), (1, 4, 1, 1), (3, 1), (2, 4, 3, 5), ()])
def test_slopes_are_broadcast(shape: tuple[int, ...]) -> None:
    x, slope = normal(2, 4, 3, 5), normal(*shape, seed=1)
    for constants in ([], [1]):
        same(in_torch("PRelu", x, slope, constants=constants), np.where(x < 0, slope * x, x))


def test_slopes_of_channels_in_old_opsets() -> None:
    x = normal(2, 4, 3, 5)
    for slope in (normal(4, seed=1), normal(1, seed=1)):
        wide = slope.reshape(-1, 1, 1)
        same(in_torch("PRelu", x, slope, opset=6), np.where(x < 0, wide * x, x))
    flat = normal(2, 4)
    same(in_torch("PRelu", flat, normal(4, seed=1), opset=6), np.where(flat < 0, normal(4, seed=1) * flat, flat))


def test_slopes_of_integers() -> None:
    x, slope = np.arange(-4, 4, dtype=np.int64).reshape(2, 4), np.array([3, 2, 1, 0], np.int64)
    same(in_torch("PRelu", x, slope), np.where(x < 0, slope * x, x))
    large = np.array([0, 5, 2**63 + 1], np.uint64)
    same(in_torch("PRelu", large, large), large)


def test_slopes_have_gradients() -> None:
    x, slope = doubles(2, 3, 4), doubles(3, 1, seed=1)
    assert torch.autograd.gradcheck(module("PRelu", normal(2, 3, 4), normal(3, 1)), (x, slope))
    assert torch.autograd.gradcheck(module("PRelu", normal(2, 3, 4), normal(4)), (x, doubles(4)))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_integers(dtype: Any) -> None:
    x = np.arange(-5, 6, dtype=dtype)
    same(in_torch("Relu", x), np.maximum(x, dtype(0)))
    shrunk = np.where(x < -2, x + 1.5, np.where(x > 2, x - 1.5, 0)).astype(dtype)
    same(in_torch("Shrink", x, lambd=2.0, bias=1.5), shrunk)


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_gated(alpha: float) -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1)
    same(in_torch("SwiGLU", a, b, opset=28, alpha=alpha), a * sigmoid(alpha * a) * b, rtol=2e-6, atol=1e-6)


def test_softplus_is_exact_in_double_precision() -> None:
    x = torch.linspace(15, 45, 50, dtype=torch.float64)
    np.testing.assert_allclose(activation.softplus(x).numpy(), np.logaddexp(0, x.numpy()), rtol=1e-15)


def test_torch_runs_its_own_functions() -> None:
    for op, name in (("Relu", "functional.relu("), ("Mish", "functional.mish("), ("Sigmoid", "torch.sigmoid(")):
        assert name in module(op, normal(2), opset=22).code
