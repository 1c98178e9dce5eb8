"""What is written: canonical forms, numbers as by numpy, degenerate scales left out, plans as files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest, StaleSite
from graphpress.graph import edit
from graphpress.keys import SCHEME
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.types import Plan, Scheme, Site, per_channel, per_group
from tests import kit
from tests.passes.quantizing import code, constants, context, model, normal, plan, quantize, range_grid, roundtrip

CONV = """
g (float[N, 2, 6, 6] x, float[4, 2, 3, 3] w, float[4] b) => (float[N, 4, 4, 4] y) {
  [conv] t = Conv(x, w, b)
  [relu] y = Relu(t)
}"""


def conv() -> ir.Model:
    return model(CONV, {"w": normal(4, 2, 3, 3), "b": normal(4, seed=1)})


def test_static_convolution_before_and_after() -> None:
    x = normal(8, 2, 6, 6, seed=2)
    after, report = quantize(conv(), Quantize(), {"x": x})
    w = edit.constant(after.graph.initializers["w"])
    assert w is not None
    scale_x, zero_x = range_grid(x.min(), x.max())
    top = kit.run(conv(), {"x": x})["y"].max()
    expected = model(
        """
        g (float[N, 2, 6, 6] x, float[4, 2, 3, 3] w, float[4] b, float sx, uint8 zx, float[4] sw, int8[4] zw, float sy,
           uint8 zy) => (float[N, 4, 4, 4] y) {
          q = QuantizeLinear(x, sx, zx)
          d = DequantizeLinear(q, sx, zx)
          qw = QuantizeLinear <axis = 0> (w, sw, zw)
          dw = DequantizeLinear <axis = 0> (qw, sw, zw)
          t = Conv(d, dw, b)
          r = Relu(t)
          qy = QuantizeLinear(r, sy, zy)
          y = DequantizeLinear(qy, sy, zy)
        }""",
        {
            "w": w, "b": normal(4, seed=1), "sx": scale_x, "zx": np.uint8(zero_x),
            "sw": (np.abs(w).max(axis=(1, 2, 3)) / np.float64(127)).astype(np.float32), "zw": np.zeros(4, np.int8),
            "sy": np.float32(np.float64(top) / 255), "zy": np.uint8(0),
        },
    )  # fmt: skip
    kit.assert_same_structure(after, expected)
    assert report.changed == 1
    assert {(by, origin) for by, origin in kit.made_by(after)} == {("quantize", "conv")}
    assert edit.find(after, "conv").metadata_props[SCHEME].startswith("activation[0] uint8 per_tensor asym")


def test_static_convolution_as_by_numpy() -> None:
    x = normal(8, 2, 6, 6, seed=2)
    after, _ = quantize(conv(), Quantize(), {"x": x})
    w = edit.constant(after.graph.initializers["w"])
    assert w is not None
    sx, zx = range_grid(x.min(), x.max())
    sw = (np.abs(w).max(axis=(1, 2, 3), keepdims=True) / np.float64(127)).astype(np.float32)
    dx, dw = roundtrip(x, sx, zx, "uint8"), roundtrip(w, sw, np.zeros(()), "int8")
    windows = np.lib.stride_tricks.sliding_window_view(dx, (3, 3), axis=(2, 3))
    t = np.einsum("nchwij,ocij->nohw", windows, dw) + normal(4, seed=1).astype(np.float64)[:, None, None]
    sy = np.float32(np.float64(kit.run(conv(), {"x": x})["y"].max()) / 255)
    want = roundtrip(np.maximum(t, 0), sy, np.zeros(()), "uint8")
    assert np.abs(kit.run(after, {"x": x})["y"] - want).max() <= 1.01 * sy  # a tie may fall to the other side
    assert np.mean(kit.run(after, {"x": x})["y"] != want.astype(np.float32)) < 0.01


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("kind", ["per_tensor", "per_channel", "per_group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_only_matmul_as_by_numpy(dtype: str, kind: str, symmetric: bool) -> None:
    w, x = normal(40, 3), normal(2, 40, seed=1)
    made = model("g (float[2, 40] x, float[40, 3] w) => (float[2, 3] y) { [mm] y = MatMul(x, w) }", {"w": w})
    options = Quantize(
        mode="weight",
        weight=dtype,
        weight_granularity=kind,
        weight_symmetric=symmetric,
        group_size=16,  # type: ignore[arg-type]
    )
    after, _ = quantize(made, options)
    q, dq, _ = after.graph
    assert (q.op_type, dq.op_type, q.inputs[1:]) == ("QuantizeLinear", "DequantizeLinear", dq.inputs[1:])
    scale, zero = constants(q)
    assert zero.dtype.kind in "iu" and (not symmetric or len(np.unique(zero)) == 1)
    if kind == "per_group":  # the last group is short
        scale, zero = (np.repeat(p, 16, axis=0)[:40] for p in (scale, zero))
    dw = roundtrip(w, scale, zero, dtype)
    reach = np.abs(dw - w) / scale
    assert reach.max() <= (
        0.5001 if not symmetric else 1.0001
    )  # no more than half a step, but for the end of the range
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"], x @ dw, rtol=1e-5, atol=1e-5)
    assert edit.opset(after) == {"8": 21, "4": 21, "2": 25}[dtype[-1]]


def test_dynamic_matmul_before_and_after_and_as_by_numpy() -> None:
    w, x = normal(8, 3), normal(4, 8, seed=1)
    made = model("g (float[4, 8] x, float[8, 3] w) => (float[4, 3] y) { [mm] y = MatMul(x, w) }", {"w": w})
    after, _ = quantize(made, Quantize(mode="dynamic"))
    assert kit.ops(after) == [
        "DynamicQuantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMul"
    ]  # fmt: skip
    sw = (np.abs(w).max(axis=0) / np.float64(127)).astype(np.float32)
    want = roundtrip(x, *range_grid(x.min(), x.max()), "uint8") @ roundtrip(w, sw, np.zeros(()), "int8")
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"], want, rtol=1e-5, atol=1e-6)


def test_tokens_before_and_after_and_as_by_numpy() -> None:
    w, x = normal(8, 3), normal(2, 5, 8, seed=1) * np.float32(10.0) ** np.arange(5, dtype=np.float32)[:, None]
    made = model("g (float[2, 5, 8] x, float[8, 3] w) => (float[2, 5, 3] y) { [mm] y = MatMul(x, w) }", {"w": w})
    after, _ = quantize(made, Quantize(mode="dynamic", activation_granularity="per_token"))
    main = [n.op_type for n in after.graph]
    assert main == ["DynamicQuantizeToken", "Cast", "Mul", "QuantizeLinear", "DequantizeLinear", "MatMul"]
    sw = (np.abs(w).max(axis=0) / np.float64(127)).astype(np.float32)
    sx = (np.abs(x).max(-1, keepdims=True) / np.float32(127)).astype(np.float32)
    want = roundtrip(x, sx, np.zeros(()), "int8") @ roundtrip(w, sw, np.zeros(()), "int8")
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


EVERY_OP = {
    "Conv": (
        "g (float[2, 4, 6] x, float[4, 2, 3] w) => (float[2, 4, 4] y) { [n] y = Conv <group = 2> (x, w) }",
        {"w": (4, 2, 3)},
    ),
    "Conv3d": (
        "g (float[2, 1, 4, 4, 4] x, float[2, 1, 3, 3, 3] w) => (float[2, 2, 2, 2, 2] y) { [n] y = Conv(x, w) }",
        {"w": (2, 1, 3, 3, 3)},
    ),
    "ConvTranspose": (
        "g (float[2, 4, 5] x, float[4, 3, 3] w) => (float[2, 6, 7] y) { [n] y = ConvTranspose <group = 2> (x, w) }",
        {"w": (4, 3, 3)},
    ),
    "Gemm": (
        "g (float[5, 4] x, float[4, 3] w, float[3] b) => (float[5, 3] y) { [n] y = Gemm(x, w, b) }",
        {"w": (4, 3), "b": (3,)},
    ),
    "GemmT": (
        "g (float[5, 4] x, float[3, 4] w) => (float[5, 3] y) { [n] y = Gemm <transB = 1> (x, w) }", {"w": (3, 4)}
    ),
    "MatMul3d": (
        "g (float[2, 5, 4] x, float[2, 4, 3] w) => (float[2, 5, 3] y) { [n] y = MatMul(x, w) }", {"w": (2, 4, 3)}
    ),
    "Left": ("g (float[5, 4] x, float[3, 5] w) => (float[3, 4] y) { [n] y = MatMul(w, x) }", {"w": (3, 5)}),
    "Vector": ("g (float[5, 4] x, float[4] w) => (float[5] y) { [n] y = MatMul(x, w) }", {"w": (4,)}),
    "Gather": ("g (int64[2, 5] x, float[6, 4] w) => (float[2, 5, 4] y) { [n] y = Gather(w, x) }", {"w": (6, 4)}),
    "LSTM": (
        "g (float[3, 2, 4] x, float[1, 8, 4] w, float[1, 8, 2] r) => (float[3, 1, 2, 2] y) {"
        " [n] y = LSTM <hidden_size = 2> (x, w, r) }",
        {"w": (1, 8, 4), "r": (1, 8, 2)},
    ),
    "GRU": (
        "g (float[3, 2, 4] x, float[2, 6, 4] w, float[2, 6, 2] r) => (float[3, 2, 2, 2] y) {"
        ' [n] y = GRU <hidden_size = 2, direction = "bidirectional"> (x, w, r) }',
        {"w": (2, 6, 4), "r": (2, 6, 2)},
    ),
}  # fmt: skip
MODES = {
    "static": Quantize(),
    "dynamic": Quantize(mode="dynamic"),
    "token": Quantize(mode="dynamic", activation_granularity="per_token"),
    "weight": Quantize(mode="weight"),
    "w4": Quantize(mode="weight", weight="int4", weight_granularity="per_group", group_size=16),
    "w4a8": Quantize(mode="dynamic", weight="uint4", weight_symmetric=False, activation_granularity="per_token"),
    "int8": Quantize(activation="int8", activation_symmetric=True),
    "int16": Quantize(activation="uint16"),
}


@pytest.mark.parametrize("op", EVERY_OP)
@pytest.mark.parametrize("mode", MODES)
def test_every_operator_in_every_mode(op: str, mode: str) -> None:
    """Without a target anything goes, and it stays close to the float model."""
    text, shapes = EVERY_OP[op]
    made = model(text, {k: normal(*s, seed=i) for i, (k, s) in enumerate(shapes.items())})
    feeds = kit.random_feeds(made)
    after, report = quantize(made, MODES[mode], feeds, target=None)
    if op == "Left" and mode not in ("static", "int8", "int16"):
        assert report.skips[0].why == "its weights are the first operand, where no kernel takes them"
        return
    assert SCHEME in edit.find(after, "n").metadata_props
    a, b = kit.run(made, feeds)["y"], kit.run(after, feeds)["y"]
    signal = 10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2))
    assert signal > (10 if "4" in mode else 25)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_floats_get_scales_of_their_type(dtype: type) -> None:
    name = {"float16": "float16", "bfloat16": "bfloat16"}[np.dtype(dtype).name]
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g ({name}[2, 8] x, {name}[8, 3] w) => ({name}[2, 3] y) {{ [n] y = MatMul(x, w) }}"""
    made = model(text, {"w": normal(8, 3).astype(dtype)})
    after, _ = quantize(made, Quantize(mode="weight"), target=None)
    assert edit.opset(after) == 19
    assert constants(after.graph.node(0))[0].dtype == dtype
    if dtype is np.float16:
        x = normal(2, 8, seed=1).astype(dtype)
        np.testing.assert_allclose(kit.run(after, {"x": x})["y"], kit.run(made, {"x": x})["y"], atol=0.05)
    assert "float32 only" in quantize(made, Quantize(mode="dynamic"), target=None)[1].skips[0].why


