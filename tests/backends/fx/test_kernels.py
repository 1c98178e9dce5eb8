"""Low-bit kernels against exact arithmetic, the operators that they stand for, and what can happen to a module."""

from __future__ import annotations

import copy
import io

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch._subclasses import FakeTensorMode

from graphpress.backends.fx.kernels import activations, base, float8_linear, int8_conv, int8_linear, weight_only
from graphpress.backends.fx.kernels.float8_linear import Float8Linear
from graphpress.backends.fx.kernels.int8_conv import StaticInt8Conv
from graphpress.backends.fx.kernels.int8_linear import DynamicInt8Linear, StaticInt8Linear
from graphpress.backends.fx.kernels.weight_only import WeightOnlyLinear
from graphpress.errors import Unsupported
from graphpress.ops import dynamic_quantize_token
from tests.kit import parse

IN, OUT = 72, 40


def overflows() -> bool:
    """Whether oneDNN's products of u8 and s8 saturate on this processor (x86 without VNNI)."""
    x, weight = torch.full((4, 64), 255, dtype=torch.uint8), torch.full((8, 64), 127, dtype=torch.int8)
    layout = torch.ops.onednn.qlinear_prepack(weight, None)
    rest = (torch.ones(8), torch.zeros(1, dtype=torch.int32), None, 1.0, 0, torch.float32, "none", [], "")
    made = torch.ops.onednn.qlinear_pointwise.default(x, 1.0, 0, layout, *rest)
    return not bool((made == 255 * 127 * 64).all())


OVERFLOWS = overflows()
# The largest weight code that an integer kernel takes here: 255 * (64 + 64) still fits in 16 bits.
LARGEST = 64 if OVERFLOWS else 127
# Sums are exact; scales, bias: float32, of terms no larger than the sum of the parts. 2^-22 is two roundings.
CLOSE = 2.0**-21


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=seeded(sum(shape)), dtype=torch.int32).to(dtype)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(1)) * 0.01 + 1e-3


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(2))


def linear(kind: str, largest: int = LARGEST) -> base.Kernel:
    """One of the linear kernels, over the same weight."""
    weight = integers(-largest, largest, OUT, IN), uniform(OUT), normal(OUT)
    codes = {"input_scale": 0.02, "input_zero": 117}
    signed = {"input_scale": 0.02, "input_zero": -9, "input_dtype": torch.int8}
    made = {
        "tensor": lambda: DynamicInt8Linear(*weight),
        "token": lambda: DynamicInt8Linear(*weight, per_token=True, relu=True),
        "float out": lambda: StaticInt8Linear(*weight, **codes),
        "uint8": lambda: StaticInt8Linear(
            *weight, **codes, relu=True, output_scale=0.05, output_zero=3, output_dtype=torch.uint8
        ),
        "int8": lambda: StaticInt8Linear(*weight, **signed, output_scale=0.05, output_zero=-5, output_dtype=torch.int8),
    }
    return made[kind]()


