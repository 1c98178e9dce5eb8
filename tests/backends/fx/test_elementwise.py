"""Arithmetic, comparison and logic: types of integers, old opsets, corner cases, gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from graphpress.backends import fx as backend
from graphpress.backends.fx.ops import elementwise, unsigned
from tests import kit
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
WRAPPING = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
COMPARING = {
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}  # fmt: skip


def whole_range(dtype: str, seed: int = 0) -> np.ndarray:
    """Numbers of every size of a type, its two ends among them."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    values = rng.integers(info.min, info.max, 60, dtype=dtype, endpoint=True) >> rng.integers(0, info.bits, 60).astype(
        dtype
    )
    return np.concatenate([values, np.array([info.min, info.max, 1, 2], dtype)])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("op", WRAPPING)
def test_integers_wrap(op: str, dtype: str) -> None:
    a, b = whole_range(dtype), whole_range(dtype, 1)[::-1].copy()
    with np.errstate(over="ignore"):
        expected = WRAPPING[op](a, b)
    same(in_torch(op, a, b), expected)
    same(in_torch(op, a, b[:1].reshape(()), constants=[1]), WRAPPING[op](a, b[:1]))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("op", COMPARING)
def test_integers_compare(op: str, dtype: str) -> None:
    a, b = whole_range(dtype), whole_range(dtype, 1)
    b[::5] = a[::5]
    same(in_torch(op, a, b), COMPARING[op](a, b))
    same(in_torch(op, a, a[3:4].reshape(()), constants=[1]), COMPARING[op](a, a[3]))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_divide_towards_zero(dtype: str) -> None:
    a, b = whole_range(dtype), whole_range(dtype, 1)
    b[(b == 0) | (b.astype(np.int64) == -1)] = 3
    same(in_torch("Div", a, b), _divided(a, b))
    same(in_torch("Div", a, np.array(7, dtype), constants=[1]), _divided(a, np.full_like(a, 7)))
    same(in_torch("Mod", a, b), np.mod(a, b))
    same(in_torch("Mod", a, b, fmod=1), np.fmod(a, b))


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exact = [abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]
    return np.array(exact, a.dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_meet_limits(dtype: str) -> None:
    a, b = whole_range(dtype), whole_range(dtype, 1)
    low, high = np.sort(whole_range(dtype, 2))[[20, 40]]
    same(in_torch("Max", a, b), np.maximum(a, b))
    same(in_torch("Min", a, b, b[::-1].copy()), np.minimum(np.minimum(a, b), b[::-1]))
    same(in_torch("Clip", a, low, high), np.clip(a, low, high))
    same(in_torch("Clip", a, None, high, constants=[2]), np.minimum(a, high))
    with np.errstate(over="ignore"):
        same(in_torch("Abs", a), np.abs(a))
    same(in_torch("Sign", a), np.sign(a))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(dtype: str, direction: str) -> None:
    bits = np.iinfo(dtype).bits
    a = whole_range(dtype)
    by = np.resize(np.array([*range(bits), bits, bits + 3]), a.size).astype(dtype)
    opset = 28 if dtype[0] == "i" else 21
    expected = [_shifted(int(x), int(y), bits, direction, dtype[0] == "i") for x, y in zip(a, by, strict=True)]
    same(in_torch("BitShift", a, by, direction=direction, opset=opset), np.array(expected, dtype))


def _shifted(x: int, by: int, bits: int, direction: str, signed: bool) -> int:
    if direction == "RIGHT":
        return x >> by
    y = (x << by) % 2**bits if by < bits else 0
    return y - 2**bits if signed and y >= 2 ** (bits - 1) else y


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bits(dtype: str) -> None:
    a, b = whole_range(dtype), whole_range(dtype, 1)
    same(in_torch("BitwiseNot", a), np.invert(a))
    same(in_torch("BitwiseAnd", a, b), a & b)
    same(in_torch("BitwiseOr", a, b), a | b)
    same(in_torch("BitwiseXor", a, b), a ^ b)


@pytest.mark.parametrize("base", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("exponent", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("constant", [False, True])
def test_powers_have_the_type_of_the_base(base: str, exponent: str, constant: bool) -> None:
    x = np.array([1, 2, 3, 5, 7], base)
    for y in (np.array(2, exponent), np.array([[0], [1], [3]], exponent)):
        options: dict[str, Any] = {"constants": [1]} if constant else {}
        same(in_torch("Pow", x, y, **options), in_ort("Pow", x, y, **options), rtol=1e-6)


def test_powers_of_unsigned_integers() -> None:
    x = np.array([3, 2**32 + 5, 2**63 + 11], np.uint64)
    same(in_torch("Pow", x, np.array([2, 2, 1], np.int64)), np.array([9, 25 + 10 * 2**32, 2**63 + 11], np.uint64))
    given = unsigned.pow_(torch.tensor([9, -1]), torch.tensor(0.5), in_types=("UINT64", "FLOAT"))
    assert given.tolist() == [3, 2**32]  # the root of 2**64 - 1 in float64


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 4), 1), ((3,), 1), ((2,), 0), ((5,), None), ((4, 5), None), ((4, 5), -2)]
)
@pytest.mark.parametrize("opset", [1, 6])
def test_second_operand_along_an_axis(op: str, shape: tuple[int, ...], axis: int | None, opset: int) -> None:
    a, b = normal(2, 3, 4, 5), normal(*shape, seed=1) + 3
    at = {} if axis is None else {"axis": axis}
    first = 4 - len(shape) if axis is None else axis % 4
    wide = b.reshape((1,) * first + shape + (1,) * (4 - first - len(shape)))
    expected = {"Add": a + wide, "Sub": a - wide, "Mul": a * wide, "Div": a / wide}[op]
    same(in_torch(op, a, b, opset=opset, broadcast=1, **at), expected, rtol=1e-6)