def test_pairs_are_shared() -> None:
    text = """
    g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y, float[N, 4] z) {
      [a] y = MatMul(x, w)
      [b] z = MatMul(x, w)
    }"""
    for options in (Quantize(), Quantize(mode="dynamic")):
        after, _ = quantize(model(text, {"w": normal(4, 4)}), options, {"x": normal(4, 4)})
        assert len(kit.ops(after)) == 6
        a, b = edit.find(after, "a"), edit.find(after, "b")
        assert a.inputs == b.inputs


def test_moved_values_share_scale_and_initializers() -> None:
    text = """
    g (float[N, 1, 4, 4] x, float[2, 1, 1, 1] w, float[2, 2, 1, 1] v) => (float[N, 2, 2, 2] y) {
      [one] a = Conv(x, w)
      [pool] b = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
      [two] y = Conv(b, v)
    }"""
    after, _ = quantize(
        model(text, {"w": normal(2, 1, 1, 1), "v": normal(2, 2, 1, 1)}), Quantize(), {"x": normal(8, 1, 4, 4)}
    )
    before, behind = edit.find(after, "pool").inputs[0], edit.find(after, "two").inputs[0]
    assert before is not None and behind is not None
    assert before.producer().inputs[1:] == behind.producer().inputs[1:]  # type: ignore[union-attr]


