"""MXFP4, MXFP8, NVFP4: against the floats and scales of the standards, computed one block at a time in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.named import named
from graphpress.types import Scheme, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
FORMATS = {"mxfp4": ("int4", 32), "mxfp8": ("int8", 32), "nvfp4": ("int4", 16)}


def weights(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = rng.standard_t(4, (16, 256)) * np.exp2(rng.integers(-6, 7, (16, 1)))
    made[0], made[1, :32] = 0, 0
    return made.astype(np.float32)


def coded(name: str, w: np.ndarray, observer: str = "minmax") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the numbers that w becomes, scales of blocks, outer)."""
    dtype, size = FORMATS[name]
    how = Scheme(dtype, per_group(1, size), observer=observer, quantizer=name)
    params = named(name).fit(w, how)
    back = named(name).dequantize(named(name).quantize(w, params, how), params, how)
    return back, params.scale, params.tables["outer"]


@SEEDS
@pytest.mark.parametrize(("name", "element", "power"), [("mxfp4", "float4_e2m1fn", 2), ("mxfp8", "float8_e4m3fn", 8)])
def test_mx_blocks_are_those_of_the_standard(seed: int, name: str, element: str, power: int) -> None:
    """OCP MX 1.0, section 6.3: X = 2^(floor(log2 max|V|) - emax), elements V / X rounded half to even, saturated."""
    w, kind = weights(seed), getattr(ml_dtypes, element)
    largest = float(ml_dtypes.finfo(kind).max)
    blocks = w.reshape(-1, 32).astype(np.float64)
    top = np.abs(blocks).max(axis=1, keepdims=True)
    scale = np.exp2(np.floor(np.log2(np.where(top > 0, top, 2.0**power))) - power)
    expected = np.clip(blocks / scale, -largest, largest).astype(kind).astype(np.float64) * scale
    back, inner, outer = coded(name, w)
    np.testing.assert_array_equal(back.reshape(-1, 32), expected)
    held = (inner * outer).reshape(-1, 1)
    np.testing.assert_array_equal(held[top > 0], scale[top > 0])
    np.testing.assert_array_equal(inner.astype(ml_dtypes.float8_e5m2).astype(np.float32), inner)


@SEEDS
def test_nvfp4_scales_have_two_levels(seed: int) -> None:
    """The tensor's float32 maps the largest block to the largest e4m3; a block's is e4m3(max / 6 / outer)."""
    w = weights(seed)
    blocks = w.reshape(-1, 16).astype(np.float64)
    top = np.abs(blocks).max(axis=1, keepdims=True)
    outer = np.float32(top.max() / 6) / np.float32(448)
    inner = np.clip((top / 6).astype(np.float32) / outer, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    unit = inner.astype(np.float64) * np.float64(outer)
    expected = (
        np.clip((blocks / unit).astype(np.float32), -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * unit
    )
    back, scale, held = coded("nvfp4", w)
    assert held == pytest.approx(outer, rel=1e-6)
    np.testing.assert_array_equal(scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32), scale)
    assert np.isclose(back.reshape(-1, 16), expected, rtol=1e-5).mean() > 0.999  # but for ties
    assert (back[0] == 0).all()


@SEEDS
def test_finer_formats_lose_less_and_searched_ranges_too(seed: int) -> None:
    w = weights(seed)
    lost = {(n, o): np.square(coded(n, w, o)[0] - w).sum() for n in FORMATS for o in ("minmax", "mse")}
    assert lost["mxfp8", "minmax"] < 0.1 * lost["mxfp4", "minmax"]
    assert lost["nvfp4", "minmax"] < 0.9 * lost["mxfp4", "minmax"]
    assert all(lost[n, "mse"] < lost[n, "minmax"] for n in ("mxfp4", "nvfp4"))


@pytest.mark.parametrize("name", FORMATS)
def test_bits_are_those_of_the_standard_and_the_types_of_the_file(name: str) -> None:
    dtype, size = FORMATS[name]
    how = Scheme(dtype, per_group(1, size), quantizer=name)
    table = 32 + 32 * (16 if dtype == "int4" else 256)
    assert named(name).bits((64, 4096), how) == 64 * 4096 * (int(dtype[3:]) + 8 / size) + table
    text = "g (float[N, 64] x, float[64, 24] w) => (float[N, 24] y) { [m] y = MatMul(x, w) }"
    quantize = Quantize(
        mode="weight",
        weight=dtype,
        quantizer=name,
        weight_granularity="per_group",
        group_size=size,
        kernels="preferred",
    )  # type: ignore[arg-type]
    after, _ = kit.apply(model(text, {"w": normal(64, 24)}), quantize, ctx=context(target=None))
    (decode,) = [n for n in after.graph if n.op_type == "BlockLookupDequantize"]
    assert decode.inputs[1] is not None and decode.inputs[1].dtype is not None
    assert decode.inputs[1].dtype.name == ("FLOAT8E4M3FN" if name == "nvfp4" else "FLOAT8E5M2")


@pytest.mark.parametrize("name", FORMATS)
def test_other_types_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name}.*not int2"):
        named(name).fit(weights(0), Scheme("int2", per_group(1, 32), quantizer=name))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_of_zeros_and_of_very_small_numbers(name: str) -> None:
    w = np.zeros((2, 64), np.float32)
    w[1, 0], w[1, 32] = 1.0, 1e-30
    back, _, _ = coded(name, w)
    np.testing.assert_allclose(back, np.where(w > 1e-9, w, 0), atol=1e-9)
    assert (coded(name, np.zeros((2, 64), np.float32))[0] == 0).all()
