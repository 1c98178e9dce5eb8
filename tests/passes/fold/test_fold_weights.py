"""fold-weights against ONNX Runtime's own QuantizeLinear, bit for bit."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.graph import edit
from graphpress.passes.fold import fold_weights
from graphpress.passes.fold.fold_weights import FoldWeights
from tests.kit import apply, assert_same_outputs, assert_same_structure, ops, parse, run

DTYPES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]


def _numpy(name: str) -> np.dtype:
    return ir.DataType[name.upper()].numpy()


def _graph(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, opset: int = 25, **attributes: int) -> ir.Model:
    """y = DQ(Q(weight)), with all of it constant."""
    x = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("w", weight), ("s", scale), ("z", zero))]
    for v in x:
        assert v.const_value is not None
        v.type, v.shape = ir.TensorType(v.const_value.dtype), v.const_value.shape
    attrs = ir.convenience.convert_attributes(attributes)
    q = ir.Node("", "QuantizeLinear", x, attrs, name="q", outputs=[ir.Value(name="w_q")])
    dq = ir.Node("", "DequantizeLinear", [q.outputs[0], *x[1:]], attrs, name="dq", outputs=[ir.Value(name="y")])
    dq.outputs[0].type, dq.outputs[0].shape = ir.TensorType(x[0].dtype), ir.Shape(weight.shape)
    graph = ir.Graph([], dq.outputs, nodes=[q, dq], initializers=x, opset_imports={"": opset}, name="g")
    return ir.Model(graph, ir_version=10)


def _integers(zero: np.ndarray, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    info = ml_dtypes.iinfo(zero.dtype)
    return rng.integers(int(info.min), int(info.max) + 1, shape).astype(zero.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["tensor", "channel0", "channel1", "block0", "block1", "ragged"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]))
def test_it_computes_what_onnx_runtime_does(dtype: str, form: str, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    columns = 5 if form == "ragged" else 8
    weight = (rng.normal(size=(16, columns)) * spread * 40).astype(np.float32)
    shape = {"tensor": (), "channel0": (16,), "channel1": (8,), "block0": (4, 8), "block1": (16, 2), "ragged": (16, 2)}
    axis = {"tensor": 1, "channel0": 0, "channel1": 1, "block0": 0, "block1": 1, "ragged": -1}[form]
    scale = rng.uniform(0.5, 2, shape[form]).astype(np.float32) * np.float32(spread)
    weight[:, 0] = (np.float32(0.5) + rng.integers(-3, 4, 16)) * (scale if form == "tensor" else scale.flat[0])  # ties
    zero = _integers(np.zeros((), _numpy(dtype)), rng, shape[form])
    attributes = {"axis": axis} | ({"block_size": 4} if form[:5] in ("block", "ragge") else {})
    before = _graph(weight, scale, zero, **attributes)
    after, [report] = apply(before, FoldWeights())
    assert report.changed == 1 and ops(after) == ["DequantizeLinear"]
    assert sorted(after.graph.initializers) == ["s", "w_q", "z"]
    assert after.graph.initializers["w_q"].dtype == ir.DataType[dtype.upper()]
    assert_same_outputs(before, after)


def test_float16_divides_in_float16() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 0.02, 64).astype(np.float16)
    before = _graph(rng.normal(size=(64, 64)).astype(np.float16), scale, np.zeros(64, np.int8), axis=0)
    assert_same_outputs(before, apply(before, FoldWeights())[0])


SHARED = """
g (float[2,3] x) => (float[2,3] a, float[2,3] b, float[2,3] c)
<float[3] w = {0.1, -0.2, 0.3}, float s = {0.01}, int8 z = {0}>
{
    q1 = QuantizeLinear(w, s, z)
    q2 = QuantizeLinear(w, s, z)
    d1 = DequantizeLinear(q1, s, z)
    d2 = DequantizeLinear(q2, s, z)
    a = Add(x, d1)
    b = Add(x, d2)
    c = Add(x, w)
}
"""


def test_a_weight_quantized_twice_is_stored_once_and_a_float_one_still_in_use_stays() -> None:
    before = parse(SHARED)
    after, [report] = apply(before, FoldWeights())
    assert report.changed == 2
    assert sorted(after.graph.initializers) == ["q1", "s", "w", "z"]
    assert_same_outputs(before, after)


def test_before_and_expected() -> None:
    before = """
g (float[1,2] x) => (float[1,2] y)
<float[2,2] w = {0.1, -0.2, 0.3, 5.0}, float[2] s = {0.01, 0.1}, int8[2] z = {0, 0}>
{
    q = QuantizeLinear<axis = 1>(w, s, z)
    d = DequantizeLinear<axis = 1>(q, s, z)
    y = MatMul(x, d)
}
"""
    expected = """
g (float[1,2] x) => (float[1,2] y)
<int8[2,2] q = {10, -2, 30, 50}, float[2] s = {0.01, 0.1}, int8[2] z = {0, 0}>
{
    d = DequantizeLinear<axis = 1>(q, s, z)
    y = MatMul(x, d)
}
"""
    assert_same_structure(apply(parse(before), FoldWeights())[0], parse(expected))


def test_what_a_caller_may_override_is_no_constant() -> None:
    text = "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) <float s = {0.1}, int8 z = {0}>"
    before = parse(text + "{ q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = Add(x, d) }")
    after, [report] = apply(before, FoldWeights())
    assert report.changed == 0 and ops(after) == ops(before)


def test_a_scale_found_at_run_time_is_reported() -> None:
    text = "g (float s) => (float[2] y) <float[2] w = {1, 2}, int8 z = {0}>"
    before = parse(text + "{ q = QuantizeLinear(w, s, z)  y = DequantizeLinear(q, s, z) }")
    _, [report] = apply(before, FoldWeights())
    assert [s.where for s in report.skips] == ["QuantizeLinear_0"]


def test_a_public_quantized_constant_keeps_its_name() -> None:
    text = "g () => (int8[2] y) <float[2] w = {1, 2}, float s = {0.1}, int8 z = {0}>"
    before = parse(text + "{ y = QuantizeLinear(w, s, z) }")
    after, _ = apply(before, FoldWeights())
    assert ops(after) == ["Identity"] and run(after, {})["y"].tolist() == [10, 20]


def test_in_the_branches_of_an_if() -> None:
    before = parse("""
g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}, float s = {0.1}, int8 z = {0}>
{
    y = If (c) <
        then_branch = t () => (float[2] a) {
            q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  a = Add(x, d)
        },
        else_branch = e () => (float[2] b) { b = Identity(x) }
    >
}
""")
    after, _ = apply(before, FoldWeights())
    assert "QuantizeLinear" not in ops(after) and "w" not in after.graph.initializers
    assert_same_outputs(before, after, {"c": np.array(True), "x": np.ones(2, np.float32)})


def test_large_tensors_in_a_file_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_weights, "STREAMED", 1024)
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    before = _graph(weight, np.float32(0.1), np.int8(0), opset=21)
    ir.save(before, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    after, _ = apply(ir.load(tmp_path / "m.onnx"), FoldWeights())
    stored = after.graph.initializers["w_q"].const_value
    assert isinstance(stored, ir.LazyTensor)
    assert edit.constant(after.graph.initializers["w_q"]).nbytes == 1024  # type: ignore[union-attr]
    ir.save(after, tmp_path / "out.onnx", external_data="out.data", size_threshold_bytes=0)
    session = ort.InferenceSession(tmp_path / "out.onnx")
    np.testing.assert_array_equal(session.run(None, {})[0], run(before, {})["y"])