def test_public_names_and_outer_readers_survive() -> None:
    text = """
    g (float[2, 1, 4, 4] x, float[1, 1, 1, 1] w, bool c) => (float[2, 1, 4, 4] y, float[2, 1, 4, 4] z) {
      [conv] y = Conv(x, w)
      [if] z = If (c) <then_branch = t () => (float[2, 1, 4, 4] a) { [inner] a = Conv(y, w) },
                       else_branch = e () => (float[2, 1, 4, 4] b) { [other] b = Add(y, y) }>
    }"""
    made = model(text, {"w": normal(1, 1, 1, 1)})
    feeds = {"x": normal(2, 1, 4, 4), "c": np.array(True)}
    after, report = quantize(made, Quantize(), {"x": feeds["x"][None], "c": feeds["c"][None]})
    assert [o.name for o in after.graph.outputs] == ["y", "z"]
    assert {s.node for s in report.plan or ()} == {"conv", "inner"}
    a, b = kit.run(made, feeds), kit.run(after, feeds)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=0.05)


def test_both_branches_of_an_if_when_both_ran() -> None:
    text = """
    g (float[2, 4] x, float[4, 4] w, float[4, 4] v, bool c) => (float[2, 4] z) {
      [if] z = If (c) <then_branch = t () => (float[2, 4] a) { [one] a = MatMul(x, w) },
                       else_branch = e () => (float[2, 4] b) { r = Relu(x) [two] b = MatMul(r, v) }>
    }"""
    made = model(text, {"w": normal(4, 4), "v": normal(4, 4, seed=1)})
    data = {"x": normal(4, 2, 4), "c": np.array([True, False, True, False])}
    after, report = quantize(made, Quantize(), data)
    assert not report.skips
    for c in (True, False):
        feeds = {"x": data["x"][0 if c else 1], "c": np.array(c)}
        np.testing.assert_allclose(kit.run(made, feeds)["z"], kit.run(after, feeds)["z"], atol=0.1)
    _, report = quantize(made, Quantize(), {"x": data["x"], "c": np.ones(4, bool)})
    assert {s.where: s.why for s in report.skips}.keys() == {"two"}
    assert "never ran" in report.skips[0].why


