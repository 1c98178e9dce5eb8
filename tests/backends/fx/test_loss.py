"""Losses over classes: all reductions, weights, ignored classes, by the formula; gradients."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.backends.fx.single import doubles, in_ort, in_torch, module, normal, same

C = 5
SHAPES = [(6,), (4, 3), (2, 3, 4), (2, 2, 1, 3)]


def by_the_formula(logs: Any, target: Any, weight: Any, ignored: int | None, reduction: str) -> Any:
    """Sample by sample, in float64."""
    loss, used = np.zeros(target.shape), np.zeros(target.shape)
    for at in np.ndindex(target.shape):
        c = target[at]
        if c != ignored:
            used[at] = 1 if weight is None else weight[c]
            loss[at] = -logs[(at[0], c, *at[1:])] * used[at]
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / used.sum()}[reduction]


def given(shape: tuple[int, ...], ignored: int | None, weighted: bool, dtype: Any = np.float32) -> Any:
    scores = normal(shape[0], C, *shape[1:]).astype(dtype)
    target = np.random.default_rng(1).integers(0, C, shape)
    if ignored is not None:
        target.reshape(-1)[::3] = ignored
    weight = (abs(normal(C, seed=2)) + 0.1).astype(dtype) if weighted else None
    return scores, target, weight


CASES = list(itertools.product(SHAPES, ["none", "sum", "mean"], [None, -1, 2, 255], [False, True]))


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("shape", "reduction", "ignored", "weighted"), CASES)
def test_losses(shape: tuple[int, ...], reduction: str, ignored: int | None, weighted: bool, index: Any) -> None:
    scores, target, weight = given(shape, ignored, weighted)
    wide = scores.astype(np.float64)
    logs = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    options: dict[str, Any] = {"reduction": reduction} | ({} if ignored is None else {"ignore_index": ignored})
    xs = (target.astype(index), *(() if weight is None else (weight,)))
    expected = np.asarray(by_the_formula(logs, target, weight, ignored, reduction), np.float32)
    found = in_torch("NegativeLogLikelihoodLoss", logs.astype(np.float32), *xs, **options)
    same(np.asarray(found), expected, rtol=1e-5, atol=1e-6)
    loss, log_prob = in_torch("SoftmaxCrossEntropyLoss", scores, *xs, outputs=2, **options)
    same(np.asarray(loss), expected, rtol=1e-5, atol=1e-6)
    same(log_prob, logs.astype(np.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_as_onnx_runtime(reduction: str) -> None:
    scores, target, weight = given((4, 3), 2, True)
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": 2, "opset": 13}
    for op, outputs in (("NegativeLogLikelihoodLoss", 1), ("SoftmaxCrossEntropyLoss", 1)):
        found, expected = (
            np.asarray(f(op, scores, target, weight, outputs=outputs, **options)) for f in (in_torch, in_ort)
        )
        same(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype: Any) -> None:
    scores, target, weight = given((4, 3), None, True, dtype)
    found = in_torch("SoftmaxCrossEntropyLoss", scores, target, weight)
    assert found.dtype == dtype
    exact = in_torch("SoftmaxCrossEntropyLoss", scores.astype(np.float32), target, weight.astype(np.float32))
    np.testing.assert_allclose(np.float32(found), exact, rtol=4 * float(ml_dtypes.finfo(dtype).eps))


def test_gradients() -> None:
    scores, target, weight = given((3, 4), 2, True, np.float64)
    built = module("SoftmaxCrossEntropyLoss", scores, target, weight, ignore_index=2, outputs=2)
    labels = torch.from_numpy(target)
    assert torch.autograd.gradcheck(lambda x: built(x, labels, torch.from_numpy(weight)), (doubles(3, C, 4),))
    compiled = torch.compile(built, fullgraph=True, backend="eager")
    tensors = [torch.from_numpy(scores), labels, torch.from_numpy(weight)]
    torch.testing.assert_close(compiled(*tensors), built(*tensors))