def conv(dims: int = 2, relu: bool = True, largest: int = LARGEST, **options: object) -> StaticInt8Conv:
    groups = int(str(options.get("groups", 1)))
    weight = integers(-largest, largest, 16, 16 // groups, *[3] * dims), uniform(16), normal(16)
    given = {"input_scale": 0.02, "input_zero": 100, "padding": (1,), "output_scale": 0.1, "output_zero": 7}
    return StaticInt8Conv(*weight, relu=relu, **(given | {"output_dtype": torch.uint8} | options))  # type: ignore[arg-type]


def assert_close(y: torch.Tensor, expected: torch.Tensor) -> None:
    assert y.shape == expected.shape and y.dtype == expected.dtype
    if y.is_floating_point():
        assert (y - expected).abs().max() <= CLOSE * expected.abs().max()
    else:  # a float32 rounding apart at the edge between two codes
        apart = (y.int() - expected.int()).abs()
        assert apart.max() <= 1 and apart.float().mean() < 1e-3


def ties(rng: np.random.Generator) -> np.ndarray:
    """Values half way between codes, for a zero point that may be odd."""
    low = rng.integers(0, 256)
    x = np.clip(rng.integers(-510, 511, (8, 33)) * 0.5, -low, 255 - low)
    x[0, :2] = -low, 255 - low
    return (x * 2.0 ** rng.integers(-8, 8)).astype(np.float32)


def saturating(rng: np.random.Generator) -> np.ndarray:
    """Both ends half way between codes: one code more than there is."""
    n = 2 * rng.integers(10, 100) + 1
    return np.float32([[-(255 - n - 0.5), n + 0.5, 0.25]]) * np.float32(2.0 ** rng.integers(-8, 8))


def spread(rng: np.random.Generator) -> np.ndarray:
    shift = rng.choice([0.0, 3.0, -9.0])
    return ((rng.normal(size=(5, 17)) + shift) * 10 ** rng.uniform(-30, 30)).astype(np.float32)


@pytest.mark.parametrize("make", [ties, saturating, spread])
def test_codes_of_a_tensor_are_those_of_dynamic_quantize_linear(make) -> None:
    model = parse("g (float[m,n] x) => (uint8[m,n] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    for x in (make(rng) for _ in range(200)):
        codes, scale, zero = session.run(None, {"x": x})
        for quantize in (activations.by_tensor, activations.by_tensor_eager):
            got, got_scale, got_zero = quantize(torch.from_numpy(x))
            assert (float(got_scale), int(got_zero)) == (float(scale), int(zero))
            np.testing.assert_array_equal(got.numpy(), codes)


@pytest.mark.parametrize("make", [ties, spread])
def test_codes_of_a_token_are_those_of_the_operator(make) -> None:
    rng = np.random.default_rng(4)
    kernel = dynamic_quantize_token.OP.kernel()
    for x in (torch.from_numpy(make(rng)) for _ in range(100)):
        codes, scale = kernel(x)
        for quantize in (activations.by_token, activations.by_token_eager):
            got, got_scale = quantize(x)
            assert torch.equal(got.int() - 128, codes.int()) and torch.equal(got_scale, scale)


def test_tensors_of_one_value_are_quantized_too() -> None:
    for x in (torch.zeros(3, 4), torch.full((3, 4), 5.0), torch.full((3, 4), -5.0)):
        codes, scale, zero = activations.by_tensor_eager(x)
        assert torch.allclose((codes.float() - zero) * scale, x)
        assert torch.equal(codes, activations.by_tensor(x)[0])
    codes, scale = activations.by_token_eager(torch.zeros(2, 3))
    assert codes.eq(128).all() and scale.gt(0).all()


@pytest.mark.parametrize("kind", ["tensor", "token", "float out", "uint8", "int8"])
@pytest.mark.parametrize("shape", [(1, IN), (9, IN), (2, 5, IN), (IN,), (1, 1, IN)])
def test_a_linear_kernel_equals_its_reference(kind: str, shape: tuple[int, ...]) -> None:
    kernel, x = linear(kind), normal(*shape)
    assert kernel.verdict == "integer" and kernel.reason == ""
    assert_close(kernel(x), kernel.reference(x))


@pytest.mark.parametrize("kind", ["tensor", "token", "float out", "uint8", "int8"])
@pytest.mark.parametrize("rows", [1, 9])
def test_wide_weights_are_exact_or_refused(kind: str, rows: int) -> None:
    """Where pairs of products are added in 16 bits, 8-bit codes are computed from their definition, and it is said."""
    kernel, x = linear(kind, 127), normal(rows, IN)
    assert kernel.verdict == ("fallback" if OVERFLOWS else "integer")
    assert ("larger than 64" in kernel.reason) is OVERFLOWS
    assert_close(kernel(x), kernel.reference(x))
    picture = integers(0, 255, 2, 16, 6, 6, dtype=torch.uint8)
    wide = conv(largest=127)
    assert wide.verdict == kernel.verdict
    assert_close(wide(picture), wide.reference(picture))


def test_a_weight_that_becomes_wide_is_noticed() -> None:
    kernel, wide, x = linear("float out"), linear("float out", 127), normal(9, IN)
    kernel(x)
    kernel.load_state_dict(wide.state_dict())
    assert torch.equal(kernel(x), wide(x))
    with torch.no_grad():
        kernel.weight.fill_(127)
        kernel.weight_sum.fill_(127 * IN)
    assert_close(kernel(x), kernel.reference(x))


@pytest.mark.parametrize("rows", [1, 6])
def test_sums_are_exact_where_16_bits_and_float32_are_not_enough(rows: int) -> None:
    weight = torch.full((8, 4096), 127, dtype=torch.int8)
    weight[::2] = -128
    kernel = StaticInt8Linear(weight, torch.ones(1), input_scale=1.0, input_zero=1)
    x = torch.full((rows, 4096), 255, dtype=torch.uint8)
    assert torch.equal(kernel(x).double(), ((x.double() - 1) @ weight.double().t()).float().double())
    few = StaticInt8Linear(weight, torch.ones(1), input_scale=1.0, input_zero=255)
    assert not few(x).any()


def test_one_row_where_torch_takes_no_unsigned_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = linear("tensor"), normal(1, IN)
    y, product = kernel(x), torch._int_mm

    def signed_only(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype != torch.int8:
            raise RuntimeError("Expected self dtype to be of type int8")
        return product(a, b)

    monkeypatch.setattr(torch, "_int_mm", signed_only)
    int8_linear.unsigned_products.cache_clear()
    assert torch.equal(kernel(x), y)
    int8_linear.unsigned_products.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_go_in_and_out(dtype: torch.dtype) -> None:
    kernel, x = linear("tensor"), normal(4, IN).to(dtype)
    assert kernel(x).dtype == dtype
    assert torch.equal(kernel(x), kernel(x.float()).to(dtype))
    cast = copy.deepcopy(kernel).to(dtype)
    assert cast.weight_scale.dtype == cast.bias.dtype == torch.float32
    assert torch.equal(cast(x), kernel(x))


@pytest.mark.parametrize("rows", [1, 5])
def test_codes_that_are_given_are_taken(rows: int) -> None:
    kernel = linear("int8")
    x = integers(-128, 127, rows, IN)
    floats = (x.float() + 9) * 0.02
    assert torch.equal(kernel(x), kernel(floats))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_a_convolution_equals_its_reference(dims: int, groups: int, dtype: torch.dtype) -> None:
    x = integers(0, 255, 2, 16, *[6] * dims, dtype=dtype)
    codes = {"input_dtype": dtype, "input_zero": 100 if dtype == torch.uint8 else -4, "groups": groups}
    floats = {"output_scale": None, "output_zero": None, "output_dtype": None}
    for kernel in (conv(dims, **codes), conv(dims, relu=False, **codes), conv(dims, **codes, **floats)):
        assert_close(kernel(x), kernel.reference(x))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2,), "padding": (0,)},
        {"stride": (2, 1), "padding": (0, 2)},
        {"padding": (1, 0, 2, 3)},
        {"padding": (2,), "dilation": (2,)},
        {"padding": (1, 1, 1, 1), "input_zero": 0},
    ],
)
def test_geometry(options: dict[str, object]) -> None:
    x, kernel = integers(0, 255, 2, 16, 9, 8, dtype=torch.uint8), conv(**options)
    y = kernel(x)
    assert_close(y, kernel.reference(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernel(x.contiguous(memory_format=torch.channels_last)), y)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_weight_only_in_every_type(bits: int, shifted: bool, rows: int) -> None:
    largest = 2 ** (bits - 1) - 1
    scale = uniform(32, 2 if bits == 4 else 1)
    zero = integers(-3, 3, *scale.shape) if shifted else None
    x = normal(rows, 64)
    # Activations, weights and results rounded to bfloat16 (2^-9), or float16 (2^-12): three roundings.
    for dtype, compute, limit in (
        (torch.float32, None, 1e-6),
        (torch.float32, torch.bfloat16, 3 * 2**-8),
        (torch.bfloat16, None, 3 * 2**-8),
        (torch.float16, None, 3 * 2**-11),
        (torch.float64, None, 1e-6),
    ):
        kernel = WeightOnlyLinear(
            integers(-largest - 1, largest, 32, 64), scale, normal(32), zero, bits=bits, compute=compute
        )
        y, expected = kernel(x.to(dtype)), kernel.reference(x.double())
        assert y.dtype == dtype and kernel.verdict == "weight-only"
        assert (y - expected).abs().max() <= limit * expected.abs().max()


def test_weight_only_with_one_scale_and_uneven_sizes() -> None:
    kernel = WeightOnlyLinear(integers(-128, 127, 5, 7), torch.tensor(0.1), compute=torch.bfloat16)
    assert "depth of 7" in kernel.reason
    x = normal(2, 7)
    assert (kernel(x) - kernel.reference(x)).abs().max() < 3 * 2**-8 * kernel.reference(x).abs().max()


def test_refusals_say_the_rule() -> None:
    codes, scale = integers(-7, 7, 16, 64), uniform(16)
    assert int8_linear.available(codes, scale) is None and int8_conv.available(codes[..., None], scale) is None
    assert "uint8" in str(int8_linear.available(codes.to(torch.uint8), scale))
    assert "zero point" in str(int8_linear.available(codes, scale, torch.ones(16)))
    assert "one weight scale" in str(int8_linear.available(codes, uniform(3)))
    assert "axes" in str(int8_linear.available(codes[None], scale))
    assert "on meta" in str(int8_linear.available(codes, scale, device="meta"))
    assert "on cuda" in str(int8_conv.available(codes[..., None], scale, device="cuda"))
    assert "float32" in str(weight_only.available(codes, scale, dtype=torch.float32))
    assert "groups of 16" in str(weight_only.available(codes, uniform(16, 4), bits=4))
    assert "15 channels" in str(weight_only.available(codes[:15], uniform(15, 2), bits=4))
    assert "each group" in str(weight_only.available(codes, uniform(16, 2)))
    assert "float8" in str(float8_linear.available(codes, scale[0]))
    for bad in (codes.to(torch.uint8), codes.float()):
        with pytest.raises(Unsupported, match="int8"):
            DynamicInt8Linear(bad, scale)
    with pytest.raises(Unsupported, match="zero point"):
        StaticInt8Conv(codes[..., None], scale, zero_point=torch.ones(16), input_scale=1.0, input_zero=0)
    with pytest.raises(Unsupported, match="scales of shape"):
        WeightOnlyLinear(codes, uniform(16, 3))


def samples() -> dict[str, tuple[base.Kernel, torch.Tensor]]:
    rows = {k: (linear(k), normal(6, IN)) for k in ("tensor", "token", "float out", "uint8")}
    four = WeightOnlyLinear(integers(-8, 7, 32, 64), uniform(32, 2), normal(32), integers(-3, 3, 32, 2), bits=4)
    return rows | {
        "conv": (conv(padding=(0, 1, 1, 1)), normal(2, 16, 5, 5)),
        "four": (four, normal(3, 64).bfloat16()),
        "restored": (copy.deepcopy(four), normal(3, 64)),
    }


@pytest.mark.parametrize("name", samples())
def test_a_module_survives_what_modules_go_through(name: str) -> None:
    kernel, x = samples()[name]
    y = kernel(x)
    file = io.BytesIO()
    torch.save(copy.deepcopy(kernel).state_dict(), file)
    file.seek(0)
    state = torch.load(file)
    assert {k: v.dtype for k, v in state.items()}["weight"] == torch.int8
    assert not any(v.is_mkldnn for v in state.values())
    changed = copy.deepcopy(kernel)
    for buffer in changed.buffers():
        buffer.copy_(buffer * 0 + 1) if buffer.dim() else buffer
    assert not torch.equal(changed(x), y)
    changed.load_state_dict(state)
    assert torch.equal(changed(x), y)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(kernel)(x), y)
    meta = copy.deepcopy(kernel).to("meta")(x.to("meta"))
    assert meta.shape == y.shape and meta.dtype == y.dtype