def test_old_comparison_and_logic_along_an_axis() -> None:
    a, b = normal(2, 3, 4) > 0, np.array([True, False, True])
    wide = b[:, None]
    for op, expected in (("And", a & wide), ("Or", a | wide), ("Xor", a ^ wide), ("Equal", a == wide)):
        same(in_torch(op, a, b, opset=1, broadcast=1, axis=1), expected)
    x, y = normal(2, 3, 4), normal(3, seed=1)
    same(in_torch("Less", x, y, opset=1, broadcast=1, axis=1), x < y[:, None])
    same(in_torch("Greater", x, y, opset=1, broadcast=1, axis=1), x > y[:, None])
    same(in_torch("Pow", abs(x), y, opset=1, broadcast=1, axis=1), np.power(abs(x), y[:, None]), rtol=1e-6)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Pow"])
@pytest.mark.parametrize("constant", [0, 1])
def test_constants_keep_half_precision(op: str, constant: int) -> None:
    x, c = abs(normal(64)).astype(ml_dtypes.bfloat16), np.array(0.7, ml_dtypes.bfloat16)
    operands = (x, c) if constant else (c, x)
    extra = {"fmod": 1} if op == "Mod" else {}
    given = in_torch(op, *operands, constants=[constant], **extra)
    exact = in_torch(op, *(v.astype(np.float32) for v in operands), constants=[constant], **extra)
    same(given, exact.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_limits_that_are_attributes(dtype: Any) -> None:
    x = np.array([-np.inf, -7, -1, 0.5, 7, np.inf, np.nan], dtype)
    same(in_torch("Clip", x, opset=6, min=-2.0, max=3.0), np.clip(x, dtype(-2), dtype(3)))
    if dtype == np.float32:
        same(in_torch("Clip", x, opset=6), in_ort("Clip", x, opset=6))
    same(in_torch("Clip", x, opset=6, min=0.0)[:5], np.maximum(x[:5], dtype(0)))


def test_limits() -> None:
    x = normal(5, 4)
    low, high = np.float32(-0.5), np.float32(0.25)
    for constants in ([], [1], [2], [1, 2]):
        same(in_torch("Clip", x, low, high, constants=constants), np.clip(x, low, high))
        same(in_torch("Clip", x, high, low, constants=constants), np.full_like(x, low))  # the upper one holds
    same(in_torch("Clip", x, low), np.maximum(x, low))
    same(in_torch("Clip", x, None, high), np.minimum(x, high))
    same(in_torch("Clip", x), x)


def test_halves_are_rounded_to_even() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)
    same(in_torch("Round", x), np.array([-2, -2, -0.0, 0, 2, 2, 4], np.float32))


@pytest.mark.parametrize("fmod", [0, 1])
def test_remainders_of_floats(fmod: int) -> None:
    a = np.array([7, -7, 7, -7, 0.3, -0.3, 5.5], np.float32)
    b = np.array([3, 3, -3, -3, 0.1, 0.1, -2], np.float32)
    opset = 21 if fmod else 28
    same(in_torch("Mod", a, b, fmod=fmod, opset=opset), np.fmod(a, b) if fmod else np.mod(a, b), atol=1e-7)


