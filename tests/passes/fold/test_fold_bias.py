"""fold-bias: the bound of its rounding, int32 never overflows, and the whole family on small and real networks."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.passes.fold.absorb_clip import AbsorbClip
from graphpress.passes.fold.cancel_qdq import CancelQdq
from graphpress.passes.fold.conversions import conversions
from graphpress.passes.fold.fold_bias import LIMIT, FoldBias
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.fold.move_qdq import MoveQdq
from graphpress.passes.fold.share_scales import ShareScales
from tests.kit import apply, assert_same_outputs, assert_same_structure, calls, ops, parse, run

FAMILY = (ShareScales(), AbsorbClip(), MoveQdq(), CancelQdq(), FoldBias(), FoldWeights())

CONV = """
g (float[1,2,3,3] x) => (float[1,2,3,3] y)
<float s = {0.02}, uint8 z = {128}, float[2,2,1,1] w = {0.5, -0.25, 1.0, 0.75}, float[2] t = {0.004, 0.008},
 int8[2] u = {0, 0}, float[2] b = {0.3, -1.7}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    p = QuantizeLinear<axis = 0>(w, t, u)
    k = DequantizeLinear<axis = 0>(p, t, u)
    y = Conv(d, k, b)
}
"""


def _with(model: ir.Model, **constants: np.ndarray) -> ir.Model:
    for name, array in constants.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def test_before_and_expected() -> None:
    expected = """
g (float[1,2,3,3] x) => (float[1,2,3,3] y)
<float s = {0.02}, uint8 z = {128}, int8[2,2,1,1] p = {125, -62, 125, 94}, float[2] t = {0.004, 0.008},
 int8[2] u = {0, 0}, int32[2] b = {3750, -10625}, float[2] sb = {0, 0}, int32[2] zb = {0, 0}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis = 0>(p, t, u)
    e = DequantizeLinear<axis = 0>(b, sb, zb)
    y = Conv(d, k, e)
}
"""
    s_b = np.float32(0.02) * np.array([0.004, 0.008], np.float32)
    after, _ = apply(parse(CONV), FoldBias(), FoldWeights())
    assert_same_structure(after, _with(parse(expected), sb=s_b))
    assert "b" not in after.graph.initializers


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]))
def test_an_output_moves_by_half_a_step_of_the_accumulator_at_most(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.001, 0.1, 2).astype(np.float32)
    before = _with(parse(CONV), b=(rng.normal(size=2) * size).astype(np.float32), t=scales)
    after, [report] = apply(before, FoldBias())
    assert report.changed == 1
    feeds = {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}
    a, b = run(before, feeds)["y"].astype(np.float64), run(after, feeds)["y"].astype(np.float64)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(a).max()  # of the float sums on both sides
    bound = np.float64(0.02) * scales / 2
    assert np.all(np.abs(a - b).max(axis=(0, 2, 3)) <= bound + rounding)


@pytest.mark.parametrize(
    ("attributes", "shape", "bias", "why"),
    [
        ("transB = 1", "2,4", "float[2] b = {1, 2}", None),
        ("", "4,2", "float[2] b = {1, 2}", None),
        ("", "4,2", "float[1,2] b = {1, 2}", None),
        ("", "4,2", "float b = {1}", None),
        ("beta = 0.5", "4,2", "float[2] b = {1, 2}", "alpha or beta is not 1"),
        ("", "4,2", "float[3,1] b = {1, 2, 3}", "not one float32 number a channel"),
    ],
)
def test_gemm(attributes: str, shape: str, bias: str, why: str | None) -> None:
    axis = 0 if "transB" in attributes else 1
    before = parse(f"""
