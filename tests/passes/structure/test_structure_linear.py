"""The one view of linear layers against numpy and ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.graph import edit
from graphpress.passes.structure.layers.linear import Linear, linear
from tests.kit import parse

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
B = np.random.default_rng(2).normal(size=3).astype(np.float32)

FORMS = {
    "matmul": ("y = MatMul(x, w)", W.T, None),
    "matmul with bias": ("p = MatMul(x, w)\ny = Add(p, b)", W.T, B),
    "bias first": ("p = MatMul(x, w)\ny = Add(b, p)", W.T, B),
    "gemm": ("y = Gemm(x, w, b)", W.T, B),
    "gemm transB": ("y = Gemm <transB=1> (x, w, b)", W, B),
}


def _model(source: str, **constants: np.ndarray) -> ir.Model:
    m = parse(source)
    for name, array in constants.items():
        value = next(v for n in m.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        m.graph.register_initializer(value)
    return m


def _build(form: str) -> tuple[ir.Model, Linear]:
    body, w, b = FORMS[form]
    constants = {"w": w} | ({"b": b} if b is not None else {})
    m = _model(f"m (float[5,4] x) => (float[5,3] y) {{\n{body}\n}}", **constants)
    view = linear(next(n for n in m.graph if n.op_type in ("MatMul", "Gemm")))
    assert isinstance(view, Linear), view
    return m, view


def _run(m: ir.Model) -> np.ndarray:
    return reference.execute(m)({"x": X})["y"]


@pytest.mark.parametrize("form", FORMS)
def test_reads_and_writes_weight_and_bias(form: str) -> None:
    m, view = _build(form)
    assert view.shape == (3, 4)
    np.testing.assert_array_equal(view.weight(), W)
    bias = view.bias()
    np.testing.assert_array_equal(np.zeros(3) if bias is None else bias, np.zeros(3) if FORMS[form][2] is None else B)
    view.set_weight(2 * W)
    view.set_bias(B + 1)
    np.testing.assert_allclose(_run(m), X @ (2 * W).T + B + 1, rtol=1e-5, atol=1e-5)
    again = linear(view.node)
    assert isinstance(again, Linear)
    np.testing.assert_array_equal(again.bias(), B + 1)


def test_looks_through_the_quantizer_of_the_weight() -> None:
    scale, zero = np.float32(0.5), np.int8(0)
    body = "q = QuantizeLinear(w, s, z)\nd = DequantizeLinear(q, s, z)\ny = MatMul(x, d)"
    m = _model(f"m (float[5,4] x) => (float[5,3] y) {{\n{body}\n}}", w=W.T, s=scale, z=zero)
    view = linear(next(n for n in m.graph if n.op_type == "MatMul"))
    assert isinstance(view, Linear)
    np.testing.assert_array_equal(view.weight(), W)
    view.set_weight(np.full_like(W, 1.5))
    np.testing.assert_allclose(_run(m), X @ np.full_like(W, 1.5).T, rtol=1e-5, atol=1e-5)


def test_a_shared_weight_is_copied() -> None:
    m = _model("m (float[5,4] x) => (float[5,3] y, float[5,3] z) {\ny = MatMul(x, w)\nz = MatMul(x, w)\n}", w=W.T)
    first = linear(next(iter(m.graph)))
    assert isinstance(first, Linear)
    first.set_weight(2 * W)
    found = reference.execute(m)({"x": X})
    np.testing.assert_allclose(found["z"] * 2, found["y"], rtol=1e-6)


def test_says_why_a_node_is_no_layer() -> None:
    m = _model("m (float[5,4] x, float[4,3] w) => (float[5,3] y) {\ny = MatMul(x, w)\n}")
    assert linear(next(iter(m.graph))) == "the weight is computed"
    assert edit.constant(m.graph.inputs[1]) is None
