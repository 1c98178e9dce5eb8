"""Casts of all pairs of types against ONNX's reference, NumPy and ml_dtypes."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference.ops.op_cast import cast_to

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.ops import cast
from graphpress.errors import Unsupported
from tests.backends.fx.single import in_onnx, in_ort, in_torch, model, module, normal, same

FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "INT4", "UINT4", "INT2", "UINT2")
TYPES = (*FLOATS, *FLOAT8, *INTEGERS, "FLOAT4E2M1", "FLOAT8E8M0", "BOOL")


def numpy_type(name: str) -> np.dtype:
    return ir.DataType[name].numpy()


def converted(x: np.ndarray, source: str, to: str, **options: object) -> np.ndarray:
    return dtypes.to_numpy(cast.convert(dtypes.from_numpy(x, source), source, to, **options), to)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")


@pytest.mark.parametrize("to", TYPES)
def test_numbers_that_both_types_have_keep_their_values(to: str) -> None:
    for source in TYPES:
        numbers = np.array([0, 1, 2, 3, -1, -2, 4, 6, 100, 127, 16384]).astype(np.float64)
        with np.errstate(all="ignore"):
            here = [n for n in numbers if float(np.array(n).astype(numpy_type(source))) == n]
            both = np.array([n for n in here if float(np.array(n).astype(numpy_type(to))) == n])
        given = converted(both.astype(numpy_type(source)), source, to)
        assert given.dtype == numpy_type(to), (source, to)
        np.testing.assert_array_equal(given.astype(np.float64), both, err_msg=f"{source} to {to}")


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_wrap(source: str, to: str) -> None:
    low, high = dtypes.integer_range(source)
    values = np.array([0, 1, low, high, low // 3, high // 3 * 2], dtype=object)
    x = values.astype(np.int64 if low else np.uint64).astype(numpy_type(source))
    bottom, top = dtypes.integer_range(to)
    expected = [(int(v) - bottom) % (top - bottom + 1) + bottom for v in values]
    assert [int(v) for v in converted(x, source, to)] == expected


@pytest.mark.parametrize("to", ["INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BOOL"])
@pytest.mark.parametrize("source", FLOATS)
def test_floats_are_cut_off_as_onnx_runtime_does(source: str, to: str) -> None:
    x = np.array([1.5, 2.5, -1.5, -0.6, 0.4, 7.9, 100.7, -100.7, 300.5, -300.5, 0.0]).astype(numpy_type(source))
    if source == "BFLOAT16":
        expected = cast_to(x.astype(np.float32), ir.DataType[to].value, True)
    else:
        expected = in_ort("Cast", x, to=ir.DataType[to].value)
    same(converted(x, source, to), expected)


@pytest.mark.parametrize("to", ["INT4", "UINT4", "INT2", "UINT2"])
def test_floats_are_cut_off_to_small_integers_as_numpy_does(to: str) -> None:
    x = np.array([0.9, 1.6, -1.6, 1.0, -2.0, 3.9, 7.2, 15.5], np.float32)
    bottom, top = dtypes.integer_range(to)
    x = x[(np.trunc(x) >= bottom) & (np.trunc(x) <= top)]
    same(converted(x, "FLOAT", to), x.astype(numpy_type(to)))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("to", FLOAT8)
def test_every_half_precision_number_to_float8(to: str, saturate: bool) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        expected = cast_to(x.astype(np.float32), ir.DataType[to].value, saturate)
        for source in ("FLOAT16", "FLOAT", "DOUBLE"):
            given = converted(x.astype(numpy_type(source)), source, to, saturate=saturate)
            nan = np.isnan(expected)
            np.testing.assert_array_equal(bits(given)[~nan], bits(expected)[~nan])
            assert np.isnan(given[nan]).all()


@pytest.mark.parametrize("to", [*FLOATS, "INT32", "BOOL"])
@pytest.mark.parametrize("source", [*FLOAT8, "FLOAT8E8M0"])
def test_every_8_bit_float_to_wider_types(source: str, to: str) -> None:
    x = np.arange(256, dtype=np.uint8).view(numpy_type(source))
    with np.errstate(all="ignore"):
        if to == "INT32":
            x = x[np.isfinite(x) & (np.abs(x.astype(np.float64)) < 2**31)]
        expected = x.astype(np.float32).astype(numpy_type(to))
        given = converted(x, source, to)
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given.astype(np.float64), expected.astype(np.float64))


def test_float4_takes_the_nearest_and_of_two_the_even_one() -> None:
    x = np.arange(-800, 801).astype(np.float32) / 100  # 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 lie between two
    same(converted(x, "FLOAT", "FLOAT4E2M1"), x.astype(ml_dtypes.float4_e2m1fn))


@pytest.mark.parametrize(("to", "halfway"), [("FLOAT8E4M3FN", 1.0625), ("FLOAT8E5M2", 1.125), ("FLOAT4E2M1", 2.5)])
def test_double_precision_is_rounded_once(to: str, halfway: float) -> None:
    """Just above halfway: float32 would be halfway itself, and the next rounding would go down."""
    x = np.array([np.nextafter(halfway, np.inf), halfway, -np.nextafter(halfway, np.inf)], np.float64)
    given = converted(x, "DOUBLE", to).astype(np.float64)
    assert given[0] > halfway > given[1]
    assert given[2] == -given[0]


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two_round_as_onnx_does(mode: str, saturate: bool) -> None:
    random = np.random.default_rng(0).integers(0, 2**31, 2000, dtype=np.uint32)
    edges = np.array([0, 1, 0x400000, 0x400001, 0x7F7FFFFF, 0x7F000000, 0x7F400000, 0x7F800000, 0x7FC00000], np.uint32)
    x = np.concatenate([random, edges]).view(np.float32)
    given = converted(x, "FLOAT", "FLOAT8E8M0", saturate=saturate, round_mode=mode)
    np.testing.assert_array_equal(bits(given), bits(onnx.numpy_helper.to_float8e8m0(x, saturate, mode)))


def test_an_unsigned_number_of_64_bits_is_a_float_of_its_value() -> None:
    x = np.array([2**64 - 1, 2**63, 2**63 + 2**40, 5], np.uint64)
    for to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        same(in_torch("Cast", x, to=to), in_ort("Cast", x, to=to))
    y = np.array([2.0**63, 2.0**63 + 2**12, 1.8e19, 3.0])
    same(in_torch("Cast", y, to=onnx.TensorProto.UINT64), in_ort("Cast", y, to=onnx.TensorProto.UINT64))


@pytest.mark.parametrize(("opset", "to"), [(1, "INT32"), (6, 6), (9, 6), (13, 6), (19, 6), (25, 6)])
def test_each_opset(opset: int, to: str | int) -> None:
    x = np.array([1.5, -2.5, 3.0], np.float32)
    same(in_torch("Cast", x, opset=opset, to=to), np.array([1, -2, 3], np.int32))


def test_cast_like_takes_the_type_of_a_carried_tensor() -> None:
    x, like = np.array([70000, -1]), np.zeros(1, np.uint16)
    same(in_torch("CastLike", x, like), np.array([4464, 65535], np.uint16))


def test_strings_are_refused() -> None:
    with pytest.raises(Unsupported, match="STRING"):
        module("Cast", np.ones(2, np.float32), to=onnx.TensorProto.STRING)(torch.ones(2))


def test_gradients_pass_between_floats() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = module("Cast", np.ones(3, np.float32), to=onnx.TensorProto.DOUBLE)(x)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    d = torch.tensor([1.1, 100.0], dtype=torch.float64, requires_grad=True)
    cast.convert(cast.convert(d, "DOUBLE", "FLOAT4E2M1"), "FLOAT4E2M1", "DOUBLE").sum().backward()
    assert d.grad is not None


SAME_SIZE = [
    ("FLOAT", "INT32"), ("FLOAT", "UINT32"), ("UINT32", "FLOAT"), ("DOUBLE", "UINT64"), ("UINT64", "INT64"),
    ("BFLOAT16", "UINT16"), ("UINT16", "FLOAT16"), ("INT16", "UINT16"), ("UINT8", "INT8"), ("FLOAT8E5M2", "UINT8"),
    ("INT8", "FLOAT8E4M3FN"), ("BOOL", "UINT8"), ("INT64", "COMPLEX64"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "to"), SAME_SIZE)
def test_bit_cast_keeps_the_bits(source: str, to: str) -> None:
    size = numpy_type(source).itemsize
    raw = np.random.default_rng(0).integers(0, 2 if source == "BOOL" else 256, (6, size)).astype(np.uint8)
    x = raw.view(numpy_type(source))[:, 0]
    given = in_torch("BitCast", x, opset=26, to=ir.DataType[to].value)
    assert given.dtype == numpy_type(to)
    np.testing.assert_array_equal(np.ascontiguousarray(given).view(np.uint8), raw.reshape(-1))


FOUR_BITS = ("INT4", "UINT4", "FLOAT4E2M1")


@pytest.mark.parametrize(
    ("source", "to"), [*itertools.permutations(FOUR_BITS, 2), ("INT2", "UINT2"), ("UINT2", "INT2")]
)
def test_bit_cast_of_less_than_a_byte(source: str, to: str) -> None:
    count = 4 if "2" in source and "E2" not in source else 16
    raw = np.arange(count, dtype=np.uint8)
    wanted = {
        "INT4": ((raw + 8) % 16 - 8.0), "UINT4": raw, "FLOAT4E2M1": raw.view(ml_dtypes.float4_e2m1fn), "UINT2": raw,
        "INT2": (raw + 2.0) % 4 - 2,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        x = wanted[source].astype(np.float32).astype(numpy_type(source))
        expected = wanted[to].astype(np.float32)
    given = cast.bit_cast(dtypes.from_numpy(x, source), to=ir.DataType[to].value, in_types=(source,))
    np.testing.assert_array_equal(dtypes.to_numpy(given, to).astype(np.float32), expected)


def test_a_cast_is_one_graph_for_any_batch() -> None:
    x = normal(4, 3)
    built = module("Cast", x, to=onnx.TensorProto.FLOAT8E4M3FN, shapes={0: ("n", 3)})
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    expected = in_onnx("Cast", x, to=onnx.TensorProto.FLOAT8E4M3FN)
    np.testing.assert_array_equal(dtypes.to_numpy(compiled(torch.from_numpy(x)), "FLOAT8E4M3FN"), expected)
    assert model("Cast", x, to=1).graph.outputs[0].dtype == ir.DataType.FLOAT
