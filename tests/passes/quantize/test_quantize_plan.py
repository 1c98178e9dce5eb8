"""Decisions: which operators, which sites, which schemes, and why not."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest, RecipeError
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.recipe import make_pass
from graphpress.types import Plan, Role, Scheme, Site
from tests import kit
from tests.passes.quantizing import model, normal, plan, reasons

RESIDUAL = """
g (float[N, 4, 8, 8] x, float[4, 4, 3, 3] w1, float[4, 4, 3, 3] w2, float[3, 4] w3) => (float[N, 3] y) {
  [conv1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
  [relu1] b = Relu(a)
  [conv2] c = Conv <pads = [1, 1, 1, 1]> (b, w2)
  [add] d = Add(c, b)
  [relu2] e = Relu(d)
  [pool] f = GlobalAveragePool(e)
  [flat] h = Flatten(f)
  [fc] i = Gemm <transB = 1> (h, w3)
  [prob] y = Sigmoid(i)
}"""


def residual() -> ir.Model:
    return model(RESIDUAL, {"w1": normal(4, 4, 3, 3), "w2": normal(4, 4, 3, 3, seed=1), "w3": normal(3, 4, seed=2)})


def sites(p: Plan, role: Role | None = None) -> set[str]:
    return {f"{s.node}[{s.slot}]" for s in p if role in (None, s.role)}


def test_static_leaves_no_float_between_quantized_operators() -> None:
    p = plan(residual(), QuantizeOptions())
    assert sites(p, Role.WEIGHT) == {"conv1[1]", "conv2[1]", "fc[1]"}
    assert sites(p, Role.ACTIVATION) == {"conv1[0]", "conv2[0]", "add[0]", "add[1]", "pool[0]", "flat[0]", "fc[0]"}
    # The Gemm gives floats as well as integers, and only the Sigmoid reads it: neither is quantized.
    assert sites(p, Role.OUTPUT) == {"conv1[0]", "conv2[0]", "add[0]", "pool[0]", "flat[0]"}
    assert p.ties == (frozenset({Site("flat", 0, Role.ACTIVATION), Site("flat", 0, Role.OUTPUT)}),)


def test_schemes_follow_operator_and_target() -> None:
    p = plan(residual(), QuantizeOptions())
    assert str(p[Site.parse("conv1[1] weight")]) == "int8 per_channel:0 sym minmax"
    assert str(p[Site.parse("fc[1] weight")]) == "int8 per_channel:0 sym minmax"  # transB
    assert str(p[Site.parse("conv1[0] activation")]) == "uint8 per_tensor asym minmax"


def test_light_operators_among_matmuls_stay_float() -> None:
    """Gate of a SwiGLU: all its inputs could come quantized, none must; integers would only cost accuracy."""
    text = """
    g (float[N, 8] x, float[8, 8] wg, float[8, 8] wu, float[8, 8] wd) => (float[N, 8] y) {
      [gate] a = MatMul(x, wg)
      [sig] b = Sigmoid(a)
      [silu] c = Mul(a, b)
      [up] d = MatMul(x, wu)
      [mul] e = Mul(c, d)
      [down] y = MatMul(e, wd)
    }"""
    p = plan(model(text, {k: normal(8, 8) for k in ("wg", "wu", "wd")}), QuantizeOptions())
    assert set(p.nodes()) == {"gate", "up", "down"}
    assert not sites(p, Role.OUTPUT)


def test_matmul_directly_before_matmul_gives_integers() -> None:
    text = """
    g (float[N, 8] x, float[8, 8] w1, float[8, 8] w2) => (float[N, 8] y) {
      [one] a = Gemm(x, w1)
      [relu] b = Relu(a)
      [two] y = Gemm(b, w2)
    }"""
    assert sites(plan(model(text, {"w1": normal(8, 8), "w2": normal(8, 8)}), QuantizeOptions()), Role.OUTPUT) == {
        "one[0]"
    }


def test_a_gate_of_matmuls_joins_where_it_scales_a_convolution() -> None:
    """Squeeze and excitation: the Sigmoid is soft, but the product it goes into must not be float."""
    text = """
    g (float[N, 4, 8, 8] x, float[4, 4, 1, 1] w1, float[4, 4, 1, 1] w2, float[4, 4] w3, int64[4] to)
        => (float[N, 4, 8, 8] y) {
      [conv1] a = Conv(x, w1)
      [pool] b = GlobalAveragePool(a)
      [flat] c = Flatten(b)
      [fc] d = Gemm(c, w3)
      [gate] e = Sigmoid(d)
      [shape] f = Reshape(e, to)
      [mul] h = Mul(a, f)
      [conv2] y = Conv(h, w2)
    }"""
    w = {"w1": normal(4, 4, 1, 1), "w2": normal(4, 4, 1, 1), "w3": normal(4, 4), "to": np.array([0, 4, 1, 1])}
    p = plan(model(text, w), QuantizeOptions())
    assert sites(p, Role.OUTPUT) == {
        f"{n}[0]" for n in ("conv1", "pool", "flat", "fc", "gate", "shape", "mul", "conv2")
    }


def test_a_product_with_what_no_kernel_gives_in_integers_stays_float() -> None:
    """A state by its steps, as of a recurrence: steps are floats, and rounding both costs more than it saves."""
    text = """
    g (float[N, 4, 8] x, float[4, 1, 3] w1, float[8, 8] w2, float[8, 8] w3) => (float[N, 4, 8] y) {
      [conv] a = Conv <group = 4, pads = [1, 1]> (x, w1)
      [fc] b = MatMul(x, w2)
      [steps] c = Softplus(b)
      [scaled] d = Mul(a, c)
      [kept] e = Mul(d, a)
      [sum] f = Add(d, e)
      [out] y = MatMul(f, w3)
    }"""
    p = plan(model(text, {"w1": normal(4, 1, 3), "w2": normal(8, 8), "w3": normal(8, 8)}), QuantizeOptions())
    assert sites(p) == {"conv[0]", "conv[1]", "fc[0]", "fc[1]", "out[0]", "out[1]"}


def test_concat_of_fresh_inputs_shares_the_scale_of_the_result() -> None:
    text = """
    g (float[N, 4, 8, 8] x, float[4, 4, 1, 1] w1, float[4, 4, 1, 1] w2, float[4, 8, 1, 1] w3) => (float[N, 4, 8, 8] y) {
      [conv1] a = Conv(x, w1)
      [conv2] b = Conv(a, w2)
      [cat] c = Concat <axis = 1> (a, b)
      [conv3] y = Conv(c, w3)
    }"""
    w = {"w1": normal(4, 4, 1, 1), "w2": normal(4, 4, 1, 1), "w3": normal(4, 8, 1, 1)}
    (tie,) = plan(model(text, w), QuantizeOptions()).ties
    assert {str(s) for s in tie} == {"cat[1] activation", "cat[0] output"}  # conv1's result has a second reader


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (QuantizeOptions(mode="weight"), {"mm[1] weight": "int8 per_channel:1 sym minmax"}),
        (
            QuantizeOptions(mode="weight", weight="int4", weight_granularity="per_group", group_size=32),
            {"mm[1] weight": "int4 per_group:0:32 sym minmax"},
        ),
        (
            QuantizeOptions(
                mode="weight", weight="uint2", weight_symmetric=False, weight_granularity="per_group", group_size=64
            ),
            {"mm[1] weight": "uint2 per_channel:1 asym minmax"},  # a group of all 64 rows is a channel
        ),
        (
            QuantizeOptions(mode="dynamic"),
            {"mm[0] activation": "uint8 per_tensor asym dynamic", "mm[1] weight": "int8 per_channel:1 sym minmax"},
        ),
        (
            QuantizeOptions(mode="dynamic", activation_granularity="per_token", weight_granularity="per_tensor"),
            {"mm[0] activation": "int8 per_token sym dynamic", "mm[1] weight": "int8 per_tensor sym minmax"},
        ),
        (
            QuantizeOptions(mode="dynamic", weight="int4", weight_granularity="per_group", group_size=16),
            {"mm[0] activation": "uint8 per_tensor asym dynamic", "mm[1] weight": "int4 per_group:0:16 sym minmax"},
        ),
    ],
)
def test_modes_on_a_matmul(options: QuantizeOptions, want: dict[str, str]) -> None:
    text = "g (float[N, 64] x, float[64, 8] w) => (float[N, 8] y) { [mm] y = MatMul(x, w) }"
    assert {str(s): str(v) for s, v in plan(model(text, {"w": normal(64, 8)}), options).items()} == want


def test_a_granularity_no_kernel_has_gives_way_and_says_so() -> None:
    made = residual()
    options = QuantizeOptions(weight_granularity="per_group", group_size=16)
    made.graph.initializers["w1"].shape = ir.Shape([4, 32, 3, 3])
    assert str(plan(made, options)[Site.parse("conv1[1] weight")]) == "int8 per_channel:0 sym minmax"
    assert "per_channel:0 instead" in reasons(made, options)["conv1[1] weight"]


def test_batched_weights_get_one_scale_where_the_arithmetic_is_integer() -> None:
    text = "g (float[2, 5, 4] x, float[2, 4, 3] w) => (float[2, 5, 3] y) { [mm] y = MatMul(x, w) }"
    made = model(text, {"w": normal(2, 4, 3)})
    options = QuantizeOptions()
    assert str(plan(made, options)[Site.parse("mm[1] weight")]) == "int8 per_tensor sym minmax"
    assert "not of a batch of them" in reasons(made, options)["mm[1] weight"]
    for target in (None, "torch-cpu"):
        assert str(plan(made, options, target)[Site.parse("mm[1] weight")]) == "int8 per_channel:2 sym minmax"
    assert (
        str(plan(made, QuantizeOptions(mode="weight"))[Site.parse("mm[1] weight")]) == "int8 per_channel:2 sym minmax"
    )


def test_batched_weights_are_not_quantized_at_run_time_where_no_kernel_does() -> None:
    text = "g (float[2, 5, 4] x, float[2, 4, 3] w) => (float[2, 5, 3] y) { [mm] y = MatMul(x, w) }"
    made = model(text, {"w": normal(2, 4, 3)})
    options = QuantizeOptions(mode="dynamic", fallback=("weight",))
    for target in ("ort-cpu", "torch-cpu"):
        assert sites(plan(made, options, target)) == {"mm[1]"}
    assert sites(plan(made, options, None)) == {"mm[0]", "mm[1]"}


ATTENTION = """
g (float[N, 4, 8] q, float[N, 8, 4] k) => (float[N, 4, 4] y) { [qk] y = MatMul(q, k) }"""


def test_attention() -> None:
    made = kit.parse(ATTENTION)
    assert sites(plan(made, QuantizeOptions())) == {"qk[0]", "qk[1]"}
    assert sites(plan(made, QuantizeOptions(attention=False))) == set()
    assert sites(plan(made, QuantizeOptions(mode="dynamic"))) == set()
    assert sites(plan(made, QuantizeOptions(mode="dynamic", attention=True))) == {"qk[0]", "qk[1]"}
    assert reasons(made, QuantizeOptions(mode="weight")) == {"qk": "it has no weights"}
    token = QuantizeOptions(mode="dynamic", attention=True, activation_granularity="per_token")
    assert "cannot leave the sum" in reasons(made, token)["qk"]


def test_recurrent_and_embeddings() -> None:
    text = """
    g (int64[3, N] i, float[16, 8] table, float[1, 16, 8] w, float[1, 16, 4] r) => (float[3, 1, N, 4] y) {
      [emb] x = Gather(table, i)
      [lstm] y = LSTM <hidden_size = 4> (x, w, r)
    }"""
    made = model(text, {"table": normal(16, 8), "w": normal(1, 16, 8), "r": normal(1, 16, 4)})
    token = QuantizeOptions(mode="dynamic", activation_granularity="per_token")
    for options in (QuantizeOptions(mode="dynamic"), token):  # a recurrent operator knows no tokens
        p = plan(made, options)
        assert sites(p, Role.WEIGHT) == {"emb[0]", "lstm[1]", "lstm[2]"}
        assert str(p[Site.parse("lstm[0] activation")]) == "uint8 per_tensor asym dynamic"
    assert "emb" not in plan(made, QuantizeOptions(mode="weight", embeddings=False)).nodes()
    assert "no static kernel for LSTM" in reasons(made, QuantizeOptions())["lstm"]
    assert sites(plan(made, QuantizeOptions(fallback=("dynamic",)))) == {"emb[0]", "lstm[0]", "lstm[1]", "lstm[2]"}
    assert reasons(made, QuantizeOptions(fallback=("dynamic",)))["lstm"].startswith("dynamic instead of static: ")


def test_weights_of_convolutions_where_the_target_cannot_do_better() -> None:
    text = "g (float[N, 4, 8, 8] x, float[4, 2, 3, 3] w) => (float[N, 2, 10, 10] y) { [up] y = ConvTranspose(x, w) }"
    made = model(text, {"w": normal(4, 2, 3, 3)})
    assert "no static kernel for ConvTranspose" in reasons(made, QuantizeOptions())["up"]
    p = plan(made, QuantizeOptions(fallback=("dynamic", "weight")))
    assert {str(s): str(v) for s, v in p.items()} == {"up[1] weight": "int8 per_channel:1 sym minmax"}
    assert sites(plan(made, QuantizeOptions(), target=None)) == {"up[0]", "up[1]"}  # without a target anything goes


@pytest.mark.parametrize(
    ("text", "weights", "why"),
    [
        ("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { t = Transpose(w) [n] y = MatMul(x, t) }", 1, "fold"),
        ("g (float[N, 0] x, float[0, 4] w) => (float[N, 4] y) { [n] y = MatMul(x, w) }", 1, "no elements"),
        ("g (double[N, 4] x, double[4, 4] w) => (double[N, 4] y) { [n] y = MatMul(x, w) }", 1, "DOUBLE"),
        (
            "g (float[N, 4] x, int8[4, 4] w, float s) => (float[N, 4] y) {"
            " d = DequantizeLinear(w, s) [n] y = MatMul(x, d) }",
            2,
            "quantized already",
        ),
        ("g (float[N, 1, 4] x, float[1, 1, 3] w) => (float[N, 1, 2] y) { [n] y = Conv(x, w) }", 0, "computed"),
    ],
)
def test_reasons(text: str, weights: int, why: str) -> None:
    made = kit.parse(text)
    for value in list(made.graph.inputs[1 : 1 + weights]):
        made.graph.inputs.remove(value)
        shape = value.shape.numpy()  # type: ignore[union-attr]
        value.const_value = ir.tensor(np.ones(shape, value.dtype.numpy()), name=value.name)  # type: ignore[union-attr]
        made.graph.register_initializer(value)
    assert why in reasons(made, QuantizeOptions())["n"]
    assert not plan(made, QuantizeOptions())


def test_a_weight_that_a_caller_may_override_is_left_alone() -> None:
    made = model("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { [n] y = MatMul(x, w) }", {"w": normal(4, 4)})
    made.graph.inputs.append(made.graph.initializers["w"])
    assert "graph input" in reasons(made, QuantizeOptions())["n"]


def test_static_ranges_cannot_be_seen_in_a_loop() -> None:
    text = """
    g (float[2, 4] x, float[4, 4] w, int64 n, bool go) => (float[2, 4] y) {
      [loop] y = Loop (n, go, x) <body = b (int64 i, bool c, float[2, 4] s) => (bool d, float[2, 4] t) {
        d = Identity(c) [inner] t = MatMul(s, w) }>
    }"""
    made = model(text, {"w": normal(4, 4)})
    assert "repeats" in reasons(made, QuantizeOptions())["inner"]
    assert sites(plan(made, QuantizeOptions(fallback=("dynamic",)))) == {"inner[0]", "inner[1]"}


def test_ignore_and_op_types() -> None:
    made = residual()
    assert reasons(made, QuantizeOptions(ignore=("conv*",)))["conv1"] == "ignored on request"
    assert set(plan(made, QuantizeOptions(ignore=("conv*",))).nodes()) == {"fc"}
    assert set(plan(made, QuantizeOptions(op_types=("Conv",))).nodes()) == {"conv1", "conv2"}
    assert "add" not in plan(made, QuantizeOptions(ignore=("add",))).nodes()
    with pytest.raises(BadRequest, match="Did you mean 'conv1'"):
        plan(made, QuantizeOptions(ignore=("conv11",)))


def test_sites_override_everything() -> None:
    made, over = residual(), {"conv*": "int4 mse", "fc": "float", "conv2[0] activation": "uint16 sym", "pool": "float"}
    p = plan(made, QuantizeOptions(sites=over, ignore=("conv2",)))
    assert str(p[Site.parse("conv1[1] weight")]) == "int4 per_channel:0 sym mse"
    assert str(p[Site.parse("conv2[1] weight")]) == "int4 per_channel:0 sym mse"
    assert str(p[Site.parse("conv2[0] activation")]) == "uint16 per_tensor sym minmax"
    assert not {"fc", "pool"} & set(p.nodes())
    p = plan(made, QuantizeOptions(mode="weight", sites={"fc": "uint4 per_group:16 asym"}))
    assert str(p[Site.parse("fc[1] weight")]) == "uint4 per_group:1:16 asym minmax"


@pytest.mark.parametrize(
    ("selector", "text", "says"),
    [
        ("nothing", "float", "matches no node"),
        ("add", "int4", "none of these nodes has weights"),
        ("add[5] activation", "int8", "no such slot"),
        ("ad[0] activation", "int8", "Did you mean 'add'"),
        ("conv1", "int5", "unknown storage type"),
        ("conv1[0] activation", "per_channel", "needs an axis"),
    ],
)
def test_sites_that_make_no_sense(selector: str, text: str, says: str) -> None:
    with pytest.raises(BadRequest, match="(?s).*" + says.replace("[", r"\[")):
        plan(residual(), QuantizeOptions(sites={selector: text}))


@pytest.mark.parametrize(
    "options",
    [
        {"activation_granularity": "per_token"},
        {"mode": "weight", "activation": "int8"},
        {"mode": "dynamic", "activation": "int8"},
        {"group_size": 48},
    ],
)
def test_contradictory_options(options: dict) -> None:
    with pytest.raises(BadRequest, match="quantize: option"):
        QuantizeOptions(**options)


def test_recipes_check_types() -> None:
    assert make_pass("quantize", {"mode": "weight", "weight": "int4", "ignore": ["a*"]}).ignore == ("a*",)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="mode"):
        make_pass("quantize", {"mode": "statik"})
    with pytest.raises(RecipeError, match="Did you mean 'observer'"):
        make_pass("quantize", {"obsever": "mse"})


def test_a_clip_is_absorbed_only_if_zero_survives_it() -> None:
    text = """
    g (float[N, 1, 4, 4] x, float[1, 1, 1, 1] w, float[1, 1, 1, 1] v, float lo, float hi) => (float[N, 1, 4, 4] y) {
      [one] a = Conv(x, w) [clip] b = Clip(a, lo, hi) [two] y = Conv(b, v)
    }"""
    w = {"w": normal(1, 1, 1, 1), "v": normal(1, 1, 1, 1), "hi": np.float32(6)}
    assert "clip" not in plan(model(text, {**w, "lo": np.float32(0)}), QuantizeOptions()).nodes()
    assert "clip" in plan(model(text, {**w, "lo": np.float32(1)}), QuantizeOptions()).nodes()


ENDS = """
g (float[N, 64] x, float[64, 64] a, float[64, 64] b, float[64, 64] c) => (float[N, 64] y) {
    h = MatMul(x, a)
    i = Relu(h)
    j = MatMul(i, b)
    k = Relu(j)
    y = MatMul(k, c)
}
"""


def test_layers_at_the_ends_get_8_bits_on_request() -> None:
    made = model(ENDS, {n: normal(64, 64, seed=i) for i, n in enumerate("abc")})
    options = QuantizeOptions(
        mode="dynamic", weight="int4", weight_granularity="per_group", group_size=32, activation="int4",
        activation_granularity="per_token", kernels="preferred", ends="int8",
    )  # fmt: skip
    bits = {str(s): v.bits for s, v in plan(made, options).items()}
    names = [n.name for n in made.graph if n.op_type == "MatMul"]
    wanted = dict(zip(names, (8, 4, 8), strict=True))
    assert {s.split("[")[0]: b for s, b in bits.items()} == wanted and len(bits) == 6
    plain = plan(made, replace(options, ends="same"))
    assert {v.bits for v in plain.values()} == {4}


def test_layers_at_the_ends_stay_float_on_request() -> None:
    made = model(ENDS, {n: normal(64, 64, seed=i) for i, n in enumerate("abc")})
    names = [n.name for n in made.graph if n.op_type == "MatMul"]
    options = QuantizeOptions(ends="float")
    assert {s.node for s in plan(made, options)} == {names[1]}
    why = "it stands at an end of the model, which stay float (ends: float)"
    assert reasons(made, options) == {names[0]: why, names[2]: why}


def test_what_has_no_tokens_gets_one_scale_at_run_time_on_request() -> None:
    made = model(
        "g (float[N, 4, 8, 8] x, float[8, 4, 3, 3] w) => (float[N, 8, 6, 6] y) { y = Conv(x, w) }",
        {"w": normal(8, 4, 3, 3)},
    )
    options = QuantizeOptions(
        mode="dynamic", weight="int4", activation="int4", activation_granularity="per_token", kernels="preferred",
    )  # fmt: skip
    assert not plan(made, options)
    found = plan(made, replace(options, fallback=("dynamic",)))
    assert {str(v) for s, v in found.items() if s.role is Role.ACTIVATION} == {
        str(Scheme("uint8", symmetric=False, dynamic=True))
    }
    assert [v.dtype for s, v in found.items() if s.role is Role.WEIGHT] == ["int4"]
