"""Quantizers that pass gradients on: the codes of the exact ones, the gradients of LSQ and LSQ+."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphpress.backends import fx
from graphpress.backends.fx import dtypes
from graphpress.backends.fx.ops import quantization
from graphpress.ops import dynamic_quantize_token
from tests import kit
from tests.backends.fx.single import model, normal

NAMES = ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2")
FLOATS = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1")


def types(name: str) -> dict[str, Any]:
    return {"in_types": ("FLOAT", "FLOAT", name)}


def round_trip(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, name: str, **options: Any) -> torch.Tensor:
    codes = quantization.quantize_straight(x, scale, zero, **types(name), **options)
    return quantization.dequantize_linear(codes, scale, zero, in_types=(name, "FLOAT", name), **options)


def zero_of(name: str, value: int) -> torch.Tensor:
    return torch.tensor(value).to(dtypes.torch_dtype(name))


# -- codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*NAMES, *FLOATS])
def test_codes_are_those_of_the_exact_form(name: str, dtype: torch.dtype) -> None:
    halves = torch.arange(-600, 600) / 2
    for scale, opset in itertools.product((1.0, 0.013, 37.0), (21, 23)):
        x = torch.cat([halves * scale, torch.randn(2000) * scale * 50, torch.tensor([1e30, -1e30, 0.0])]).to(dtype)
        inputs = x, torch.tensor(scale, dtype=dtype), zero_of(name, 0 if name in FLOATS else 1)
        exact = quantization.quantize_linear(*inputs, **types(name), opset=opset)
        given = quantization.quantize_straight(*inputs, **types(name), opset=opset)
        assert given.dtype == torch.float32
        assert torch.equal(given, exact.float())
        options: Any = {"in_types": (name, "FLOAT", name)}
        back = quantization.dequantize_linear(exact, *inputs[1:], **options)
        assert torch.equal(quantization.dequantize_linear(given, *inputs[1:], **options), back)


@pytest.mark.parametrize(
    "options", [{"axis": 0}, {"axis": 1}, {"axis": 1, "block_size": 4}, {"axis": 0, "block_size": 2}]
)
def test_codes_with_many_scales(options: dict[str, int]) -> None:
    torch.manual_seed(0)  # a group whose codes are all 0 has no gradient
    x = torch.randn(3, 7)
    shapes: Any = {(0, 0): (3,), (1, 0): (7,), (1, 4): (3, 2), (0, 2): (2, 7)}
    shape = shapes[options["axis"], options.get("block_size", 0)]
    scale, zero = torch.rand(shape) * 0.02 + 0.005, torch.randint(-20, 20, shape, dtype=torch.int8)
    exact = quantization.quantize_linear(x, scale, zero, **types("INT8"), **options)
    given = quantization.quantize_straight(x, scale, zero, **types("INT8"), **options)
    assert torch.equal(given, exact.float())
    x.requires_grad_()
    scale.requires_grad_()
    learned = zero.float().requires_grad_()
    round_trip(x, scale, learned, "INT8", **options).square().sum().backward()
    assert scale.grad is not None
    assert scale.grad.shape == scale.shape
    assert (scale.grad != 0).all()


def test_dynamic_codes() -> None:
    for x in (torch.randn(50, 20), torch.rand(30) + 3, -torch.rand(30) - 3, torch.zeros(5)):
        exact, given = quantization.dynamic_quantize_linear(x), quantization.dynamic_quantize_straight(x)
        assert given[0].dtype == torch.float32
        for a, b in zip(exact, given, strict=True):
            assert torch.equal(a.float(), b.float())
        rows = dynamic_quantize_token.OP.kernel()(x), quantization.dynamic_quantize_token_straight(x)
        for a, b in zip(*rows, strict=True):
            assert torch.equal(a.float(), b)


# -- gradients ---------------------------------------------------------------------------------------------------------


def inputs_of(name: str, zero: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """About a third of the numbers is out of range."""
    low, high = dtypes.integer_range(name)
    rng = torch.Generator().manual_seed(seed)
    x = (
        torch.rand(200, dtype=torch.float64, generator=rng) * 1.5 * (high - low)
        + 1.25 * low
        - 0.25 * high
        - round(zero)
    )
    scale = torch.tensor(0.37, dtype=torch.float64)
    return (
        (x * scale).requires_grad_(),
        scale.requires_grad_(),
        torch.tensor(zero, dtype=torch.float64).requires_grad_(),
    )


@pytest.mark.parametrize(
    ("name", "zero"), [("INT8", 0.0), ("UINT8", 100.3), ("INT4", -2.4), ("UINT2", 1.0), ("INT16", 7.7)]
)
def test_gradients_are_those_of_lsq_and_lsq_plus(name: str, zero: float) -> None:
    x, scale, zero_point = inputs_of(name, zero)
    y = round_trip(x, scale, zero_point, name)
    low, high = (bound - round(zero) for bound in dtypes.integer_range(name))
    v = (x / scale).detach()
    below, above = v <= low, v >= high
    assert below.any()
    assert above.any()
    # LSQ, equation 3: of each element by the scale
    by_scale = torch.where(below, low, torch.where(above, high, v.round() - v))
    # LSQ+, section 3.2, by the offset beta = -scale * zero point: 0 inside, 1 outside
    by_zero = torch.where(below | above, -scale.detach(), 0.0)
    for i in range(0, len(x), 7):
        gx, gs, gz = torch.autograd.grad(y[i], (x, scale, zero_point), retain_graph=True)
        assert gx[i] == (0.0 if below[i] or above[i] else pytest.approx(1.0, rel=1e-15))
        assert gx.count_nonzero() <= 1
        assert float(gs) == pytest.approx(float(by_scale[i]), rel=1e-11, abs=1e-11)
        assert float(gz) == pytest.approx(float(by_zero[i]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["INT8", "UINT8", "INT4"])
def test_gradients_are_those_of_differences_while_rounding_stands_still(name: str) -> None:
    """The surrogate: what rounding and clamping did to each element is kept while the inputs move a little."""
    inputs = inputs_of(name, 3.4)
    x, scale, zero = (t.detach() for t in inputs)
    low, high = dtypes.integer_range(name)
    moved = x / scale + zero.round()
    inside = (moved > low) & (moved < high)
    codes = ((x / scale).round() + zero.round()).clamp(low, high)
    residual, zero_residual = codes - moved, zero.round() - zero

    def surrogate(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        z = zero + zero_residual
        return (torch.where(inside, x / scale + z + residual, codes) - z) * scale

    weight = torch.linspace(0.5, 2.0, len(x), dtype=torch.float64)
    torch.testing.assert_close(surrogate(x, scale, zero), round_trip(x, scale, zero, name), rtol=1e-13, atol=1e-12)
    (round_trip(*inputs, name) * weight).sum().backward()
    assert torch.autograd.gradcheck(surrogate, inputs, eps=1e-6, atol=1e-5)
    for t in range(3):
        step = [torch.zeros_like(p) for p in (x, scale, zero)]
        step[t] = torch.full_like(step[t], 1e-6)
        ahead = surrogate(*(p + d for p, d in zip((x, scale, zero), step, strict=True)))
        behind = surrogate(*(p - d for p, d in zip((x, scale, zero), step, strict=True)))
        difference = ((ahead - behind) * weight).sum() / 2e-6
        gradient = inputs[t].grad
        assert gradient is not None
        assert float(gradient.sum()) == pytest.approx(float(difference), rel=1e-6, abs=1e-5)


def test_what_lies_on_a_limit_is_outside() -> None:
    """Of the largest number, by which a scale is often chosen, LSQ's gradient is the limit, not a rounding error."""
    x = torch.tensor([127.0, -128.0, 126.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = round_trip(x, scale, torch.tensor(0, dtype=torch.int8), "INT8")
    assert [float(torch.autograd.grad(v, scale, retain_graph=True)[0]) for v in y] == [127.0, -128.0, 0.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.0, 0.0, 1.0]


def test_a_learned_zero_point_stays_in_its_range() -> None:
    zero = torch.tensor(300.0, requires_grad=True)
    codes = quantization.quantize_straight(torch.tensor([0.0]), torch.tensor(1.0), zero, **types("UINT8"))
    assert codes.tolist() == [255.0]
    assert torch.equal(
        codes,
        quantization.quantize_straight(torch.tensor([0.0]), torch.tensor(1.0), zero_of("UINT8", 255), **types("UINT8")),
    )


@pytest.mark.parametrize("name", FLOATS)
def test_small_floats_pass_gradients_inside_their_range(name: str) -> None:
    x = torch.tensor([0.3, -1.7, 3.3, 1e9, -1e9], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    y = round_trip(x, scale, zero_of(name, 0), name)
    (gx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    np.testing.assert_allclose(gx.numpy(), [1, 1, 1, 0, 0], rtol=1e-15)
    code, v = (y / scale).detach(), (x / scale).detach()
    for i in range(5):
        expected = code[i] - v[i] if i < 3 else code[i]
        given = torch.autograd.grad(y[i], scale, retain_graph=True)[0]
        assert float(given) == pytest.approx(float(expected), rel=1e-12)


def test_dynamic_quantizers_pass_all_gradients_and_hold_the_range_still() -> None:
    x = torch.randn(6, 8, requires_grad=True)
    codes, scale, zero = quantization.dynamic_quantize_straight(x)
    y = quantization.dequantize_linear(codes, scale, zero, in_types=("UINT8", "FLOAT", "UINT8"))
    np.testing.assert_allclose(torch.autograd.grad(y.sum(), x)[0], 1.0, rtol=1e-6)
    rows, scales = quantization.dynamic_quantize_token_straight(x)
    np.testing.assert_allclose(torch.autograd.grad((rows * scales).sum(), x)[0], 1.0, rtol=1e-6)


def test_products_of_codes_pass_gradients_on() -> None:
    a = torch.tensor([[3.0, 5.0]], requires_grad=True)
    b = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
    y = quantization.matmul_integer(a, b, torch.tensor(1, dtype=torch.uint8))
    assert y.tolist() == [[14.0, 20.0]]
    assert torch.autograd.grad(y.sum(), a)[0].tolist() == [[3.0, 7.0]]
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.uint8)
    z = quantization.qlinear_matmul(
        a,
        one,
        zero,
        b,
        torch.tensor(0.3),
        torch.tensor(0, dtype=torch.int8),
        one,
        zero,
        in_types=(None,) * 7 + ("UINT8",),
    )
    assert z.tolist() == [[5.0, 8.0]]
    np.testing.assert_allclose(torch.autograd.grad(z.sum(), a)[0], [[0.9, 2.1]], rtol=1e-6)


# -- whole models ------------------------------------------------------------------------------------------------------

NETWORK = """
g (float[N, 6] x) => (float[N, 4] y, uint8[N, 6] codes)
<float[6, 4] w, float xs = {0.04}, uint8 xz = {110}, float[4] ws = {0.02, 0.03, 0.015, 0.01}, int8[4] wz = {0, 0, 0, 0},
 float[4] bias = {0.1, 0.2, 0.3, 0.4}> {
    codes = QuantizeLinear(x, xs, xz)
    a = DequantizeLinear(codes, xs, xz)
    wq = QuantizeLinear<axis = 1>(w, ws, wz)
    wd = DequantizeLinear<axis = 1>(wq, ws, wz)
    b = MatMul(a, wd)
    y = Add(b, bias)
}
"""


def network() -> ir.Model:
    source = NETWORK.replace("float[6, 4] w", "float[6, 4] w = {" + ", ".join(["1"] * 24) + "}")
    built = kit.parse(source)
    built.graph.initializers["w"].const_value = ir.tensor(normal(6, 4), name="w")
    return built


@pytest.mark.parametrize("quantizers", ["straight-through", "learnable", "scales"])
def test_a_model_gives_what_it_gives_exactly(quantizers: str) -> None:
    x = torch.from_numpy(normal(50, 6) * 3)
    exact, codes = fx.build(network())(x)
    expected = kit.run(network(), {"x": x.numpy()})
    np.testing.assert_array_equal(codes.numpy(), expected["codes"])
    trained = fx.build(network(), quantizers=quantizers)
    y, floats = trained(x)
    assert torch.equal(floats, codes.float())
    assert torch.equal(y, exact)


def test_scales_and_zero_points_are_buffers_or_parameters() -> None:
    kept = fx.build(network(), quantizers="straight-through")
    assert sorted(dict(kept.named_parameters())) == ["bias", "w"]
    assert sorted(dict(kept.named_buffers())) == ["ws", "wz", "xs", "xz"]
    learned = fx.build(network(), quantizers="scales")
    assert sorted(dict(learned.named_parameters())) == ["bias", "w", "ws", "wz", "xs", "xz"]
    assert learned.get_parameter("xz").dtype == torch.float32
    relative = fx.build(network(), quantizers="learnable")
    assert sorted(dict(relative.named_parameters())) == ["bias", "w", "ws_log", "xs_log", "xz"]
    assert sorted(dict(relative.named_buffers())) == ["ws", "wz", "xs"]


@pytest.mark.parametrize(
    ("zero", "moves"), [(0, False), (1, True), (127, True), (128, False), (254, True), (255, False)]
)
def test_a_zero_point_at_an_end_or_in_the_middle_does_not_learn(zero: int, moves: bool) -> None:
    graph = network()
    graph.graph.initializers["xz"].const_value = ir.tensor(np.array(zero, np.uint8), name="xz")
    learned = dict(fx.build(graph, quantizers="learnable").named_parameters())
    assert ("xz" in learned) == moves


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_step_of_a_learned_scale_is_relative(size: float) -> None:
    graph = network()
    for name in ("xs", "ws"):
        value = graph.graph.initializers[name]
        value.const_value = ir.tensor(np.full(value.shape.numpy(), size, np.float32), name=name)  # type: ignore[union-attr]
    graph.graph.initializers["w"].const_value = ir.tensor(normal(6, 4) * np.float32(50 * size), name="w")
    built = fx.build(graph, quantizers="learnable")
    optimiser = torch.optim.Adam(built.parameters(), lr=1e-3)
    x = torch.from_numpy(normal(50, 6) * 20 * size)
    (built(x)[0] / size**2).square().mean().backward()
    optimiser.step()
    for name in ("xs", "ws"):
        step = built.get_parameter(f"{name}_log").detach()
        torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-3), rtol=1e-3, atol=0)
        graph.graph.initializers[name].const_value = ir.tensor((built.get_buffer(name) * step.exp()).numpy(), name=name)
    moved = fx.build(graph, quantizers="straight-through")
    moved.load_state_dict({n: p for n, p in built.state_dict().items() if n in ("w", "bias")}, strict=False)
    rounded = built.get_parameter("xz").detach().round()
    with torch.no_grad():
        moved.get_buffer("xz").copy_(rounded)
        torch.testing.assert_close(moved(x)[0], built(x)[0], rtol=1e-6, atol=0)


def test_small_float_zero_points_are_not_learned() -> None:
    inputs = normal(4), np.array(0.1, np.float32), np.zeros((), ir.DataType.FLOAT8E4M3FN.numpy())
    built = fx.build(model("QuantizeLinear", *inputs, constants=[1, 2]), quantizers="scales")
    assert [name for name, _ in built.named_parameters()] == ["x1"]


@pytest.mark.parametrize("quantizers", ["straight-through", "scales"])
def test_a_step_changes_what_is_trained_and_not_the_graph(quantizers: str) -> None:
    graph = network()
    before = {
        n: np.array(v.const_value.numpy()) for n, v in graph.graph.initializers.items() if v.const_value is not None
    }
    built = fx.build(graph, quantizers=quantizers)
    start = copy.deepcopy(dict(built.named_parameters()))
    optimiser = torch.optim.SGD(built.parameters(), lr=1e-3)
    x = torch.from_numpy(normal(50, 6) * 5)
    built(x)[0].square().sum().backward()
    optimiser.step()
    changed = {n for n, p in built.named_parameters() if not torch.equal(p, start[n])}
    assert changed >= ({"w", "bias", "xs", "ws", "xz"} if quantizers == "scales" else {"w", "bias"})
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    built = fx.build(network(), quantizers="learnable")
    x = torch.randn(64, 6) * 3
    target = x @ torch.from_numpy(normal(6, 4)) + torch.tensor([0.1, 0.2, 0.3, 0.4])
    optimiser = torch.optim.Adam(built.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (built(x)[0] - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0]


def test_compiled_and_exported_gradients_are_the_eager_ones() -> None:
    x = torch.from_numpy(normal(10, 6) * 3)
    built = fx.build(network(), quantizers="learnable")
    given = []
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="aot_eager")
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(built, (x,), dynamic_shapes=({0: batch},)).module()
    for run in (built, compiled, exported):
        run.zero_grad()
        run(x)[0].square().sum().backward()
        given.append(
            {n.replace("_orig_mod.", ""): p.grad.clone() for n, p in run.named_parameters() if p.grad is not None}
        )
    assert set(given[0]) == {"bias", "w", "ws_log", "xs_log", "xz"}
    for other in given[1:]:
        assert set(other) == set(given[0])
        for name, gradient in given[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-5)