@pytest.mark.parametrize("name", samples())
def test_a_module_is_exported_as_plain_torch(name: str) -> None:
    kernel, x = samples()[name]
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(kernel, (x,), dynamic_shapes=({0: rows},))
    called = {getattr(n.target, "namespace", "aten") for n in program.graph.nodes if n.op == "call_function"}
    assert called == {"aten"}
    y = program.module()(x)
    limit = 3 * 2**-8 if y.dtype == torch.bfloat16 else CLOSE
    assert (y.double() - kernel(x).double()).abs().max() <= max(
        limit * y.double().abs().max(), not y.is_floating_point()
    )


@pytest.mark.parametrize("name", ["tensor", "token", "uint8", "conv", "four", "restored"])
def test_a_module_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    kernel, x = samples()[name]
    y = torch.compile(kernel, fullgraph=True, backend="aot_eager")(x)
    assert_close(y, kernel(x))


def test_products_of_odd_sizes_are_padded_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = integers(-128, 127, 3, 13), integers(-128, 127, 5, 13)
    seen = []
    product = torch._int_mm

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append((*a.shape, b.shape[1]))
        return product(a, b)

    monkeypatch.setattr(torch, "_int_mm", spy)
    y = base.padded_products(x, weight)
    assert torch.equal(y.double(), x.double() @ weight.double().t())
    assert seen == [(32, 16, 8)]


