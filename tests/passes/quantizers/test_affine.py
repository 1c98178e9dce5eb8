"""The affine quantizer against ONNX Runtime's QuantizeLinear/DequantizeLinear, its laws, and a brute-force search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphpress.errors import BadRequest
from graphpress.passes.quantizers import affine as affine_file
from graphpress.passes.quantizers.affine import AFFINE, from_range
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.scale import SMALLEST, scale_and_zero
from graphpress.types import PER_TENSOR, PER_TOKEN, Granularity, Scheme, per_channel, per_group
from tests import kit

STORAGE = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2")
FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda v: np.float32(v) if abs(v) > 1e-6 else np.float32(0))
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=FLOATS)
SCHEMES = st.builds(Scheme, st.sampled_from(STORAGE), st.just(PER_TENSOR), st.booleans())


def there_and_back(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, QParams]:
    params = AFFINE.fit(x, scheme)
    return AFFINE.dequantize(AFFINE.quantize(x, params, scheme), params, scheme), params


def in_ort(x: np.ndarray, params: QParams, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """(codes, values) as ONNX Runtime computes them without optimisation."""
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(x.shape))
    fixed = [_initializer("scale", params.scale), _initializer("zero", params.zero_point)]
    granularity = scheme.granularity
    attrs = {} if granularity.axis is None else {"axis": granularity.axis, "block_size": granularity.group_size or 0}
    q = ir.node("QuantizeLinear", [source, *fixed], attrs)
    dq = ir.node("DequantizeLinear", [q.outputs[0], *fixed], attrs)
    wide = ir.node("Cast", [q.outputs[0]], {"to": ir.DataType.INT32})
    opsets = {"": max(scheme.opset, 21)}
    outputs = [wide.outputs[0], dq.outputs[0]]
    graph = ir.Graph([source], outputs, nodes=[q, dq, wide], initializers=fixed, opset_imports=opsets, name="g")
    for value, name, kind in zip(outputs, ("codes", "values"), (ir.DataType.INT32, ir.DataType.FLOAT), strict=True):
        value.name, value.type = name, ir.TensorType(kind)
    found = kit.run(ir.Model(graph, ir_version=13 if scheme.opset > 23 else 10), {"x": x})
    return found["codes"], found["values"]


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


GRANULARITIES = [
    PER_TENSOR,
    per_channel(0),
    per_channel(1),
    per_channel(-1),
    per_group(0, 4),
    per_group(1, 16),
    per_group(-1, 32),
]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", STORAGE)
def test_codes_and_values_are_those_of_onnx_runtime(dtype: str, granularity: Granularity) -> None:
    rng = np.random.default_rng(0)
    for symmetric, observer in ((True, "minmax"), (False, "mse")):
        scheme = Scheme(dtype, granularity, symmetric, observer=observer)
        # 40 and 72 are no multiples of 16 and 32: the last group is short.
        weight = rng.normal(size=(40, 72)).astype(np.float32) * rng.uniform(0.01, 10, (40, 1)).astype(np.float32)
        params = AFFINE.fit(weight, scheme)
        ties = (np.arange(-40, 32, dtype=np.float32) + 0.5) * params.scale.flat[0]
        x = np.concatenate([weight[:39] * 1.5, ties[None]])  # beyond the range, and halves
        codes, values = in_ort(x, params, scheme)
        ours = AFFINE.quantize(x, params, scheme)
        assert ours.dtype == scheme.ir_dtype.numpy()
        np.testing.assert_array_equal(ours.astype(np.int32), codes)
        np.testing.assert_array_equal(AFFINE.dequantize(ours, params, scheme), values)


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [(PER_TENSOR, (4, 6), ()), (per_channel(1), (4, 6, 3), (6,)), (per_group(0, 3), (4, 6), (2, 6)),
     (per_group(1, 4), (5, 6, 2), (5, 2, 2)), (per_group(1, 64), (4, 6), (4, 1)), (per_channel(0), (0, 5), (0,)),
     (PER_TENSOR, (0,), ()), (per_group(0, 4), (8,), (2,)), (PER_TENSOR, (), ())],
)  # fmt: skip
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_parameters_have_the_shapes_of_onnx(
    granularity: Granularity, shape: tuple[int, ...], expected: tuple[int, ...], observer: str
) -> None:
    scheme = Scheme("int4", granularity, observer=observer)
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    params = AFFINE.fit(weight, scheme)
    assert params.scale.shape == params.zero_point.shape == expected
    q = AFFINE.quantize(weight, params, scheme)
    assert q.shape == AFFINE.dequantize(q, params, scheme).shape == shape


@given(ARRAYS, SCHEMES)
def test_nothing_in_range_moves_by_more_than_half_a_step(x: np.ndarray, scheme: Scheme) -> None:
    back, params = there_and_back(x, scheme)
    scale = float(params.scale)
    # The quotient and the product are rounded to float32: half a unit of the last place of the largest code each.
    slack = scale * 2.0**-23 * (scheme.qmax - scheme.qmin)
    assert np.abs(x - back.astype(np.float64)).max() <= scale / 2 + slack


@given(ARRAYS, SCHEMES)
def test_zero_is_exact_and_quantizing_twice_changes_nothing(x: np.ndarray, scheme: Scheme) -> None:
    params = AFFINE.fit(x, scheme)
    zeros = np.zeros_like(x)
    assert (AFFINE.dequantize(AFFINE.quantize(zeros, params, scheme), params, scheme) == 0).all()
    once = AFFINE.quantize(x, params, scheme)
    np.testing.assert_array_equal(once, AFFINE.quantize(AFFINE.dequantize(once, params, scheme), params, scheme))


@given(ARRAYS, st.booleans())
def test_more_bits_never_take_larger_steps(x: np.ndarray, symmetric: bool) -> None:
    scales = [float(AFFINE.fit(x, Scheme(t, PER_TENSOR, symmetric)).scale) for t in ("int2", "int4", "int8", "int16")]
    assert scales == sorted(scales, reverse=True)


@given(st.floats(-3e38, 3e38), st.floats(-3e38, 3e38), SCHEMES)
def test_a_scale_is_positive_normal_and_its_codes_are_finite(a: float, b: float, scheme: Scheme) -> None:
    params = from_range(min(a, b), max(a, b), scheme)
    assert params.scale >= SMALLEST and params.scale.dtype == np.float32 and params.scale.shape == ()
    ends = np.array([scheme.qmin, scheme.qmax]).astype(params.zero_point.dtype)
    assert np.isfinite(AFFINE.dequantize(ends, params, scheme)).all()


def test_the_formulas_at_known_points() -> None:
    def at(lo: float, hi: float, dtype: str, symmetric: bool) -> tuple[float, int]:
        scale, zero = scale_and_zero(lo, hi, Scheme(dtype, symmetric=symmetric))
        return float(scale), int(zero)

    assert at(-1.27, 0.3, "int8", True) == (np.float32(0.01), 0)
    assert at(-0.3, 1.27, "uint8", True) == (np.float32(0.01), 128)
    assert at(-1.0, 1.55, "uint8", False) == (np.float32(0.01), 100)
    assert at(2.0, 5.1, "uint8", False) == (np.float32(0.02), 0)
    assert at(-8.5, 7.0, "int4", True) == (1.0, 0)
    assert at(-1.0, 7.5, "int4", True) == (1.0, 0)
    assert at(-2.5, 1.5, "int2", True) == (1.0, 0)
    assert at(0.0, 0.0, "int8", True) == (1.0, 0) and at(0.0, 0.0, "uint8", False) == (1.0, 0)


def test_int8_weights_never_use_the_lowest_code() -> None:
    x = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    for observer in ("minmax", "mse"):
        scheme = Scheme("int8", per_channel(0), observer=observer)
        q = AFFINE.quantize(x, AFFINE.fit(x, scheme), scheme)
        assert q.min() >= -127 and (observer == "mse" or np.abs(q).max() == 127)


@given(st.integers(-127, 127), st.floats(2.0**-20, 1024.0, width=32))
def test_weights_on_an_8_bit_grid_come_back_unchanged(code: int, scale: float) -> None:
    x = (np.array([code, 127, 0], np.float32) * np.float32(scale)).astype(np.float32)
    for observer in ("minmax", "mse"):
        back, _ = there_and_back(x, Scheme("int8", observer=observer))
        np.testing.assert_allclose(back, x, rtol=3e-7)


def squared_error(x: np.ndarray, lo: float, hi: float, scheme: Scheme) -> float:
    params = from_range(lo, hi, scheme)
    return float(((AFFINE.dequantize(AFFINE.quantize(x, params, scheme), params, scheme) - x) ** 2).sum())


@pytest.mark.parametrize(
    ("dtype", "symmetric"),
    list(itertools.product(["int2", "int4", "uint4", "int8"], [True, False])),
)
def test_mse_comes_close_to_trying_every_ratio(dtype: str, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=512), rng.laplace(size=512), rng.standard_t(3, 512), rng.uniform(-1, 3, 512)])
    rows = rows.astype(np.float32)
    scheme = Scheme(dtype, per_channel(0), symmetric, observer="mse")
    back, _ = there_and_back(rows, scheme)
    one = Scheme(dtype, PER_TENSOR, symmetric)
    slack = 1.02 if scheme.bits < 8 else 1.08  # with 255 steps the finest ratios fit the 512 numbers, not the shape
    for row, found in zip(rows, ((back - rows) ** 2).sum(axis=1), strict=True):
        every = [squared_error(row, row.min() * r, row.max() * r, one) for r in np.linspace(0.1, 1, 181)]
        assert found <= slack * min(every)
        assert found <= squared_error(row, row.min(), row.max(), one)


@pytest.mark.parametrize("dtype", ["int2", "int4"])
def test_l4_comes_close_to_trying_every_ratio_by_the_fourth_power(dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=512), rng.laplace(size=512), rng.standard_t(3, 512)]).astype(np.float32)
    back, _ = there_and_back(rows, Scheme(dtype, per_channel(0), False, observer="l4"))
    squares, _ = there_and_back(rows, Scheme(dtype, per_channel(0), False, observer="mse"))
    for row, found, other in zip(
        rows, ((back - rows) ** 4).sum(axis=1), ((squares - rows) ** 4).sum(axis=1), strict=True
    ):
        every = []
        for ratio in np.linspace(0.1, 1, 181):
            params = from_range(row.min() * ratio, row.max() * ratio, Scheme(dtype, PER_TENSOR, False))
            low, high = Scheme(dtype).qmin, Scheme(dtype).qmax
            codes = np.clip(np.round(row / params.scale) + int(params.zero_point), low, high)
            every.append((((codes - int(params.zero_point)) * params.scale - row) ** 4).sum())
        assert found <= 1.05 * min(every)
        assert found < other


def test_the_slices_of_a_long_row_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_t(3, (6, 500)).astype(np.float32)
    for granularity in (PER_TENSOR, per_channel(0), per_group(1, 64)):
        scheme = Scheme("int4", granularity, observer="mse")
        whole = AFFINE.fit(x, scheme)
        with monkeypatch.context() as m:
            m.setattr(affine_file, "_BLOCK", 128)
            np.testing.assert_array_equal(AFFINE.fit(x, scheme).scale, whole.scale)


def test_what_cannot_be_fitted_is_refused() -> None:
    x = np.ones((2, 3), np.float32)
    for wrong in (np.nan, math.inf):
        with pytest.raises(BadRequest, match="the weight holds NaN or infinity"):
            AFFINE.fit(x * np.float32(wrong), Scheme())
        with pytest.raises(BadRequest, match="NaN or infinity cannot be quantized"):
            from_range(-1.0, wrong, Scheme())
    with pytest.raises(BadRequest, match=r"'entropy' is not for weights\. Known: hqq, l4, minmax, mse"):
        AFFINE.fit(x, Scheme(observer="entropy"))
    with pytest.raises(BadRequest, match=r"axis 2 of a tensor of shape \(2, 3\)"):
        AFFINE.fit(x, Scheme(granularity=per_channel(2)))
    with pytest.raises(BadRequest, match="computed at run time"):
        AFFINE.fit(x, Scheme(granularity=PER_TOKEN, dynamic=True))
