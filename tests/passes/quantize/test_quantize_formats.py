"""Three-bit weights, four-bit activations by token, and formats that the target has no kernel for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import ort, reference
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.report import report
from graphpress.target import Target
from graphpress.types import PER_TOKEN, Role, Scheme, Site, per_channel, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal, plan, quantize, reasons

TEXT = "g (float[N, 5, 64] x, float[64, 24] w, float[24] b) => (float[N, 5, 24] y) { h = MatMul(x, w) y = Add(h, b) }"
W3 = Quantize(mode="weight", weight="int3", weight_observer="mse")
A4 = Quantize(
    mode="dynamic", weight="int4", weight_observer="mse", activation="int4", activation_granularity="per_token"
)
GRAINS = {
    "per_tensor": Scheme("int3"),
    "per_channel": Scheme("int3", per_channel(1)),
    "per_group": Scheme("int3", per_group(0, 16)),
}


def made() -> ir.Model:
    return model(TEXT, {"w": normal(64, 24), "b": normal(24, seed=1)})


# -- three bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grain", GRAINS)
def test_three_bit_weights_are_what_the_quantizer_says_though_q_saturates_at_four(grain: Any, symmetric: bool) -> None:
    scheme = replace(GRAINS[grain], symmetric=symmetric, observer="mse")
    params = AFFINE.fit(normal(64, 24), scheme)
    wanted = AFFINE.dequantize(AFFINE.quantize(normal(64, 24), params, scheme), params, scheme)
    options = replace(W3, weight_granularity=grain, group_size=16, weight_symmetric=symmetric)
    after, _ = quantize(made(), options, target="ort-cpu")
    x = {"x": normal(3, 5, 64, seed=2)}
    got, expected = kit.run(after, x)["y"], x["x"] @ wanted + normal(24, seed=1)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    folded, _ = kit.apply(after, FoldWeights(), ctx=context(None, None))
    (codes,) = [v.const_value.numpy().astype(int) for v in folded.graph.initializers.values() if v.shape == (64, 24)]
    assert codes.min() >= -4 and codes.max() <= 3 and len(np.unique(codes)) == 8
    kit.assert_same_outputs(after, folded, x)


def test_weights_inside_the_range_are_left_as_they_are() -> None:
    """So that what rounds them better later still knows them."""
    after, _ = quantize(made(), replace(W3, weight_observer="minmax"))
    w, before = after.graph.initializers["w"].const_value.numpy(), normal(64, 24)
    assert (w != before).sum() <= 2 * 24  # at most both ends of each channel, by a small part of a step
    np.testing.assert_allclose(w, before, atol=0.02 * np.abs(before).max())


def test_three_bits_are_stored_in_four_and_the_report_says_both() -> None:
    after, _ = kit.apply(made(), W3, FoldWeights(), ctx=context(None, "ort-cpu"))
    assert "int3" in edit.find(after, "MatMul_0").metadata_props["graphpress.scheme"]
    assert report.stored_bytes(after) == 64 * 24 // 2 + 24 * 4 + 12 + 24 * 4  # codes, scales, zero points, bias
    lowered = ort.lower(after, Target.load("ort-cpu", "x86-64+vnni"))
    assert "MatMulNBits" in kit.ops(lowered)  # as int4, which the kernel knows


def test_three_bits_are_for_weights() -> None:
    with pytest.raises(BadRequest, match="for weights"):
        quantize(made(), Quantize(sites={"MatMul_0[0] activation": "int3"}), {"x": normal(8, 5, 64)})


# -- four bits by token ------------------------------------------------------------------------------------------------


def wanted_by_token(x: np.ndarray, bits: int, weight: np.ndarray) -> np.ndarray:
    span = np.float32(127 if bits == 8 else 2 ** (bits - 1) - 0.5)
    scale = np.abs(x).max(-1, keepdims=True) / span
    codes = np.minimum(np.rint(x / scale), 2 ** (bits - 1) - 1)
    return (codes * scale) @ weight + normal(24, seed=1)


@pytest.mark.parametrize("activation", ["int4", "int8"])
@pytest.mark.parametrize("grain", ["per_channel", "per_group"])
def test_by_token_in_every_backend(activation: Any, grain: Any) -> None:
    pytest.importorskip("torch")
    options = replace(A4, activation=activation, weight_granularity=grain, group_size=16, kernels="preferred")
    after, _ = kit.apply(made(), options, FoldWeights(), ctx=context(None, "ort-cpu"))
    scheme = Scheme("int4", per_group(0, 16) if grain == "per_group" else per_channel(1), observer="mse")
    params = AFFINE.fit(normal(64, 24), scheme)
    weight = AFFINE.dequantize(AFFINE.quantize(normal(64, 24), params, scheme), params, scheme)
    x = normal(3, 5, 64, seed=2)
    expected = wanted_by_token(x, 4 if activation == "int4" else 8, weight)
    results = {"portable": reference.execute(after)({"x": x})["y"], "torch": gp.to_torch(after)(gp_tensor(x))}
    if (activation, grain) != ("int8", "per_group"):  # that one rounds activations by block, in the kernel
        results["onnx runtime"] = ort.execute(ort.lower(after, Target.load("ort-cpu")))({"x": x})["y"]
    results["torch-cpu"] = gp.lower(after, "torch-cpu")(gp_tensor(x))
    for name, got in results.items():
        array = got if isinstance(got, np.ndarray) else got.detach().numpy()
        np.testing.assert_allclose(array, expected, atol=2e-4, err_msg=name)


def gp_tensor(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x)


def test_four_by_four_bits_run_as_integers_where_scales_are_by_channel() -> None:
    after, _ = kit.apply(made(), A4, FoldWeights(), ctx=context(None, "ort-cpu"))
    target = Target.load("ort-cpu", "x86-64+vnni")
    lowered = ort.lower(after, target)
    assert "MatMulIntegerToFloat" in kit.ops(lowered)
    (row,) = [r for r in ort.audit(lowered, target, {"x": normal(3, 5, 64)}).sites if r.node == "MatMul_0"]
    assert row.verdict == "integer"


def test_what_has_no_kernel_is_quantized_where_kernels_are_only_preferred() -> None:
    grouped = replace(A4, weight_granularity="per_group", group_size=16)
    weight, x = Site("MatMul_0", 1, Role.WEIGHT), Site("MatMul_0", 0, Role.ACTIVATION)
    assert plan(made(), grouped)[weight].granularity == per_channel(1)
    asked = plan(made(), replace(grouped, kernels="preferred"))
    assert asked[weight].granularity == per_group(0, 16) and asked[x] == Scheme("int4", PER_TOKEN, dynamic=True)
    (why,) = reasons(made(), replace(grouped, kernels="preferred")).values()
    assert why.startswith("quantized, but for size or accuracy only: ") and "per_group:0:16" in why


def test_the_audit_says_so_too() -> None:
    options = replace(A4, weight_granularity="per_group", group_size=16, kernels="preferred")
    after, _ = kit.apply(made(), options, FoldWeights(), ctx=context(None, "ort-cpu"))
    target = Target.load("ort-cpu", "x86-64+vnni")
    lowered = ort.lower(after, target)
    (row,) = [r for r in ort.audit(lowered, target, {"x": normal(3, 5, 64)}).sites if r.node == "MatMul_0"]
    assert row.verdict == "weight-only" and "activations" in row.reason
    pytest.importorskip("torch")
    from graphpress.backends import fx

    torch_cpu = Target.load("torch-cpu")
    (row,) = [r for r in fx.audit(fx.lower(after, torch_cpu), torch_cpu, {"x": normal(3, 5, 64)}).sites if r.macs]
    assert "4 bits" in row.reason or "group" in row.reason


def test_eight_bits_by_token_are_written_without_the_attribute() -> None:
    """So that files of before stay byte for byte."""
    for activation, attributes in (("int8", {}), ("int4", {"bits"})):
        after, _ = quantize(made(), replace(A4, activation=activation))
        (node,) = [n for n in after.graph if n.op_type == "DynamicQuantizeToken"]
        assert set(node.attributes) == set(attributes)


def test_bad_types() -> None:
    with pytest.raises(BadRequest, match="int8 or int4"):
        replace(A4, activation="uint8")
    with pytest.raises(BadRequest, match="uint8"):
        replace(A4, activation_granularity="per_tensor")
    with pytest.raises(BadRequest, match="by token are int8 or int4"):
        quantize(made(), replace(A4, sites={"MatMul_0[0] activation": "int2 per_token"}))