@pytest.mark.parametrize("depth", [96, 128])
def test_the_4_bit_form_for_cuda_has_the_right_shapes(depth: int) -> None:
    with FakeTensorMode():
        codes, x = torch.zeros(32, depth, dtype=torch.int8), torch.empty(3, depth, dtype=torch.bfloat16)
        layout = weight_only.pack4(codes, "cuda")
        pairs = weight_only.scales4(torch.ones(32, depth // 32), None, torch.bfloat16)
        assert torch.ops.aten._weight_int4pack_mm(x, layout, 32, pairs).shape == (3, 32)


def test_the_float8_form_for_cuda_has_the_right_shapes() -> None:
    x = torch.empty(3, 128, dtype=torch.bfloat16, device="meta")
    kernel = Float8Linear(torch.empty(32, 128).to(float8_linear.FLOAT8), torch.tensor(0.1)).to("meta")
    assert kernel.scaled(x).shape == (3, 32) and kernel.scaled(x).dtype == torch.bfloat16


def test_float8_reference_is_near_the_float_product() -> None:
    weight, x = normal(32, 64), normal(4, 64)
    scale = weight.abs().max() / 448
    kernel = Float8Linear((weight / scale).to(float8_linear.FLOAT8), scale, normal(32))
    y = kernel(x)
    exact = x @ weight.t() + normal(32)
    assert y.dtype == torch.float32 and "not on cpu" in str(kernel.refusal("cpu"))
    assert (y - exact).abs().max() < 2**-4 * (x.abs() @ weight.abs().t()).max()  # three bits of mantissa each
