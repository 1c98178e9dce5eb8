"""Q, DQ and products of integers, bit for bit against ONNX Runtime and ONNX's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.ops import quantization
from graphpress.errors import Unsupported
from tests.backends.fx.single import in_onnx, in_ort, in_torch, module, normal, same

INTEGERS = ("INT8", "UINT8", "INT16", "UINT16")
SMALL = ("INT4", "UINT4", "INT2", "UINT2")
FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")


def zeros(name: str, *shape: int, seed: int = 1) -> np.ndarray:
    """Random zero points of a type; of floats, 0."""
    dtype = ir.DataType[name].numpy()
    if "FLOAT" in name:
        return np.zeros(shape, dtype)
    low, high = dtypes.integer_range(name)
    return np.random.default_rng(seed).integers(low // 2, high // 2 + 1, shape).astype(dtype)


def scales(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(2).uniform(0.003, 0.02, shape).astype(dtype)


def with_halves(scale: float) -> np.ndarray:
    """Numbers that lie on, next to and beyond the places where rounding decides."""
    halves = np.arange(-600, 600).astype(np.float32) / 2 * np.float32(scale)
    return np.concatenate([halves, np.nextafter(halves, np.float32(9)), [1e30, -1e30, np.inf, -np.inf]]).astype(
        np.float32
    )


# -- quantize ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("scale", [1.0, 0.013, 0.1])
def test_halves_go_to_even_and_the_rest_saturates(scale: float, name: str) -> None:
    for given in (with_halves(scale), normal(3000) * 5):
        inputs = given, np.array(scale, np.float32), zeros(name)
        same(in_torch("QuantizeLinear", *inputs), in_ort("QuantizeLinear", *inputs))


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_index_of_an_axis(axis: int, opset: int) -> None:
    x = normal(3, 4, 5)
    n = x.shape[axis]
    inputs = x, scales(n), zeros("UINT8", n)
    codes = in_torch("QuantizeLinear", *inputs, axis=axis, opset=opset)
    same(codes, in_ort("QuantizeLinear", *inputs, axis=axis, opset=opset))
    given = in_torch("DequantizeLinear", codes, *inputs[1:], axis=axis, opset=opset)
    same(given, in_ort("DequantizeLinear", codes, *inputs[1:], axis=axis, opset=opset))


def test_opset_10_has_one_scale_and_uint8_without_zero_point() -> None:
    x, scale = normal(2, 3), np.array(0.02, np.float32)
    same(in_torch("QuantizeLinear", x, scale, opset=10), in_ort("QuantizeLinear", x, scale, opset=10))
    codes = np.arange(6, dtype=np.uint8)
    same(in_torch("DequantizeLinear", codes, scale, opset=10), in_ort("DequantizeLinear", codes, scale, opset=10))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scale_of_one_element_is_for_the_whole_tensor(shape: tuple[int, ...]) -> None:
    for x in (np.array(0.3, np.float32), normal(5), normal(3, 4, 5)):
        inputs = x, scales(*shape), zeros("INT8", *shape)
        codes = in_torch("QuantizeLinear", *inputs)
        same(codes, in_onnx("QuantizeLinear", *inputs))
        assert in_torch("DequantizeLinear", codes, *inputs[1:]).shape == x.shape


@pytest.mark.parametrize("name", [*INTEGERS, *SMALL])
@pytest.mark.parametrize("size", [8, 7])
def test_blocks_along_an_axis_of_which_the_last_may_be_shorter(size: int, name: str) -> None:
    x = normal(2, size, 3) * 0.1
    inputs = x, scales(2, 2, 3), zeros(name, 2, 2, 3)
    codes = in_torch("QuantizeLinear", *inputs, axis=1, block_size=4)
    wide = [np.repeat(p, 4, 1)[:, :size] for p in inputs[1:]]
    low, high = dtypes.integer_range(name)
    expected = np.clip(np.rint(x / wide[0]) + wide[1].astype(np.float32), low, high)
    same(codes, expected.astype(codes.dtype))
    if name in ("INT8", "UINT8"):
        same(codes, in_ort("QuantizeLinear", *inputs, axis=1, block_size=4))
    given = in_torch("DequantizeLinear", codes, *inputs[1:], axis=1, block_size=4)
    same(given, (expected.astype(np.float32) - wide[1].astype(np.float32)) * wide[0])


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("name", FLOAT8)
def test_float8(name: str, saturate: int) -> None:
    x = np.concatenate([normal(500) * 3, np.float32([1e6, -1e6, np.inf, 0.0])]).astype(np.float32)
    inputs = x, np.array(0.01, np.float32), zeros(name)
    with np.errstate(all="ignore"):
        codes = in_torch("QuantizeLinear", *inputs, saturate=saturate, opset=19)
        expected = in_onnx("QuantizeLinear", *inputs, saturate=saturate, opset=19)
        np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
        given = in_torch("DequantizeLinear", codes, *inputs[1:], opset=19)
        same(given, in_onnx("DequantizeLinear", codes, *inputs[1:], opset=19))


def test_float4() -> None:
    x = normal(400) * 3
    inputs = x, np.array(0.75, np.float32), zeros("FLOAT4E2M1")
    codes = in_torch("QuantizeLinear", *inputs, opset=23)
    same(codes, in_onnx("QuantizeLinear", *inputs, opset=23))
    given = in_torch("DequantizeLinear", codes, *inputs[1:], opset=23)
    same(given, in_onnx("DequantizeLinear", codes, *inputs[1:], opset=23))


@pytest.mark.parametrize("scale", [0.013, 0.02, 0.1])
def test_half_precision_divides_in_half_precision(scale: float) -> None:
    x = normal(20000, dtype=np.float16) * np.float16(3)
    inputs = x, np.array(scale, np.float16), np.array(3, np.int8)
    expected = in_ort("QuantizeLinear", *inputs, opset=23)
    same(in_torch("QuantizeLinear", *inputs, opset=23), expected)
    before = in_ort("QuantizeLinear", *inputs, opset=19)
    same(in_torch("QuantizeLinear", *inputs, opset=19), before)
    assert (before != expected).any()
    wide = in_torch("QuantizeLinear", *inputs, precision=ir.DataType.FLOAT.value, opset=23)
    same(wide, before)


def test_bfloat16_and_a_scale_of_another_type() -> None:
    x = normal(2000, dtype=ml_dtypes.bfloat16)
    inputs = x, np.array(0.02, ml_dtypes.bfloat16), np.array(100, np.int16)
    given = in_torch("QuantizeLinear", *inputs, opset=23)
    ratio = (x.astype(np.float32) / inputs[1].astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    same(given, (np.rint(ratio) + 100).astype(np.int16))
    back = in_torch("DequantizeLinear", given, *inputs[1:])
    same(back, ((given.astype(np.float32) - 100) * np.float32(inputs[1])).astype(ml_dtypes.bfloat16))
    y = normal(100, dtype=np.float16)
    mixed = in_torch("QuantizeLinear", y, np.array(0.02, np.float32), np.array(0, np.int8), opset=23)
    same(mixed, in_ort("QuantizeLinear", y, np.array(0.02, np.float32), np.array(0, np.int8), opset=23))


def test_the_type_may_be_an_attribute() -> None:
    inputs = normal(50), np.array(0.1, np.float32)
    for name in ("INT8", "INT16", "UINT4"):
        given = in_torch("QuantizeLinear", *inputs, output_dtype=ir.DataType[name].value)
        same(given, in_onnx("QuantizeLinear", *inputs, output_dtype=ir.DataType[name].value))


def test_integers_are_quantized_too() -> None:
    x = np.array([-700, -5, 5, 7, 10000], np.int32)
    inputs = x, np.array(2.0, np.float32), np.array(7, np.int8)
    same(in_torch("QuantizeLinear", *inputs, opset=13), np.array([-128, 5, 9, 11, 127], np.int8))


def test_scales_of_two_axes_without_blocks_are_refused() -> None:
    with pytest.raises(Unsupported, match="block_size"):
        quantization.quantize_linear(torch.ones(2, 3), torch.ones(2, 3))


# -- dequantize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", [*INTEGERS, "INT4", "UINT4"])
def test_dequantize(name: str, dtype: Any) -> None:
    low, high = dtypes.integer_range(name)
    x = np.random.default_rng(0).integers(low, high + 1, 5000).astype(ir.DataType[name].numpy())
    inputs = x, np.array(0.0013, dtype), zeros(name)
    same(in_torch("DequantizeLinear", *inputs), in_ort("DequantizeLinear", *inputs, constants=[0, 2]))


def test_dequantize_int32() -> None:
    x = np.random.default_rng(0).integers(-(2**31), 2**31, 5000).astype(np.int32)
    same(in_torch("DequantizeLinear", x, scales()), in_ort("DequantizeLinear", x, scales()))


@pytest.mark.parametrize("to", ["FLOAT16", "BFLOAT16", "FLOAT"])
def test_dequantize_to_a_type(to: str) -> None:
    x = np.arange(-100, 100).astype(np.int8)
    inputs = x, np.array(0.013, np.float32), np.array(5, np.int8)
    given = in_torch("DequantizeLinear", *inputs, output_dtype=ir.DataType[to].value, opset=23)
    same(given, in_onnx("DequantizeLinear", *inputs, output_dtype=ir.DataType[to].value, opset=23))


# -- by the range ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_quantize(seed: int) -> None:
    x = (normal(40, 30, seed=seed) + seed - 2) * np.float32(0.37)
    for given in (x, abs(x), -abs(x), x * 0):
        for a, b in zip(
            in_torch("DynamicQuantizeLinear", given, outputs=3), in_ort("DynamicQuantizeLinear", given, outputs=3),
            strict=True,
        ):  # fmt: skip
            same(a, b)


# -- products ----------------------------------------------------------------------------------------------------------


def integers(dtype: Any, *shape: int, seed: int = 0) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("terms", [7, 258, 259, 4096])
def test_sums_of_products_are_exact(terms: int) -> None:
    a, b = np.full((2, terms), 255, np.uint8), np.full((terms, 3), 255, np.uint8)
    b[0, 0] = 254
    expected = a.astype(np.int64) @ b.astype(np.int64)
    same(in_torch("MatMulInteger", a, b), expected.astype(np.int32))


def unsigned(signed: np.ndarray) -> np.ndarray:
    """128 more: with a zero point moved as far, the same numbers."""
    return np.asarray(signed.astype(np.int16) + 128, np.uint8) if signed.dtype == np.int8 else signed


@pytest.mark.parametrize("types", [(np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)])
def test_matmul_integer(types: tuple[Any, Any]) -> None:
    a, b = integers(types[0], 2, 5, 300), integers(types[1], 2, 300, 4, seed=1)
    columns = integers(types[1], 4)
    for operands in ((a, b), (a, b, integers(types[0]), integers(types[1])), (a, b[0], integers(types[0]), columns)):
        # ONNX Runtime's products of u8 and s8 saturate on x86 without VNNI, those of u8 and u8 nowhere.
        zeros = [unsigned(z) for z in operands[2:] or [np.array(0, t) for t in types]]
        exact = in_ort("MatMulInteger", *(unsigned(m) for m in operands[:2]), *zeros)
        same(in_torch("MatMulInteger", *operands), exact)
    rows = integers(types[0], 5)
    expected = (a.astype(np.int32) - rows[:, None].astype(np.int32)) @ (b.astype(np.int32) - columns.astype(np.int32))
    same(in_torch("MatMulInteger", a, b, rows, columns), expected)


def test_qlinear_matmul() -> None:
    a, b = integers(np.uint8, 6, 40), integers(np.int8, 40, 5, seed=1)
    scale, zero = np.array(0.02, np.float32), np.array(120, np.uint8)
    for b_scale, b_zero in ((scales(), np.array(3, np.int8)), (scales(5), integers(np.int8, 5))):
        inputs = a, scale, zero, b, b_scale, b_zero, np.array(0.9, np.float32), np.array(100, np.uint8)
        exact = a, scale, zero, unsigned(b), b_scale, unsigned(b_zero), *inputs[6:]
        same(in_torch("QLinearMatMul", *inputs), in_ort("QLinearMatMul", *exact))


def test_qlinear_matmul_with_a_scale_for_each_row() -> None:
    a, b = integers(np.int8, 3, 6, 40), integers(np.int8, 3, 40, 5, seed=1)
    zero = np.array(1, np.int8)
    for rows in (scales(6), scales(3, 6, 1)):
        inputs = a, rows, integers(np.int8, *rows.shape), b, scales(), zero, np.array(0.9, np.float32), zero
        at = [p.astype(np.float32).reshape(-1, 6, 1) for p in inputs[1:3]]
        sums = (a.astype(np.int32) - at[1].astype(np.int32)) @ (b.astype(np.int32) - 1)
        expected = np.clip(np.rint(sums.astype(np.float32) * (at[0] * inputs[4] / inputs[6])) + 1, -128, 127)
        same(in_torch("QLinearMatMul", *inputs), expected.astype(np.int8))


CONVOLUTIONS: list[dict[str, Any]] = [
    {}, {"pads": [1, 2, 0, 1]}, {"strides": [2, 1], "dilations": [1, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}, {"kernel_shape": [3, 2]},
]  # fmt: skip


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_of_integers(group: int, options: dict[str, Any]) -> None:
    x, w = integers(np.uint8, 2, 4, 9, 8), integers(np.int8, 6, 4 // group, 3, 2, seed=1)
    zero, options = np.array(77, np.uint8), {**options, "group": group}
    given = in_torch("ConvInteger", x, w, zero, **options)
    same(given, in_ort("ConvInteger", x, unsigned(w), zero, np.array(128, np.uint8), **options))
    bias = np.random.default_rng(3).integers(-9999, 9999, 6).astype(np.int32)
    inputs = (
        x,
        scales(),
        zero,
        w,
        scales(6),
        np.zeros(6, np.int8),
        np.array(0.3, np.float32),
        np.array(9, np.uint8),
        bias,
    )
    same(
        in_torch("QLinearConv", *inputs, **options),
        in_ort("QLinearConv", *inputs[:3], unsigned(w), inputs[4], unsigned(inputs[5]), *inputs[6:], **options),
    )


def test_a_convolution_of_many_channels_is_exact() -> None:
    x, w = integers(np.uint8, 1, 300, 4, 4), integers(np.uint8, 2, 300, 3, 3, seed=1)
    zero_points = np.array(200, np.uint8), np.array([3], np.uint8)
    same(in_torch("ConvInteger", x, w, *zero_points), in_ort("ConvInteger", x, w, *zero_points))


# -- as torch code -----------------------------------------------------------------------------------------------------


def test_compiled_for_any_batch() -> None:
    x = normal(4, 6)
    built = module("QuantizeLinear", x, scales(6), zeros("UINT8", 6), constants=[1, 2], shapes={0: ("n", 6)})
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    for n in (4, 9):
        x = normal(n, 6)
        same(compiled(torch.from_numpy(x)).numpy(), in_ort("QuantizeLinear", x, scales(6), zeros("UINT8", 6)))


def test_on_meta_tensors() -> None:
    built = module("QuantizeLinear", normal(4, 6), scales(6), zeros("INT8", 6), constants=[1, 2]).to("meta")
    assert built(torch.empty(4, 6, device="meta")).dtype == torch.int8


def test_inputs_are_not_written_to() -> None:
    x, scale = torch.randn(10), torch.tensor(0.1)
    kept = x.clone()
    quantization.quantize_linear(x, torch.tensor(1.0), in_types=("FLOAT", "FLOAT"))
    codes = quantization.quantize_straight(x, scale, in_types=("FLOAT", "FLOAT"))
    again = codes.clone()
    quantization.dequantize_linear(
        codes, scale, torch.tensor(3, dtype=torch.uint8), in_types=("UINT8", "FLOAT", "UINT8")
    )
    assert torch.equal(x, kept)
    assert torch.equal(codes, again)