@pytest.mark.parametrize(("negative", "positive"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn])
def test_infinities_and_what_is_no_number(negative: int, positive: int, dtype: Any) -> None:
    x = np.array([1, -2, np.nan, np.inf, -np.inf], np.float32).astype(dtype)
    flags = {"detect_negative": negative, "detect_positive": positive}
    wide = x.astype(np.float32)
    same(in_torch("IsInf", x, **flags), (negative & np.isneginf(wide) | positive & np.isposinf(wide)).astype(bool))
    same(in_torch("IsNaN", x), np.isnan(wide))


def test_error_function_of_integers() -> None:
    x = np.array([-3, -1, 0, 1, 9], np.int32)
    same(in_torch("Erf", x), in_onnx("Erf", x))


def test_many_operands() -> None:
    xs = [normal(2, 1, 4), normal(3, 1, seed=1), normal(4, seed=2)]
    same(in_torch("Sum", *xs), xs[0] + xs[1] + xs[2], rtol=1e-6)
    same(in_torch("Mean", *xs), (xs[0] + xs[1] + xs[2]) / 3, rtol=1e-6, atol=1e-7)
    same(in_torch("Max", xs[0]), xs[0])
    same(in_torch("Where", xs[0] > 0, xs[1], xs[2]), np.where(xs[0] > 0, xs[1], xs[2]))


@pytest.mark.parametrize("op", ["Abs", "Exp", "Sqrt", "Max", "Sum", "Neg"])
def test_hint_of_the_first_opset(op: str) -> None:
    x = abs(normal(3))
    same(in_torch(op, x, opset=1, consumed_inputs=[0]), in_torch(op, x))


UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Exp", "Log", "Neg", "Reciprocal",
    "Sin", "Sinh", "Sqrt", "Tan",
)  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_gradients(op: str) -> None:
    x = (doubles(3, 4).detach().sigmoid() * 0.8 + 0.1 + (op == "Acosh")).requires_grad_()
    assert torch.autograd.gradcheck(module(op, x.detach().numpy()), (x,))


def test_gradients_of_both_operands() -> None:
    a, b = doubles(3, 4), (doubles(4, seed=1).detach().abs() + 1).requires_grad_()
    positive = (a.detach().abs() + 0.5).requires_grad_()
    arrays = [t.detach().numpy() for t in (a, b)]
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"):
        assert torch.autograd.gradcheck(module(op, *arrays), (a, b))
    assert torch.autograd.gradcheck(module("Pow", *arrays), (positive, b))
    assert torch.autograd.gradcheck(module("Pow", arrays[0], np.array(3.0), constants=[1]), (a,))


def test_one_graph_for_compile_and_export() -> None:
    source = """
        <ir_version: 10, opset_import: ["" : 21]> g (float[n, 4] x, int64[n, 4] i) => (float[n, 4] y, int64[n, 4] j) {
            half = Constant <value = float {0.5}> ()
            two = Constant <value = int64 {2}> ()
            low = Constant <value = float {-1.0}> ()
            a = Mul (x, half)
            b = Pow (a, two)
            c = Clip (b, low)
            d = Max (c, x)
            y = Div (half, d)
            k = Div (i, two)
            j = Mod (k, two)
        }"""
    built = backend.build(kit.parse(source))
    x, i = torch.rand(3, 4) + 0.1, torch.arange(-6, 6).reshape(3, 4)
    expected = built(x, i)
    compiled = torch.compile(built, fullgraph=True, backend="eager")(x, i)
    exported = torch.export.export(built, (x, i), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 2)
    other = (torch.rand(5, 4), torch.arange(20).reshape(5, 4))
    for given, wanted in ((compiled, expected), (exported.module()(*other), built(*other))):
        for a, b in zip(given, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_code_reads_as_torch() -> None:
    code = module("Abs", normal(2)).code
    assert "torch.abs(x0)" in code
    assert elementwise.OPS["Exp"] is torch.exp


def test_no_data_is_needed_for_shapes() -> None:
    x = normal(2, 3)
    for op, inputs in (("Div", (x, x)), ("Pow", (x, x)), ("IsInf", (x,)), ("Clip", (x, np.float32(0)))):
        built = module(op, *inputs).to("meta")
        assert built(*(torch.empty(i.shape, device="meta") for i in inputs)).shape == (2, 3)