@pytest.mark.parametrize(
    ("w", "x", "where", "why"),
    [
        (np.full((4, 4), np.nan, np.float32), normal(4, 4), "mm", "NaN"),
        (np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32), "mm", "zero on all calibration data"),
        (np.diag([1, 0, 1, 0]).astype(np.float32), normal(4, 4), "mm[1] weight", "2 of 4 channels are all zero: 1, 3"),
        (np.zeros((4, 4), np.float32), normal(4, 4), "mm[1] weight", "all elements are zero"),
    ],
)
def test_degenerate_scales_are_found_and_named(w: np.ndarray, x: np.ndarray, where: str, why: str) -> None:
    made = model("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { [mm] y = MatMul(x, w) }", {"w": w})
    after, report = quantize(made, Quantize(), {"x": x})
    assert why in {s.where: s.why for s in report.warnings}[where]
    assert (len(report.plan or ()) == 0) == (where == "mm")
    np.testing.assert_allclose(kit.run(made, {"x": x})["y"], kit.run(after, {"x": x})["y"], atol=0.05)


def test_a_constant_operand_of_an_add_is_stored_like_an_activation() -> None:
    text = """
    g (float[N, 1, 4, 4] x, float[1, 1, 1, 1] w, float[1, 1, 4, 4] c) => (float[N, 1, 4, 4] y) {
      [one] a = Conv(x, w) [add] b = Add(a, c) [two] y = Conv(b, w)
    }"""
    made = model(text, {"w": normal(1, 1, 1, 1), "c": normal(1, 1, 4, 4)})
    after, report = quantize(made, Quantize(observer="entropy"), {"x": normal(8, 1, 4, 4)})
    assert str((report.plan or {})[Site.parse("add[1] weight")]) == "uint8 per_tensor asym minmax"
    q = edit.find(after, "add").inputs[1].producer().inputs[0].producer()  # type: ignore[union-attr]
    c = normal(1, 1, 4, 4)
    scale, zero = range_grid(c.min(), c.max())
    assert (constants(q)[0], constants(q)[1]) == (scale, zero)
    np.testing.assert_array_equal(code(c, scale, zero, "uint8").min(), 0)


