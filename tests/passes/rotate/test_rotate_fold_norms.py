"""Gains, biases and means moved out of norms: exact in double precision, and left alone where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.pipeline import Pipeline
from graphpress.recipe import parse_passes
from tests import kit
from tests.passes.rotating import deviation, double, feeds, torch_run, weighted

WEIGHTS = {
    "t": (9, 4), "p": (3, 4), "w": (4, 4), "u": (4, 4), "d": (4, 4), "b": (4,), "g": (4,), "h": (4,), "c": (4,),
    "k": (4, 4, 1),
}  # fmt: skip
IN = "int64[2,3] ids, float[2,3,4] x"
STREAM = "e = Gather(t, ids) r = Add(e, p)"
LN, RMS = "LayerNormalization <epsilon = 0.001>", "RMSNormalization <epsilon = 0.001>"
BRANCH = f"n = {LN} (r, g, b) a0 = MatMul(n, w) a = Add(a0, c) f = Relu(a) f1 = MatMul(f, d) s = Add(r, f1)"
TOKEN = "zero = Constant <value_int = 0> ()"


def run(body: str, passes: str = "fold-norms", opset: int = 23):
    """(double-precision deviation, model before, model after, report of the first pass)."""
    pytest.importorskip("torch")
    model = double(weighted(body, WEIGHTS, IN, opset))
    after, reports = Pipeline(parse_passes(passes)).run(model)
    given = feeds(model, top=9)
    return deviation(torch_run(model, given), torch_run(after, given)), model, after, reports[0]


FOLDED = {
    "pre-norm": f"{STREAM} {BRANCH} m = {LN} (s, h, c) y = MatMul(m, u)",
    "behind a transpose": f"{STREAM} {BRANCH} m = {LN} (s, h, c) q = Transpose <perm = [1,0,2]> (m) y = MatMul(q, u)",
    "one token": f"{TOKEN} {STREAM} {BRANCH} m = {LN} (s, h, c) q = Gather <axis = 1> (m, zero) y = Gemm(q, u, b)",
    "a convolution": f"{STREAM} {BRANCH} m = {LN} (s, h, c) q = Transpose <perm = [0,2,1]> (m) y = Conv(q, k, b)",
}


@pytest.mark.parametrize("what", FOLDED)
def test_gains_biases_and_means_go(what: str) -> None:
    gap, _, after, report = run(FOLDED[what])
    assert gap <= 1e-12 and report.skips == []
    norms = [n for n in after.graph if n.op_type.endswith("Normalization")]
    assert [n.op_type for n in norms] == ["RMSNormalization"] * 2
    assert all((edit.constant(n.inputs[1]) == 1).all() and len(n.inputs) == 2 for n in norms)
    assert [n.attributes.get_float("epsilon") for n in norms] == [pytest.approx(1e-3)] * 2
    assert report.metrics == {"norms folded": 2, "norms made RMSNormalization": 2}
    stream = torch_run_values(after, "s_")
    assert np.abs(stream.mean(-1)).max() < 1e-14  # what the norms read is centred


def torch_run_values(model, _: str) -> np.ndarray:
    """What the last norm reads."""
    norm = [n for n in model.graph if n.op_type == "RMSNormalization"][-1]
    model = model.clone()
    twin = next(n for n in model.graph if n.name == norm.name)
    model.graph.outputs[0] = twin.inputs[0]
    return next(iter(torch_run(model, feeds(model, top=9)).values()))


def test_without_centring_the_mean_stays() -> None:
    gap, _, after, report = run(FOLDED["pre-norm"], "fold-norms{centre=false}")
    assert gap <= 1e-12 and kit.ops(after).count("LayerNormalization") == 2 and report.metrics == {"norms folded": 2}


def test_older_opsets_are_raised_for_fused_norms() -> None:
    gap, _, after, _ = run(FOLDED["pre-norm"], opset=17)
    assert gap <= 1e-12 and edit.opset(after) == 23


SPELLED = """
    two = Constant <value = float {2.0}> () eps = Constant <value = float {0.001}> ()
    mu = ReduceMean <axes = [-1]> (r) z = Sub(r, mu) sq = Pow(z, two) va = ReduceMean <axes = [-1]> (sq)
    ve = Add(va, eps) sd = Sqrt(ve) nn = Div(z, sd)
