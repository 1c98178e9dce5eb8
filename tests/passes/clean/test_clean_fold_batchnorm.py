"""BatchNorm and scale folding against the same formula in float64, for every linear operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphpress.graph import edit
from graphpress.graph.statistics import read_statistics
from graphpress.passes.clean.fold_batchnorm import FoldBatchnorm
from graphpress.passes.clean.infer_shapes import InferShapes
from tests import kit

CHANNELS = 4


def model_of(source: str, constants: dict[str, NDArray[np.generic]]) -> ir.Model:
    """The parsed model with these extra inputs turned into initializers."""
    model = kit.parse(source)
    for value in [v for v in model.graph.inputs if v.name in constants]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(constants[value.name or ""], name=value.name)
        value.shape = ir.Shape(value.const_value.shape)
        model.graph.register_initializer(value)
    return model


def statistics(rng: np.random.Generator, channels: int = CHANNELS) -> dict[str, NDArray[np.generic]]:
    return {
        "gamma": rng.normal(size=channels).astype(np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "var": rng.uniform(0.01, 4, size=channels).astype(np.float32),
    }


PARAMETERS = "float[4] gamma, float[4] beta, float[4] mean, float[4] var"
BATCHNORM = "y = BatchNormalization<epsilon=0.001>(h, gamma, beta, mean, var)"
IMAGE = f"f (float[2,4,5,5] x, float[a,b,3,3] w, float[4] b, {PARAMETERS}) => (float[n,4,h,w] y)"
MATRIX = f"f (float[3,6] x, float[a,b] w, float[c] b, {PARAMETERS}) => (float[3,4] y)"
ROWS = f"f (float[2,3,6] x, float[a,b] w, float[c] b, {PARAMETERS}) => (float[6,4] y)"
LINEAR = {
    "conv": (IMAGE, "h = Conv(x, w, b)", (4, 4, 3, 3)),
    "conv without bias": (IMAGE, "h = Conv<pads=[1,1,1,1]>(x, w)", (4, 4, 3, 3)),
    "grouped conv": (IMAGE, "h = Conv<group=2>(x, w, b)", (4, 2, 3, 3)),
    "depthwise conv": (IMAGE, "h = Conv<group=4>(x, w, b)", (4, 1, 3, 3)),
    "conv transpose": (IMAGE, "h = ConvTranspose(x, w, b)", (4, 4, 3, 3)),
    "grouped conv transpose": (IMAGE, "h = ConvTranspose<group=2, strides=[2,2]>(x, w)", (4, 2, 3, 3)),
    "gemm": (MATRIX, "h = Gemm<alpha=0.5, beta=2.0>(x, w, b)", (6, 4)),
    "transposed gemm": (MATRIX, "h = Gemm<transB=1>(x, w)", (4, 6)),
    "matmul": (MATRIX, "h = MatMul(x, w)", (6, 4)),
    "matmul and add": (MATRIX, "g = MatMul(x, w) h = Add(g, b)", (6, 4)),
    "matmul of rows": (ROWS, "r = Constant<value_ints=[6,4]>() g = MatMul(x, w) h = Reshape(g, r)", (6, 4)),
    "matmul and add of rows": (
        ROWS,
        "r = Constant<value_ints=[6,4]>() g = MatMul(x, w) a = Add(g, b) h = Reshape(a, r)",
        (6, 4),
    ),
}


@pytest.mark.parametrize("kind", LINEAR)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_folded_batchnorm_is_the_same_function(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head, linear, shape = LINEAR[kind]
    constants = statistics(rng) | {
        "w": rng.normal(size=shape).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
    }
    model = model_of(f"{head} {{ {linear} {BATCHNORM} }}", constants)
    after, reports = kit.apply(model, InferShapes(), FoldBatchnorm())
    assert "BatchNormalization" not in kit.ops(after), [s.why for s in reports[-1].skips]
    size = {IMAGE: (2, 4, 5, 5), MATRIX: (3, 6), ROWS: (2, 3, 6)}[head]
    feeds = {"x": rng.normal(size=size).astype(np.float32)}
    got = kit.run(after, feeds)["y"]
    wanted = in_float64(model, constants, feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def in_float64(
    model: ir.Model, constants: dict[str, NDArray[np.generic]], feeds: dict[str, NDArray[np.generic]]
) -> NDArray[np.float64]:
    """The linear part by ONNX Runtime, the normalization by its formula in float64."""
    twin = model.clone()
    norm = next(n for n in edit.nodes(twin) if n.op_type == "BatchNormalization")
    twin.graph.outputs[0] = norm.inputs[0]
    (h,) = (v.astype(np.float64) for v in kit.run(twin, feeds).values())
    along = (1, -1) + (1,) * (h.ndim - 2)
    gamma, beta, mean, var = (constants[k].astype(np.float64).reshape(along) for k in ("gamma", "beta", "mean", "var"))
    return gamma * (h - mean) / np.sqrt(var + float(np.float32(0.001))) + beta


def test_names_stay_and_statistics_are_kept() -> None:
    rng = np.random.default_rng(0)
    constants = statistics(rng) | {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
    body = "h = Conv(x, w, b) n = BatchNormalization(h, gamma, beta, mean, var) y = Mul(n, two)"
    model = model_of(f"{IMAGE} <float two = {{-2.0}}> {{ {body} }}", constants)
    after, _ = kit.apply(model, FoldBatchnorm())
    (conv,) = edit.nodes(after)
    assert conv.name == "Conv_0"
    assert [v.name for v in conv.inputs if v] == ["x", "w", "b"]
    known = read_statistics(conv)
    assert known is not None
    np.testing.assert_allclose(known[0], -2 * constants["beta"].astype(float), rtol=1e-6)
    gamma, var = constants["gamma"].astype(float), constants["var"].astype(float)
    np.testing.assert_allclose(known[1], 2 * abs(gamma) * np.sqrt(var / (var + 1e-5)), rtol=1e-6)
    assert read_statistics(next(edit.nodes(model))) is None


def test_a_shared_weight_is_copied() -> None:
    rng = np.random.default_rng(1)
    constants = statistics(rng) | {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
    body = "h = Conv<pads=[1,1,1,1]>(x, w, b) n = BatchNormalization(h, gamma, beta, mean, var) y = Conv(n, w, b)"
    model = model_of(f"{IMAGE} {{ {body} }}", constants)
    after, _ = kit.apply(model, FoldBatchnorm())
    assert kit.ops(after) == ["Conv", "Conv"]
    feeds = {"x": rng.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    kit.assert_same_outputs(model, after, feeds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("h = Conv(x, w, b) y = BatchNormalization(h, gamma, beta, mean, var) z = Relu(h)", "others read"),
        ("h = Relu(x) y = BatchNormalization(h, gamma, beta, mean, var)", "comes from no Conv"),
        ("v = Neg(x) h = Conv(x, v, b) y = BatchNormalization(h, gamma, beta, mean, var)", "not constant"),
        (
            "h = Conv(x, w, b) y, m, v = BatchNormalization<training_mode=1>(h, gamma, beta, mean, var) z = Relu(m)",
            "training",
        ),
    ],
)
def test_what_cannot_fold_says_why(body: str, why: str) -> None:
    rng = np.random.default_rng(2)
    constants = statistics(rng) | {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
    outputs = "(float[n,4,h,w] y, float z)" if "z =" in body else "(float[n,4,h,w] y)"
    head = IMAGE.replace("(float[n,4,h,w] y)", outputs).replace("float z", "float[q] z")
    model = model_of(f"{head} {{ {body} }}", constants)
    after, reports = kit.apply(model, FoldBatchnorm())
    assert kit.ops(after) == kit.ops(model)
    assert why in reports[0].skips[0].why


def test_variance_that_gives_no_number_is_left_alone() -> None:
    rng = np.random.default_rng(3)
    constants = statistics(rng) | {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32), "b": np.zeros(4, np.float32)}
    constants["var"] = np.full(4, -1, np.float32)
    model = model_of(f"{IMAGE} {{ h = Conv(x, w, b) {BATCHNORM} }}", constants)
    _, reports = kit.apply(model, FoldBatchnorm())
    assert "not be finite" in reports[0].skips[0].why


@pytest.mark.parametrize(
    ("tail", "left"),
    [
        ("y = Mul(h, c)", []),
        ("y = Mul(c, h)", []),
        ("y = Add(h, c)", []),
        ("y = Sub(h, c)", []),
        ("y = Sub(c, h)", []),
        ("y = Div(h, c)", []),
        ("y = Div(c, h)", ["Div"]),
        ("a = Mul(h, c) y = Add(a, c)", []),
        ("y = Mul(h, along_width)", ["Mul"]),
        ("y = Mul(h, more_axes)", ["Mul"]),
    ],
)
def test_channelwise_scales_fold_into_conv(tail: str, left: list[str]) -> None:
    rng = np.random.default_rng(4)
    constants: dict[str, NDArray[np.generic]] = {
        "w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        "c": rng.uniform(0.5, 2, size=(4, 1, 1)).astype(np.float32),
        "along_width": rng.normal(size=3).astype(np.float32),
        "more_axes": rng.normal(size=(1, 1, 1, 1, 1)).astype(np.float32),
    }
    head = "f (float[2,4,5,5] x, float[4,4,3,3] w, float[4,1,1] c, float[3] along_width, float[1,1,1,1,1] more_axes)"
    model = model_of(
        f"{head} => (float y) {{ h = Conv(x, w) {tail} }}".replace("float y", "float[d0,d1,d2,d3] y"), constants
    )
    if "more_axes" in tail:
        model.graph.outputs[0].shape = ir.Shape([None] * 5)
    after, _ = kit.apply(model, FoldBatchnorm())
    assert kit.ops(after) == ["Conv", *left]
    kit.assert_same_outputs(model, after, {"x": rng.normal(size=(2, 4, 5, 5)).astype(np.float32)}, rtol=1e-4, atol=1e-5)
    unchanged, _ = kit.apply(model, FoldBatchnorm(scales=False))
    assert kit.ops(unchanged) == kit.ops(model)


def test_a_scale_after_matmul_folds_and_a_shift_does_not() -> None:
    rng = np.random.default_rng(5)
    constants = {"w": rng.normal(size=(6, 4)).astype(np.float32), "c": rng.normal(size=4).astype(np.float32)}
    source = """f (float[2,3,6] x, float[6,4] w, float[4] c) => (float[2,3,4] y) {
        h = MatMul(x, w)
        s = Mul(h, c)
        y = Add(s, c)
    }"""
    model = model_of(source, constants)
    after, _ = kit.apply(model, InferShapes(), FoldBatchnorm())
    assert kit.ops(after) == ["MatMul", "Add"]
    kit.assert_same_outputs(model, after, rtol=1e-5, atol=1e-5)


def test_float16_weights_stay_float16() -> None:
    rng = np.random.default_rng(6)
    constants = {k: v.astype(np.float16) for k, v in statistics(rng).items()}
    constants |= {"w": rng.normal(size=(4, 4, 3, 3)).astype(np.float16), "b": np.zeros(4, np.float16)}
    model = model_of(f"{IMAGE} {{ h = Conv(x, w, b) {BATCHNORM} }}".replace("float[", "float16["), constants)
    after, _ = kit.apply(model, FoldBatchnorm())
    assert {v.dtype for v in after.graph.initializers.values() if v.uses()} == {ir.DataType.FLOAT16}
