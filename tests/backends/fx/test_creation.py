"""Ranges, random numbers by their moments and seeds, windows against scipy's definitions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphpress.backends import fx as backend
from tests import kit
from tests.backends.fx.single import in_onnx, in_ort, in_torch, normal, same

DRAWS = 200_000  # so many that a mean is within 5 / sqrt(DRAWS) = 0.011 standard deviations
CLOSE = 5 / DRAWS**0.5


@pytest.mark.parametrize("numbers", [(1, 10, 3), (10, 1, -3), (5, 5, 1), (5, 1, 1), (-3, 4, 2), (0, 7, 1)])
@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("constants", [[], [0, 2], [0, 1, 2]])
def test_range(numbers: tuple[int, int, int], dtype: str, constants: list[int]) -> None:
    inputs = [np.array(n, dtype) for n in numbers]
    same(in_torch("Range", *inputs, constants=constants), np.arange(*numbers).astype(dtype))


def test_range_of_fractions() -> None:
    inputs = [np.array(n, np.float32) for n in (0, 1, 0.1)]
    same(in_torch("Range", *inputs), in_ort("Range", *inputs), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_range_in_half_precision_adds_up_in_single(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    inputs = [np.array(n).astype(kind) for n in (0, 300, 1)]
    found = in_torch("Range", *inputs, opset=27)
    same(found.astype(np.float32), np.arange(300).astype(kind).astype(np.float32))


def test_range_of_a_symbolic_size() -> None:
    graph = kit.parse(
        """g (float[n, 2] x) => (int64[m] y) {
            zero = Constant<value_int = 0>()  two = Constant<value_int = 2>()
            shape = Shape(x)  n = Gather(shape, zero)  y = Range(zero, n, two)
        }"""
    )
    built = backend.build(graph)
    exported = torch.export.export(built, (torch.ones(5, 2),), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    for n in (3, 8):
        for run in (built, exported, compiled):
            same(run(torch.ones(n, 2)).numpy(), np.arange(0, n, 2))


@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_random_numbers_have_their_moments(dtype: str) -> None:
    number = ir.DataType[dtype].value
    near = CLOSE + (0.01 if "16" in dtype else 0.0)
    normals = in_torch("RandomNormal", opset=22, shape=[DRAWS], mean=3.0, scale=2.0, dtype=number).astype(np.float64)
    assert abs(normals.mean() - 3) < 2 * near
    assert abs(normals.std() - 2) < 2 * near
    uniforms = in_torch("RandomUniform", opset=22, shape=[DRAWS], low=-1.0, high=3.0, dtype=number).astype(np.float64)
    assert uniforms.min() >= -1
    assert uniforms.max() <= 3
    assert abs(uniforms.mean() - 1) < 4 / 12**0.5 * near


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
def test_random_numbers_like_others(op: str) -> None:
    assert in_torch(op, normal(2, 3, dtype=np.float64)).dtype == np.float64
    found = in_torch(op, np.zeros((2, 3), np.int64), dtype=ir.DataType.FLOAT16.value)
    assert (found.dtype, found.shape) == (np.float16, (2, 3))


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("RandomNormal", (), {"shape": [9]}),
        ("RandomUniform", (), {"shape": [9]}),
        ("RandomNormalLike", (normal(9),), {}),
        ("RandomUniformLike", (normal(9),), {}),
        ("Bernoulli", (np.full(40, 0.5),), {}),
        ("Multinomial", (normal(1, 5),), {"sample_size": 40}),
    ],
)
def test_a_seed_fixes_the_numbers(op: str, inputs: tuple[np.ndarray, ...], attributes: dict[str, Any]) -> None:
    def draw(**seed: float) -> np.ndarray:
        return in_torch(op, *inputs, opset=22, **attributes, **seed)

    same(draw(seed=1.5), draw(seed=1.5))
    assert not np.array_equal(draw(seed=1.5), draw(seed=1.25))
    assert not np.array_equal(draw(), draw())


def test_bernoulli() -> None:
    found = in_torch("Bernoulli", np.full(DRAWS, 0.3), dtype=ir.DataType.BOOL.value)
    assert found.dtype == np.bool_
    assert abs(found.mean() - 0.3) < CLOSE
    same(in_torch("Bernoulli", np.array([0, 1], np.float32)), np.array([0, 1], np.float32))


def test_multinomial_draws_by_log_probabilities() -> None:
    logits = np.log(np.array([[2, 6, 2], [1, 0.0, 0]], np.float32) + np.float32(1e-30))
    found = in_torch("Multinomial", logits, sample_size=DRAWS)
    assert (found.dtype, found.shape) == (np.int32, (2, DRAWS))
    np.testing.assert_allclose(np.bincount(found[0], minlength=3) / DRAWS, [0.2, 0.6, 0.2], atol=CLOSE)
    assert not found[1].any()
    assert in_torch("Multinomial", logits, dtype=ir.DataType.INT64.value).dtype == np.int64


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "FLOAT16", "INT64"])
def test_windows(op: str, periodic: int, dtype: str) -> None:
    for size in (2, 7, 10):
        options = {"periodic": periodic, "output_datatype": ir.DataType[dtype].value, "opset": 17}
        expected = in_onnx(op, np.array(size), **options)
        tolerance = 1e-3 if dtype == "FLOAT16" else 5e-7  # ONNX Runtime and onnx round pi to float32
        same(in_torch(op, np.array(size, np.int32), **options), expected, atol=tolerance)
        same(in_torch(op, np.array(size), constants=[0], **options), expected, atol=tolerance)


@pytest.mark.parametrize(
    "numbers",
    [(8, 64, 16000, 0, 8000), (20, 512, 44100, 50, 20000), (10, 16, 8000, 0, 4000), (40, 400, 16000, 20, 7600)],
)
def test_mel_weight_matrix(numbers: tuple[int, ...]) -> None:
    inputs = [*(np.array(n) for n in numbers[:3]), *(np.array(n, np.float32) for n in numbers[3:])]
    same(in_torch("MelWeightMatrix", *inputs, opset=17), in_onnx("MelWeightMatrix", *inputs, opset=17), atol=1e-6)


def test_creation_follows_the_device_of_the_inputs() -> None:
    graph = kit.parse(
        """g (float[2] x) => (float[2] y) {
            two = Constant<value_ints = [2]>()  limit = Constant<value_float = 2.0>()
            zero = Constant<value_float = 0.0>()  one = Constant<value_float = 1.0>()
            filled = ConstantOfShape(two)  range = Range(zero, limit, one)
            noise = RandomNormal<shape = [2]>()
            a = Add(filled, range)  b = Add(a, noise)  y = Add(x, b)
        }"""
    )
    assert backend.build(graph)(torch.empty(2, device="meta")).device.type == "meta"