"""


def test_norms_that_are_spelled_out_fold_at_any_opset() -> None:
    body = f"{STREAM} {SPELLED} ng = Mul(nn, g) n = Add(ng, b) y = MatMul(n, w)"
    gap, _, after, report = run(body, opset=16)
    assert gap <= 1e-12 and report.metrics == {"norms folded": 1, "norms made RMSNormalization": 1}
    assert "Sub" not in kit.ops(after) and kit.ops(after).count("Mul") == 0 and edit.opset(after) == 16


def test_a_scale_behind_a_layer_goes_into_it() -> None:
    layer = f"n = {RMS} (r, g) q = MatMul(n, w) q1 = Add(q, b) z = Mul(q1, h)"
    body = f"{STREAM} {layer} s = Add(r, z) m = {RMS} (s, c) y = MatMul(m, u)"
    gap, _, after, _ = run(body)
    assert gap <= 1e-12 and "Mul" not in kit.ops(after)


STAY = {
    f"{STREAM} n = {RMS} (r, g) y = Relu(n)": "keeps its gain: Relu",
    f"{STREAM} n = {RMS} (r, g) y = Identity(n)": "is an output of its graph",
    f"{STREAM} n = {RMS} (r, g) q = MatMul(n, w) s = Add(n, q) y = MatMul(s, u)": "the sum would have to be scaled",
    f"{STREAM} n = {RMS} (r, g) m = {RMS} (n, h) y = MatMul(m, u)": "another norm reads it",
    f"{STREAM} n = {LN} (r, g, b) q = Transpose <perm = [0,2,1]> (n) y = Conv <pads = [1,1]> (q, k)": "order is padded",
    f"{STREAM} n = {LN} (r, g, b) q = Mul(n, half) y = MatMul(q, u)": "its bias does not pass",
    f"{STREAM} n = {LN} (r, g, b) q = MatMul(n, w) q2 = MatMul(r, u) y = Add(q, q2)": "reads the stream with its mean",
    f"{STREAM} n = {LN} (r, g, b) m = {RMS} (r, g) q = MatMul(n, w) q2 = MatMul(m, u) y = Add(q, q2)": "is an RMSNorm",
    f"n = {LN} (x, g, b) y = MatMul(n, w)": "it is an input of its graph",
}


@pytest.mark.parametrize("body", STAY)
def test_what_must_stay_stays_and_says_why(body: str) -> None:
    gap, _, after, report = run(f"half = Constant <value = float {{0.5}}> () {body}")
    assert gap <= 1e-12
    assert any(STAY[body] in s.why for s in report.skips), report.skips
    assert any(n.op_type.endswith("Normalization") for n in after.graph)


def test_a_uniform_gain_is_left_without_a_word() -> None:
    body = f"one = Constant <value = float[4] {{2,2,2,2}}> () {STREAM} n = {RMS} (r, one) y = Relu(n)"
    gap, _, _, report = run(body)
    assert gap == 0 and report.skips == [] and report.changed == 0


def test_a_tied_head_is_untied_by_copying() -> None:
    flat = "f = Constant <value_ints = [-1, 4]> ()"
    body = f"{flat} {STREAM} n = {RMS} (r, g) q = Reshape(n, f) y = Gemm <transB = 1> (q, t)"
    gap, _, after, report = run(body)
    assert gap <= 1e-12 and report.metrics["untied weights"] == 1
    gather, gemm = (next(n for n in after.graph if n.op_type == kind) for kind in ("Gather", "Gemm"))
    assert gather.inputs[0] is not gemm.inputs[1]


def test_layers_that_share_weight_and_norm_go_on_sharing_it() -> None:
    body = f"{STREAM} n = {RMS} (r, g) a = MatMul(n, w) b2 = MatMul(n, w) y = Add(a, b2)"
    gap, _, after, report = run(body)
    one, two = (n for n in after.graph if n.op_type == "MatMul")
    assert gap <= 1e-12 and one.inputs[1] is two.inputs[1] and "untied weights" not in report.metrics


def test_a_quantized_model_is_refused() -> None:
    scale = "s = Constant <value = float {0.1}> ()"
    body = f"{scale} {STREAM} n = {RMS} (r, g) q = QuantizeLinear(n, s) y = DequantizeLinear(q, s)"
    model = weighted(body, WEIGHTS, IN)
    for passes in ("fold-norms", "rotate"):
        with pytest.raises(BadRequest, match="needs a model at stage float, but here it is qdq"):
            Pipeline(parse_passes(passes)).run(model)