g (float[3,4] x) => (float[3,2] y)
<float s = {{0.02}}, uint8 z = {{128}}, int8[{shape}] w = {{1,2,3,4,5,6,7,8}}, float[2] t = {{0.25, 0.5}},
 int8[2] u = {{0, 0}}, {bias}>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis = {axis}>(w, t, u)
    y = Gemm{f"<{attributes}>" if attributes else ""}(d, k, b)
}}
""")
    after, [report] = apply(before, FoldBias())
    assert [why in s.why for s in report.skips] == ([True] if why else []) if why else report.changed == 1
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    assert_same_outputs(before, after, feeds, atol=0.02 * 0.5 / 2 + 1e-6)


def _steps(model: ir.Model) -> np.ndarray:
    found = [edit.constant(v) for v in model.graph.initializers.values() if (v.name or "").endswith("b_quantized")]
    assert found and found[0] is not None
    return np.abs(found[0].astype(np.int64))


def test_a_weight_scale_too_small_for_the_bias_is_enlarged() -> None:
    before = _with(parse(CONV), t=np.array([1e-12, 0.008], np.float32), w=np.zeros((2, 2, 1, 1), np.float32))
    after, [report] = apply(before, FoldBias(), FoldWeights())[0], apply(before, FoldBias())[1]
    assert report.changed == 1 and _steps(after).max() <= LIMIT
    assert "t" not in after.graph.initializers
    assert_same_outputs(before, after, atol=1e-4)
    # The same for integers, if they stand for zero.
    stored, _ = apply(before, FoldWeights())
    after, [report] = apply(stored, FoldBias())
    assert report.changed == 1 and _steps(after).max() <= LIMIT
    assert_same_outputs(before, after, atol=1e-4)


def test_what_would_overflow_is_left_in_float_with_a_reason() -> None:
    before = _with(parse(CONV), t=np.array([1e-12, 0.008], np.float32))
    stored, _ = apply(before, FoldWeights())
    after, [report] = apply(stored, FoldBias())
    assert ops(after) == ops(stored)
    assert (
        report.skips[0].why == "the bias of channel 0 overflows int32, and the weight is stored as integers or shared"
    )


@pytest.mark.parametrize("bias", ["dynamic", "float x"])
def test_other_operators_are_left_alone(bias: str) -> None:
    text = (
        CONV.replace("= Conv(d, k, b)", "= ConvTranspose(d, k, b)")
        if bias == "dynamic"
        else CONV.replace("(d, k, b)", "(x, k, b)")
    )
    after, [report] = apply(parse(text), FoldBias())
    assert report.changed == 0 and ops(after) == ops(parse(text))


# --- the family

NET = """
g (float[n,3,8,8] x) => (float[n,10] y)
<float sx = {0.02}, uint8 zx = {128}, float s1 = {0.03}, uint8 z1 = {120}, float s2 = {0.015}, uint8 z2 = {0},
 float s3 = {0.02}, uint8 z3 = {0}, float s4 = {0.05}, uint8 z4 = {128}, float s5 = {0.001}, int8 z5 = {0},
 float[4,3,3,3] w, float[4] b, float[4,4,1,1] v, float[10,64] m, float[10] c, int64[2] shape = {0, -1}>
{
    xq = QuantizeLinear(x, sx, zx)      xd = DequantizeLinear(xq, sx, zx)
    wq = QuantizeLinear(w, s5, z5)      wd = DequantizeLinear(wq, s5, z5)
    h = Conv<pads = [1, 1, 1, 1]>(xd, wd, b)
    hq = QuantizeLinear(h, s1, z1)      hd = DequantizeLinear(hq, s1, z1)
    r = Relu(hd)
    rq = QuantizeLinear(r, s2, z2)      rd = DequantizeLinear(rq, s2, z2)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rd)
    vq = QuantizeLinear(v, s5, z5)      vd = DequantizeLinear(vq, s5, z5)
    k = Conv(p, vd, b)
    a = Add(k, p)
    kr = Relu(a)
    kq = QuantizeLinear(kr, s3, z3)     kd = DequantizeLinear(kq, s3, z3)
    f = Reshape(kd, shape)
    fq = QuantizeLinear(f, s3, z3)      fd = DequantizeLinear(fq, s3, z3)
    mq = QuantizeLinear(m, s5, z5)      md = DequantizeLinear(mq, s5, z5)
    g = Gemm<transB = 1>(fd, md, c)
    gq = QuantizeLinear(g, s4, z4)      y = DequantizeLinear(gq, s4, z4)
}
"""


def _net() -> ir.Model:
    rng = np.random.default_rng(0)
    text = NET.replace(
        "k = Conv(p, vd, b)", "k0 = Conv(p, vd, b)  ko = QuantizeLinear(k0, s1, z1)  k = DequantizeLinear(ko, s1, z1)"
    )
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 1, 1), "m": (10, 64), "c": (10,)}
    for name, shape in shapes.items():
        listed = ",".join(f"{x:.6f}" for x in (rng.normal(size=shape) * 0.05).ravel())
        kind = f"float[{','.join(map(str, shape))}] {name}"
        text = text.replace(f"{kind},", f"{kind} = {{{listed}}},")
    return parse(text)


def _kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def test_a_network_runs_on_integers_from_end_to_end(tmp_path: Path) -> None:
    before = _net()
    after, _ = apply(before, *FAMILY)
    assert ops(after).count("QuantizeLinear") == 5 and "Relu" not in ops(after)
    assert len(conversions(after)) == 2  # what comes in and what goes out
    kernels = dict.fromkeys(["QuantizeLinear", "MaxPool", "QLinearAdd", "Reshape", "QGemm", "DequantizeLinear"], 1)
    assert _kernels(after, tmp_path) == kernels | {"QLinearConv": 2}
    feeds = {"x": np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)}
    exact, folded, fast = run(before, feeds)["y"], run(after, feeds)["y"], run(after, feeds, optimize=True)["y"]
    assert np.abs(exact - folded).max() <= 0.05 * 1.001
    assert np.abs(folded - fast).max() <= 0.05 * 1.001


def test_every_exact_pass_of_it_keeps_every_bit() -> None:
    model, _ = apply(_net(), ShareScales())
    folded, _ = apply(model, AbsorbClip(), MoveQdq(), CancelQdq(), FoldWeights())
    feeds = {"x": np.random.default_rng(2).normal(size=(16, 3, 8, 8)).astype(np.float32)}
    assert_same_outputs(model, folded, feeds)
    assert len(conversions(folded)) < len(conversions(model))


def test_a_second_time_it_finds_nothing_left_to_do() -> None:
    once, _ = apply(_net(), *FAMILY)
    _, reports = apply(once, *FAMILY)
    assert [r.changed for r in reports] == [0] * len(FAMILY)


BLOCK = """
    w{i}q = QuantizeLinear<axis = 0>(w{i}, t, u)    w{i}d = DequantizeLinear<axis = 0>(w{i}q, t, u)
    c{i} = Conv<pads = [1, 1, 1, 1]>({x}, w{i}d, b)
    r{i} = Relu(c{i})
    r{i}q = QuantizeLinear(r{i}, s, z)              r{i}d = DequantizeLinear(r{i}q, s, z)
    a{i} = Add(r{i}d, {x})
    a{i}q = QuantizeLinear(a{i}, s, z)              a{i}d = DequantizeLinear(a{i}q, s, z)"""


def chain(count: int) -> ir.Model:
    """So many convolutions behind one another, each between Q/DQ pairs."""
    blocks = "".join(BLOCK.format(i=i, x=f"a{i - 1}d" if i else "x") for i in range(count))
    weights = "".join(f", float[32,32,3,3] w{i}" for i in range(count))
    header = f"g (float[1,32,8,8] x, float[32] t, float[32] b, int8[32] u{weights}) => (float[1,32,8,8] y)"
    model = parse(f"{header} <float s = {{0.02}}, uint8 z = {{0}}> {{{blocks} y = Neg(a{count - 1}d) }}")
    rng = np.random.default_rng(0)
    while len(model.graph.inputs) > 1:
        v = model.graph.inputs.pop()
        assert v.shape is not None and v.dtype is not None
        v.const_value = ir.tensor(rng.uniform(0.01, 0.02, v.shape.numpy()).astype(v.dtype.numpy()))
        model.graph.register_initializer(v)
    return model


def test_work_grows_with_the_length_of_a_chain_and_no_faster() -> None:
    """Counted in calls of Python functions, which do not depend on the machine."""

    def work(model: ir.Model) -> None:
        for step in FAMILY:
            step.run(model, Context(), PassReport())
        assert {"Relu", "QuantizeLinear"} & set(ops(model)) == {"QuantizeLinear"}

    short, long = (calls(partial(work, chain(count))) for count in (15, 60))
    assert long < 4.4 * short
