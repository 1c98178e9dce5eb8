"""A model in half precision as one that computes in float32: same numbers but for roundings, same types at its ends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphpress.graph import edit, half, widening
from tests import kit

D = ir.DataType
RNG = np.random.default_rng(5)
ULP = 2.0**-10  # of float16, at 1.0


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float16)


X4, TRUE = floats(4), np.array(True)
W = {"W": floats(4)}
# name -> (graph, constants, inputs)
GRAPHS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "constants": (
        """g (float16[N,4] x) => (float16[N,4] y) {
        c = Constant<value = float16[1] {2}>() s = Mul(x, c) t = Constant<value_float=1.5>() u = CastLike(t, x)
        y = Add(s, u) }""",
        {}, {"x": floats(3, 4)},
    ),
    "if": (
        """g (float16[4] x, bool b) => (float16[4] y) { y = If(b) <
        then_branch = a () => (float16[4] p) { k = Constant<value = float16[4] {1, 2, 3, 4}>() p = Mul(x, k) },
        else_branch = e () => (float16[4] q) { q = Sub(x, W) }> }""",
        W, {"x": X4, "b": TRUE},
    ),
    "loop": (
        """g (float16[4] x, int64 n, bool c) => (float16[4] y, float16[K,4] z) { y, z = Loop(n, c, x) <
        body = b (int64 i, bool ci, float16[4] s) => (bool co, float16[4] so, float16[4] sc) {
        co = Identity(ci) so = Mul(s, W) sc = Identity(so) }> }""",
        W, {"x": X4, "n": np.array(3), "c": TRUE},
    ),
    "scan": (
        """g (float16[4] x, float16[5,4] xs) => (float16[4] y, float16[5,4] z) { y, z = Scan<num_scan_inputs=1,
        body = b (float16[4] s, float16[4] i) => (float16[4] so, float16[4] sc) { so = Add(s, i) sc = Mul(so, W) }
        >(x, xs) }""",
        W, {"x": X4, "xs": floats(5, 4)},
    ),
    "input-is-output": ("g (float16[4] x) => (float16[4] y, float16[4] x) { y = Relu(x) }", {}, {"x": X4}),
    "weight-is-output": ("g (float16[4] x) => (float16[4] y, float16[4] W) { y = Add(x, W) }", W, {"x": X4}),
    "inner-output": ("g (float16[4] x) => (float16[4] h, float16[4] y) { h = Relu(x) y = Neg(h) }", {}, {"x": X4}),
    "cast-ends": (
        "g (float[4] x) => (float[4] y) { a = Cast<to=10>(x) b = Mul(a, W) y = Cast<to=1>(b) }",
        W, {"x": X4.astype(np.float32)},
    ),
    "casts-alone": (
        "g (float[4] x) => (float[4] y) { a = Cast<to=10>(x) y = Cast<to=1>(a) }", {}, {"x": X4.astype(np.float32)}
    ),
    "weight-behind-cast": (
        "g (float[4] x) => (float[4] y) { w = Cast<to=1>(W) y = Mul(x, w) }", W, {"x": X4.astype(np.float32)}
    ),
    "to-double": ("g (float16[4] x) => (double[4] y) { a = Relu(x) y = Cast<to=11>(a) }", {}, {"x": X4}),
    "from-integers": (
        "g (int64[4] x) => (float16[4] y) { a = Cast<to=10>(x) y = Mul(a, W) }", W, {"x": np.arange(4)}
    ),
    "filled": ("g (int64[2] n) => (float16[a,b] y) { y = ConstantOfShape<value = float16[1] {3}>(n) }", {},
               {"n": np.array([2, 3])}),
    "eye": ("g (float16[4,4] x) => (float16[4,4] y) { e = EyeLike<dtype=10>(x) y = Add(x, e) }", {},
            {"x": floats(4, 4)}),
    "recurrent": (
        "g (float16[5,1,4] x) => (float16[5,1,1,8] y) { y, h, c = LSTM<hidden_size=8>(x, V, R) }",
        {"V": floats(1, 32, 4), "R": floats(1, 32, 8)}, {"x": floats(5, 1, 4)},
    ),
    "float32-operand": (
        "g (float16[1,1,4,4] x) => (float16[1,1,8,8] y) { y = Resize<mode=\"linear\">(x, , S) }",
        {"S": np.array([1, 1, 2, 2], np.float32)}, {"x": floats(1, 1, 4, 4)},
    ),
    "quantized": (
        """g (float16[N,4] x) => (float16[N,4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, W) }""",
        W | {"s": np.float16(0.25), "z": np.uint8(128)}, {"x": np.arange(-6, 6).reshape(3, 4).astype(np.float16)},
    ),
    "sequence": (
        """g (float16[4] x) => (float16[8] y) { e = SequenceEmpty<dtype=10>() s = SequenceInsert(e, x)
        t = SequenceInsert(s, x) y = ConcatFromSequence<axis=0>(t) }""",
        {}, {"x": X4},
    ),
    "masked": (
        """g (float16[4] x) => (float16[4] y) { b = Greater(x, z)
        w = Where(b, x, m) y = Softmax(w) }""",
        {"z": np.float16(0), "m": np.float16(-65504)}, {"x": X4},
    ),
    "function": (
        """<ir_version: 10, opset_import: ["": 18, "my": 1]>
        g (float16[N,4] x) => (float16[N,4] y) { h = my.twice(x, W) y = my.cast<t=10>(h) }
        <domain: "my", opset_import: ["": 18]> twice (a, b) => (c) {
        k = Constant<value = float16[1] {2}>() m = Mul(a, b) c = Mul(m, k) }
        <domain: "my", opset_import: ["": 18]> cast <t> (a) => (c) { c = Cast<to: int = @t>(a) }""",
        W, {"x": floats(3, 4)},
    ),
}  # fmt: skip


def made(text: str, constants: dict[str, Any]) -> ir.Model:
    model = kit.parse(text)
    for name, array in constants.items():
        value = next((v for v in kit_values(model) if v.name == name), None)
        tensor = ir.tensor(np.asarray(array), name=name)
        if value is None:
            continue
        value.const_value, value.shape, value.type = tensor, ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
        model.graph.register_initializer(value)
    return model


def kit_values(model: ir.Model) -> list[ir.Value]:
    outer = [v for n in edit.nodes(model) for v in n.inputs if v is not None and v.producer() is None]
    return [*outer, *model.graph.outputs]


def run(model: ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return list(session.run(None, feeds))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_numbers_of_every_form_but_for_rounding(name: str) -> None:
    text, constants, feeds = GRAPHS[name]
    model = made(text, constants)
    wide = widening.widened(model)
    onnx.checker.check_model(ir.to_proto(wide), full_check=True)
    for a, b in zip(run(model, feeds), run(wide, feeds), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=8 * ULP, atol=4 * ULP)
    ends = {*wide.graph.inputs, *wide.graph.outputs}
    for node in edit.nodes(wide):
        halves = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype in half.HALVES]
        assert not halves or (node.op_type == "Cast" and set(halves) <= ends), node
    assert [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        (v.name, v.dtype) for v in (*wide.graph.inputs, *wide.graph.outputs)
    ]
    assert all(v.dtype not in half.HALVES for v in wide.graph.initializers.values())


@pytest.mark.parametrize(("name", "casts"), [("cast-ends", 0), ("weight-behind-cast", 0), ("inner-output", 3)])
def test_no_cast_stands_where_none_is_needed(name: str, casts: int) -> None:
    text, constants, _ = GRAPHS[name]
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(made(text, constants))))
    wide = widening.widened(model)
    assert [n.op_type for n in wide.graph].count("Cast") == casts


def test_the_graph_that_comes_out() -> None:
    before = made("g (float16[N,4] x) => (float16[N,4] y) { h = Add(x, W) y = Relu(h) }", W)
    expected = kit.parse("""g (float16[N,4] x) => (float16[N,4] y) {
        a = Cast<to=1>(x) h = Add(a, W) b = Relu(h) y = Cast<to=10>(b) }""")
    value = next(v for n in expected.graph for v in n.inputs if v is not None and v.name == "W")
    value.const_value = ir.tensor(W["W"].astype(np.float32), name="W")
    expected.graph.register_initializer(value)
    kit.assert_same_structure(widening.widened(before), expected)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_every_half_is_kept_to_the_bit(kind: Any) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(kind)
    model = made("g (float[65536] x) => (float[65536] y) { w = Cast<to=1>(W) y = Add(x, w) }", {"W": halves})
    wide = edit.constant(widening.widened(model).graph.initializers["W"])
    assert wide is not None
    assert wide.dtype == np.float32
    nan = np.isnan(wide)
    back = np.where(nan, 0, wide).astype(kind).view(np.uint16)
    assert np.array_equal(back[~nan], halves.view(np.uint16)[~nan])
    exponent = 5 if kind is np.float16 else 8
    assert nan.sum() == 2 * (2 ** (15 - exponent) - 1)  # all but infinity of the highest exponent, of either sign


def test_a_large_weight_is_made_when_it_is_read() -> None:
    halves = floats(300, 300)
    model = made("g (float16[1,300] x) => (float16[1,300] y) { y = MatMul(x, W) }", {"W": halves})
    tensor = widening.widened(model).graph.initializers["W"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert (tensor.dtype, tuple(tensor.shape), tensor.nbytes) == (D.FLOAT, (300, 300), 360_000)
    assert np.array_equal(tensor.numpy(), halves.astype(np.float32))


def test_a_model_without_halves_is_left_alone() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    assert widening.widened(model) is model
    wide = widening.widened(made("g (float[4] x) => (float[4] y) { w = Cast<to=1>(W) y = Mul(x, w) }", W))
    assert widening.widened(wide) is wide


def test_an_operator_that_nobody_knows_gets_the_halves_it_takes() -> None:
    model = made(
        """<ir_version: 10, opset_import: ["": 18, "vendor": 1]>
        g (float16[4] x) => (float16[4] y) { h = Mul(x, W) k = vendor.Secret(h, W) y = Relu(k) }""",
        W,
    )
    assert "the types around 'Secret_1', an operator of 'vendor', are not known" in widening.widen(model).refused
    for node in list(model.graph)[:2]:
        node.outputs[0].type = ir.TensorType(D.FLOAT16)
    secret = next(n for n in widening.widened(model).graph if n.op_type == "Secret")
    assert [v.dtype for v in secret.inputs if v is not None] == [D.FLOAT16, D.FLOAT16]
    ((reader, _),) = secret.outputs[0].uses()
    assert (reader.op_type, reader.outputs[0].dtype) == ("Cast", D.FLOAT)


def test_an_end_that_no_cast_takes_leaves_the_model_as_it_is() -> None:
    model = kit.parse("g (float16[4] x) => (seq(float16[4]) s) { s = SequenceConstruct(x, x) }")
    before = kit.structure(model)
    done = widening.widen(model)
    assert "'s' is a Sequence" in done.refused
    assert not done
    assert kit.structure(model) == before


def test_what_was_widened_in_words() -> None:
    text, constants, _ = GRAPHS["inner-output"]
    assert str(widening.widen(made(text, constants))) == (
        "float16 computed in float32: 2 values; inputs and outputs keep their types"
    )
    model = made("g (float16[4] x) => (float16[4] y) { h = Mul(x, W) y = Relu(h) }", W)
    model.graph[0].outputs[0].type = ir.TensorType(D.FLOAT16)
    assert str(widening.widen(model)) == (
        "float16 computed in float32: 1 weight, 2 values; inputs and outputs keep their types"
    )


def test_outputs_before_they_are_rounded() -> None:
    model = made("g (float16[3] x) => (float16[3] y) { y = Mul(x, W) }", {"W": np.full(3, 1.0009766, np.float16)})
    x = np.array([1.0009766, 3.0, 0.1], np.float16)
    wide = widening.widened(model)
    (exact,) = run(widening.opened(wide), {"x": x})
    assert exact.dtype == np.float32
    assert np.array_equal(exact, x.astype(np.float32) * np.float32(1 + ULP))
    assert [v.name for v in widening.opened(wide).graph.outputs] == ["y"]
    assert [v.dtype for v in wide.graph.outputs] == [D.FLOAT16]
    assert widening.opened(model) is model  # nothing there but the rounded numbers


@pytest.mark.parametrize(("kind", "most", "digits"), [(D.FLOAT16, 65504.0, 11), (D.BFLOAT16, 3.3895314e38, 8)])
def test_what_a_half_can_hold(kind: ir.DataType, most: float, digits: int) -> None:
    numbers = RNG.normal(size=500).astype(np.float32)
    found = half.narrow(numbers, kind)
    assert found is not None
    assert np.abs(found.astype(np.float32) - numbers).max() <= 2.0**-digits * np.abs(numbers).max()
    assert half.narrow(np.append(numbers, np.float32(most)), kind) is not None
    if kind is D.FLOAT16:
        assert half.narrow(np.append(numbers, np.float32(65520.0)), kind) is None  # the first that rounds to infinity
        assert half.narrow(numbers * np.float32(1e-7), kind) is None  # below the least step of 2^-24
    assert half.narrow(np.float32([np.inf, 1.0]), kind) is not None  # what is infinite before may be
    assert half.unit(kind) == 2.0 ** (1 - digits)
    assert half.unit(D.FLOAT) == half.unit(None) == 0.0
