"""Quantized products get torch's kernels, or a reason; the audit names what ran; codes equal ONNX Runtime's."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

import graphpress as gp
from graphpress.backends import fx
from graphpress.backends.fx import sites
from graphpress.backends.parity import parity
from graphpress.runner import Arrays
from graphpress.target import Target
from tests import kit
from tests.backends.given import codes, parse

TARGET = Target.load("torch-cpu", "x86-64+vnni")
RNG = np.random.default_rng(0)

LINEAR = """
g (float[N, 64] x, float s, float z, float w, float ws, float wz, float b, float so) => (float[N, 32] y) {
    [quantize] xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 1>(w, ws, wz)
    [fc] m = MatMul(xd, wd)
    a = Add(m, b)
    r = Relu(a)
    [requantize] yq = QuantizeLinear(r, so, z)
    y = DequantizeLinear(yq, so, z)
}
"""
CONV = """
g (float[N, 8, 9, 9] x, float s, float z, float w, float ws, float wz, float b, float so) => (float[N, 16, 5, 5] y) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws, wz)
    [conv] c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(xd, wd, b)
    yq = QuantizeLinear(c, so, z)
    y = DequantizeLinear(yq, so, z)
}
"""
DYNAMIC = """
g (float[N, 64] x, float w, float ws, float wz, float v, float vs) => (float[N, 32] y, float[N, 32] t) {
    xq, s, z = DynamicQuantizeLinear(x)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 1>(w, ws, wz)
    vd = DequantizeLinear<axis = 1>(v, vs, wz)
    [first] y = MatMul(xd, wd)
    [second] t = MatMul(xd, vd)
}
"""


def scales(n: int) -> np.ndarray:
    return RNG.uniform(0.001, 0.01, n).astype(np.float32)


def narrow(*shape: int) -> np.ndarray:
    """Codes that every processor multiplies exactly: x86 without VNNI adds pairs of products in 16 bits, and
    255 * (64 + 64) fits."""
    return RNG.integers(-64, 65, shape).astype(np.int8)


def linear(zero: int = 117, **changed: np.ndarray) -> ir.Model:
    given = {
        "s": np.float32(0.04), "z": np.uint8(zero), "w": narrow(64, 32), "ws": scales(32),
        "wz": np.zeros(32, np.int8), "b": RNG.normal(size=32).astype(np.float32), "so": np.float32(0.05),
    }  # fmt: skip
    return parse(LINEAR, **{k: np.asarray(v) for k, v in (given | changed).items()})


def conv(**changed: np.ndarray) -> ir.Model:
    given = {
        "s": np.float32(0.04), "z": np.uint8(128), "w": narrow(16, 8, 3, 3), "ws": scales(16),
        "wz": np.zeros(16, np.int8), "b": RNG.normal(size=16).astype(np.float32), "so": np.float32(0.05),
    }  # fmt: skip
    return parse(CONV, **{k: np.asarray(v) for k, v in (given | changed).items()})


def dynamic() -> ir.Model:
    return parse(DYNAMIC, w=narrow(64, 32), ws=scales(32), wz=np.zeros(32, np.int8), v=narrow(64, 32), vs=scales(32))


def modules(model: ir.Model) -> dict[str, str]:
    """Kernels by the name of the fx call."""
    module = fx.build(model, target=TARGET)
    calls = [n for n in module.graph.nodes if n.op == "call_module"]
    return {n.name: type(module.get_submodule(n.target)).__name__ for n in calls}


def functions(model: ir.Model) -> list[str]:
    module = fx.build(model, target=TARGET)
    return [n.target.__name__ for n in module.graph.nodes if n.op == "call_function"]


def test_a_static_product_with_all_around_it_is_one_call() -> None:
    assert modules(linear()) == {"fc": "StaticInt8Linear"}
    assert functions(linear()) == ["quantize_linear", "dequantize_linear"]
    assert modules(conv()) == {"conv": "StaticInt8Conv"}
    assert functions(conv()) == ["quantize_linear", "dequantize_linear"]


def test_products_of_one_dynamic_activation_quantize_it_once() -> None:
    assert modules(dynamic()) == {"first": "DynamicInt8Linear", "second": "DynamicInt8Linear"}
    assert functions(dynamic()) == ["quantize_tensor"]


def test_what_others_read_is_still_computed() -> None:
    model = linear()
    reader = next(n for n in model.graph if n.name == "fc")
    model.graph.outputs.append(reader.inputs[0])  # the dequantized activation
    model.graph.outputs.append(reader.outputs[0])  # the product before the bias
    module = fx.build(model, target=TARGET)
    x = RNG.normal(size=(3, 64)).astype(np.float32)
    for given, expected in zip(module(torch.from_numpy(x)), kit.run(model, {"x": x}).values(), strict=True):
        np.testing.assert_allclose(given.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [linear, conv, dynamic])
def test_codes_and_floats_equal_those_of_onnx_runtime(make: object) -> None:
    model = make()  # type: ignore[operator]
    shape = (5, 64) if make is not conv else (5, 8, 9, 9)
    found = parity(model, TARGET, {"x": RNG.normal(size=shape).astype(np.float32)})
    assert any(r.kernel for r in found.rows)
    assert found.worst_step <= 1
    assert sum(r.differing for r in found.codes) <= 0.001 * sum(r.elements for r in found.codes)
    assert all(r.worst < 1e-6 for r in found.rows if r.dtype == "FLOAT")


@pytest.mark.parametrize("make", [linear, conv])
def test_codes_of_eight_bits_are_exact_wherever_they_are_computed(make: object) -> None:
    """By an integer kernel, or without one from the definition: then the audit says which rule stops it."""
    shape = (64, 32) if make is linear else (16, 8, 3, 3)
    model = make(w=codes(RNG, "int8", shape))  # type: ignore[operator]
    feeds = {"x": RNG.normal(size=(5, 64) if make is linear else (5, 8, 9, 9)).astype(np.float32)}
    assert parity(model, TARGET, feeds).worst_step <= 1
    (row,) = (r for r in gp.audit(model, TARGET, feeds).sites if r.node in ("fc", "conv"))
    assert (row.verdict == "integer") == ("overflow" not in row.reason)


def test_integers_are_exact_where_scales_are_powers_of_two() -> None:
    """Nothing is rounded then but codes. oneDNN adds the zero point first: an odd one turns halves the other way."""
    powers = {"ws": np.full(32, 2.0**-9, np.float32), "s": np.float32(2.0**-5), "so": np.float32(2.0**-4)}
    x = {"x": RNG.normal(size=(64, 64)).astype(np.float32)}
    even, odd = (parity(linear(zero, b=np.zeros(32, np.float32), **powers), TARGET, x) for zero in (118, 117))
    assert sum(r.differing for r in even.rows) == 0
    assert odd.worst_step <= 1


def test_four_bit_weights_run_on_the_eight_bit_kernel() -> None:
    model = linear(w=codes(RNG, "int4", (64, 32)), wz=codes(RNG, "int4", (32,)) * 0)
    assert modules(model) == {"fc": "StaticInt8Linear"}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (linear(wz=np.ones(32, np.int8)), "zero point"),
        (linear(ws=np.full(1, 0.01, np.float32).reshape(()), wz=np.int8(0)), None),
        (conv(w=codes(RNG, "int8", (16, 8, 3, 3)), ws=scales(8), wz=np.zeros(8, np.int8)), "another axis"),
    ],
)
def test_what_no_kernel_takes_is_simulated_and_said(model: ir.Model, why: str | None) -> None:
    if why == "another axis":
        next(n for n in model.graph if n.op_type == "DequantizeLinear" and n.outputs[0].name == "wd").attributes.add(
            ir.AttrInt64("axis", 1)
        )
    shape = (2, 64) if model.graph.inputs[0].shape.rank() == 2 else (2, 8, 9, 9)  # type: ignore[union-attr]
    feeds = {"x": RNG.normal(size=shape).astype(np.float32)}
    if why is None:
        assert modules(model)
        return
    assert not modules(model)
    rows = {r.node: r for r in gp.audit(model, TARGET, feeds).sites}
    row = next(iter(r for n, r in rows.items() if n in ("fc", "conv")))
    assert row.verdict == "fallback"
    assert why in row.reason
    np.testing.assert_allclose(fx.execute(model)(feeds)["y"], kit.run(model, feeds)["y"], rtol=0, atol=0.05 * 1.01)


def test_float8_is_simulated_where_nothing_multiplies_it() -> None:
    """Equal to the reference but for the order of float32 sums; the audit says what is missing."""
    float8 = ml_dtypes.float8_e4m3fn
    model = parse(
        "g (float[N, 64] x, float s, float z, float w, float ws) => (float[N, 32] y) { xq = QuantizeLinear(x, s, z) "
        "xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = 1>(w, ws) [fc] y = MatMul(xd, wd) }",
        s=np.asarray(np.float32(0.01)), z=np.zeros((), float8), w=RNG.normal(size=(64, 32)).astype(float8),
        ws=scales(32),
    )  # fmt: skip
    feeds: Arrays = {"x": RNG.normal(size=(8, 64)).astype(np.float32)}
    np.testing.assert_allclose(fx.execute(model)(feeds)["y"], kit.run(model, feeds)["y"], rtol=1e-5, atol=1e-6)
    row = next(r for r in gp.audit(model, TARGET, feeds).sites if r.node == "fc")
    assert (row.verdict, row.reason[:44]) == ("fallback", "torch multiplies float8 on CUDA, not on cpu:")


def test_the_audit_names_what_torch_dispatched() -> None:
    feeds: Arrays = {"x": RNG.normal(size=(8, 64)).astype(np.float32)}
    found = gp.audit(linear(), TARGET, feeds)
    row = next(r for r in found.sites if r.node == "fc")
    assert (row.verdict, row.kernel, row.macs) == ("integer", "onednn::qlinear_pointwise", 8 * 64 * 32)
    assert found.integer_mac_share == 1.0
    assert {c.op for c in found.conversions} == {"QuantizeLinear", "DequantizeLinear"}
    json.dumps(found.to_json())


def test_a_weight_only_product_says_how_it_computes() -> None:
    model = parse(
        "g (float[N, 64] x, float w, float ws) => (float[N, 32] y) "
        "{ wd = DequantizeLinear<axis = 0, block_size = 32>(w, ws) [fc] y = MatMul(x, wd) }",
        w=codes(RNG, "int4", (64, 32)), ws=RNG.uniform(0.01, 0.1, (2, 32)).astype(np.float32),
    )  # fmt: skip
    feeds: Arrays = {"x": RNG.normal(size=(3, 64)).astype(np.float32)}
    assert modules(model) == {"fc": "WeightOnlyLinear"}
    row = next(r for r in gp.audit(model, TARGET, feeds).sites if r.node == "fc")
    assert row.verdict == "weight-only"
    assert row.reason
    given = fx.execute(fx.lower(model, TARGET))(feeds)["y"]
    np.testing.assert_allclose(given, kit.run(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_portable_graph_stays_portable() -> None:
    model = fx.lower(linear(), TARGET)
    x = {"x": RNG.normal(size=(3, 64)).astype(np.float32)}
    np.testing.assert_allclose(gp.lower(model)(x)["y"], fx.execute(model)(x)["y"], rtol=0, atol=0.05 * 1.01)


def test_the_lowered_module_compiles_and_exports() -> None:
    module = gp.lower(linear(), TARGET)
    x = torch.from_numpy(RNG.normal(size=(6, 64)).astype(np.float32))
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
        assert torch.allclose(torch.export.export(module, (x,)).module()(x), expected, rtol=0, atol=0.05 * 1.01)


def test_a_site_is_only_what_one_reader_sees() -> None:
    model = linear()
    site = sites.product_site(next(n for n in model.graph if n.name == "fc"))
    assert site is not None
    assert (site.mode, site.relu, site.tail.name) == ("static", True, "requantize")
    assert {n.op_type for n in site.covered} == {"MatMul", "Add", "Relu", "QuantizeLinear"}