def test_quantizing_twice_changes_nothing() -> None:
    x = normal(8, 2, 6, 6)
    after, _ = quantize(conv(), Quantize(), {"x": x})
    again, report = quantize(after, Quantize(), {"x": x})
    assert report.changed == 0
    kit.assert_same_structure(after, again)


def test_static_needs_data() -> None:
    with pytest.raises(BadRequest, match="calibration data"):
        quantize(conv(), Quantize())


def test_a_plan_is_a_file(tmp_path: Path) -> None:
    x, file = normal(8, 2, 6, 6), tmp_path / "plan.json"
    file.write_text(json.dumps(plan(conv(), QuantizeOptions()).to_json()))
    by_file, _ = kit.apply(conv(), ApplyPlan(str(file)), ctx=context({"x": x}))
    direct, _ = quantize(conv(), Quantize(), {"x": x})
    kit.assert_same_structure(by_file, direct)
    file.write_text("{")
    for path in (file, tmp_path / "none.json"):
        with pytest.raises(BadRequest, match="plan"):
            kit.apply(conv(), ApplyPlan(str(path)), ctx=context({"x": x}))


@pytest.mark.parametrize("site", ["con[1] weight", "conv[7] weight"])
def test_stale_sites(site: str) -> None:
    with pytest.raises(StaleSite, match=re.escape(site[:5])):
        kit.apply(conv(), ApplyPlan(Plan({Site.parse(site): Scheme()})))


def test_one_weight_under_two_schemes() -> None:
    text = """
    g (float[2, 32] x, float[32, 32] w) => (float[2, 32] y, float[2, 32] z) {
      [a] y = MatMul(x, w)
      [b] z = MatMul(x, w)
    }"""
    schemes = {
        Site.parse("a[1] weight"): Scheme(granularity=per_channel(1)),
        Site.parse("b[1] weight"): Scheme("int4", granularity=per_group(0, 16)),
    }
    after, _ = kit.apply(model(text, {"w": normal(32, 32)}), ApplyPlan(Plan(schemes)))
    out = kit.run(after, {"x": normal(2, 32)})
    assert kit.ops(after).count("QuantizeLinear") == 2
    assert 0.01 < np.abs(out["y"] - out["z"]).max() < 5
