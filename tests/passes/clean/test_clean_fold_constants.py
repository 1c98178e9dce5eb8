"""Constant folding: what folds, what must not, and that the values are ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.passes.clean.fold_constants import FoldConstants
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.clean.lift_constants import LiftConstants
from tests import kit


def folded(source: str, *, limit: int = 1 << 20) -> tuple[ir.Model, PassReport]:
    model, reports = kit.apply(kit.parse(source), LiftConstants(), InferShapes(), FoldConstants(limit=limit))
    return model, reports[-1]


def test_chain_of_an_unfolded_batchnorm_export_becomes_a_bias() -> None:
    model, _ = folded("""f (float[n,2,8,8] x) => (float[n,4,8,8] y)
    <float[4,2,1,1] w = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0}> {
        shape = Shape<start=0, end=1>(w)
        one = Constant<value_ints=[1]>()
        channels = Expand(shape, one)
        zero = Constant<value_float=0.0>()
        typed = CastLike(zero, x)
        bias = Expand(typed, channels)
        y = Conv(x, w, bias)
    }""")
    assert kit.ops(model) == ["Conv"]
    assert list(model.graph.initializers) == ["w", "bias"]
    bias = edit.constant(next(edit.nodes(model)).inputs[2])
    assert bias is not None
    assert bias.dtype == np.float32
    assert bias.tolist() == [0, 0, 0, 0]


def test_static_sizes_fold_out_of_a_dynamic_shape() -> None:
    before = """f (float[n,3,8,8] x, int64[1] free) => (float[n,192] y, int64 c) {
        s = Shape(x)
        one = Constant<value_int=1>()
        c = Gather(s, one)
        starts = Constant<value_ints=[1]>()
        ends = Constant<value_ints=[4]>()
        rest = Slice(s, starts, ends)
        size = ReduceProd<keepdims=1>(rest)
        target = Concat<axis=0>(free, size)
        y = Reshape(x, target)
    }"""
    expected = """f (float[n,3,8,8] x, int64[1] free) => (float[n,192] y, int64 c)
    <int64 three = {3}, int64[1] size = {192}> {
        c = Identity(three)
        target = Concat<axis=0>(free, size)
        y = Reshape(x, target)
    }"""
    model, _ = folded(before)
    kit.assert_same_structure(model, kit.parse(expected))
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32), "free": np.array([2])}
    kit.assert_same_outputs(kit.parse(before), model, feeds)


def test_a_transposed_weight_keeps_its_name() -> None:
    model, _ = folded("""f (float[2,3] x) => (float[2,2] y) <float[2,3] weight = {1.0,2.0,3.0,4.0,5.0,6.0}> {
        t = Transpose<perm=[1,0]>(weight)
        y = MatMul(x, t)
    }""")
    assert kit.ops(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["weight"]
    assert model.graph.initializers["weight"].const_value.numpy().tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormal<shape=[2]>() y = Add(x, r)",
        "r = RandomNormalLike(w) y = Add(x, r)",
        "s = QuantizeLinear(w, scale) d = DequantizeLinear(s, scale) y = Add(x, d)",
    ],
)
def test_random_and_quantization_nodes_stay(body: str) -> None:
    source = f"f (float[2] x) => (float[2] y) <float[2] w = {{1.0, 2.0}}, float scale = {{0.1}}> {{ {body} }}"
    model, report = folded(source)
    assert kit.ops(model) == kit.ops(kit.parse(source))
    assert report.changed == 0


def test_an_initializer_that_is_an_input_is_no_constant() -> None:
    model = kit.parse("f (float[2] x, float[2] w) => (float[2] y) { t = Neg(w) y = Add(x, t) }")
    weight = model.graph.inputs[1]
    weight.const_value = ir.tensor(np.ones(2, np.float32), name="w")
    model.graph.register_initializer(weight)
    after, _ = kit.apply(model, FoldConstants())
    assert kit.ops(after) == ["Neg", "Add"]


def test_the_limit_holds_back_what_grows_and_says_so() -> None:
    source = """f (float[1] x) => (float[1000000] y) <int64[1] n = {1000000}> {
        z = ConstantOfShape(n)
        y = Add(x, z)
    }"""
    model, report = folded(source, limit=1000)
    assert kit.ops(model) == ["ConstantOfShape", "Add"]
    assert "1,000,000 elements" in report.skips[0].why
    assert kit.ops(folded(source)[0]) == ["Add"]


def test_a_shape_that_would_take_terabytes_is_never_computed() -> None:
    source = """f (float[1] x) => (float[a,b] y) <int64[2] n = {10000000, 10000000}, float one = {1.0}> {
        z = Expand(one, n)
        y = Add(x, z)
    }"""
    model, report = folded(source)
    assert kit.ops(model) == ["Expand", "Add"]
    assert len(report.skips) == 1


def test_bodies_and_functions_fold_too() -> None:
    model, _ = folded("""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    f (float[2] x, bool c) => (float[2] y) <float[2] w = {1.0, 2.0}> {
        z = If (c) <
            then_branch = t () => (float[2] a) { n = Neg(w) a = Add(x, n) },
            else_branch = e () => (float[2] b) { b = Neg(w) }
        >
        y = local.g(z)
    }
    <domain: "local", opset_import: ["" : 21]>
    g (p) => (q) { one = Constant<value_float=1.0>() two = Add(one, one) q = Mul(p, two) }""")
    assert kit.ops(model) == ["If", "g", "Add", "Identity", "Constant", "Mul"]
    for condition in (True, False):
        feeds = {"x": np.array([3.0, 4.0], np.float32), "c": np.array(condition)}
        assert kit.run(model, feeds)["y"].tolist() == ([4.0, 4.0] if condition else [-2.0, -4.0])


def test_a_constant_output_keeps_its_name_and_folding_ends() -> None:
    source = "f (float[1] x) => (float[2] y, float[1] z) <float[2] w = {1.0, 2.0}> { y = Neg(w) z = Abs(x) }"
    model, _ = folded(source)
    assert kit.ops(model) == ["Identity", "Abs"]
    _, reports = kit.apply(model, FoldConstants())
    assert reports[0].changed == 0
    kit.assert_same_outputs(kit.parse(source), model)


def _make_constant(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    """The model with these inputs turned into initializers."""
    model = model.clone()
    for value in [v for v in model.graph.inputs if v.name in feeds]:
        array = feeds[value.name or ""]
        model.graph.inputs.remove(value)
        value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    model.ir_version = max(model.ir_version or 0, 4)
    return model


def test_folded_values_are_those_of_onnx_runtime(zoo: Path) -> None:
    """Small graphs of every kind with all inputs made constant: what folds must give what ONNX Runtime gives."""
    kinds: set[str] = set()
    for path in sorted(zoo.glob("onnx_zoo/**/*.onnx")):
        if path.stat().st_size > 20_000 or "dropout" in path.name:  # that one draws random numbers
            continue
        model = ir.load(path)
        model.graph.sort()
        if len(model.graph) > 4 or any(v.shape is None for v in model.graph.inputs):
            continue
        feeds = kit.random_feeds(model, seed=3)
        try:
            wanted = kit.run(model, feeds)
        except Exception:  # noqa: BLE001  ONNX Runtime refuses it, with errors of no common base
            continue
        constant = _make_constant(model, feeds)
        before = kit.ops(constant)
        FoldConstants().run(constant, Context(), PassReport())
        kinds |= set(before) - set(kit.ops(constant))
        got = kit.run(constant, {})
        for name, array in wanted.items():
            if isinstance(array, np.ndarray) and array.dtype != object:
                assert array.dtype == got[name].dtype
                np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=f"{path.name} {name}")
    assert len(kinds) > 60, sorted(kinds)
