"""Cross-layer equalization: exact, both sides as large, three around a depthwise layer, and what stops it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import STATISTICS
from graphpress.passes.equalize.equalize_layers import EqualizeLayers
from graphpress.passes.quantize.quantize import Quantize
from tests import kit
from tests.passes.quantizing import context, model, normal
from tests.passes.rotating import deviation, double, torch_run

PAIR = """
g (float[N, 16] x, float[16, 24] a, float[24] b, float[24, 8] c, float[8] d) => (float[N, 8] y) {
    h = MatMul(x, a)
    k = Add(h, b)
    r = Relu(k)
    y = Gemm(r, c, d)
}"""
TRIPLE = """
g (float[N, 3, 9, 9] x, float[12, 3, 3, 3] a, float[12] b, float[12, 1, 3, 3] c, float[12] d, float[6, 12, 1, 1] e)
    => (float[N, 6, 5, 5] y) {
    h = Conv(x, a, b)
    r = Relu(h)
    k = Conv <group = 12> (r, c, d)
    s = Relu(k)
    y = Conv(s, e)
}"""
SHAPES = {
    PAIR: {"a": (16, 24), "b": (24,), "c": (24, 8), "d": (8,)},
    TRIPLE: {"a": (12, 3, 3, 3), "b": (12,), "c": (12, 1, 3, 3), "d": (12,), "e": (6, 12, 1, 1)},
}


def built(text: str, seed: int) -> ir.Model:
    """Rows of the first weight over three decades."""
    arrays = {n: normal(*s, seed=seed + i) for i, (n, s) in enumerate(SHAPES[text].items())}
    wild = np.logspace(-1.5, 1.5, len(arrays["b"]))[np.random.default_rng(seed).permutation(len(arrays["b"]))]
    arrays["a"] = arrays["a"] * (wild if text is PAIR else wild[:, None, None, None])
    arrays["b"] = arrays["b"] * wild
    made = model(text, arrays)
    ShapeInferencePass()(made)
    return made


def array(made: ir.Model, name: str) -> np.ndarray:
    found = edit.constant(made.graph.initializers[name])
    assert found is not None
    return found


def equalized(made: ir.Model, **options: Any) -> tuple[ir.Model, PassReport]:
    after, (report,) = kit.apply(made, EqualizeLayers(**options), ctx=context(None, None))
    return after, report


@pytest.mark.parametrize("text", [PAIR, TRIPLE], ids=["pair", "triple"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_function_stays_in_double_precision(text: str, seed: int) -> None:
    made = double(built(text, seed))
    feeds = {"x": normal(4, *([16] if text is PAIR else [3, 9, 9]), seed=9).astype(np.float64)}
    after, report = equalized(made)
    assert report.changed == (1 if text is PAIR else 2)
    assert deviation(torch_run(made, feeds), torch_run(after, feeds)) <= 1e-10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_sides_become_the_root_of_their_product(seed: int) -> None:
    made = built(PAIR, seed)
    after, _ = equalized(made)
    wanted = np.sqrt(np.abs(array(made, "a")).max(0) * np.abs(array(made, "c")).max(1))
    np.testing.assert_allclose(np.abs(array(after, "a")).max(0), wanted, rtol=2e-3)
    np.testing.assert_allclose(np.abs(array(after, "c")).max(1), wanted, rtol=2e-3)
    s = np.sqrt(np.abs(array(made, "a")).max(0) / np.abs(array(made, "c")).max(1))
    np.testing.assert_allclose(array(after, "b"), array(made, "b") / s, rtol=2e-3)
    np.testing.assert_array_equal(array(after, "d"), array(made, "d"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_around_a_depthwise_layer_become_the_cubic_root_of_their_product(seed: int) -> None:
    made = built(TRIPLE, seed)
    after, _ = equalized(made)

    def sizes(m: ir.Model) -> list[np.ndarray]:
        return [np.abs(array(m, "a")).max((1, 2, 3)), np.abs(array(m, "c")).max((1, 2, 3)),
                np.abs(array(m, "e")).max((0, 2, 3))]  # fmt: skip

    wanted = np.cbrt(np.prod(sizes(made), axis=0))
    for found in sizes(after):
        np.testing.assert_allclose(found, wanted, rtol=5e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_8_bits_with_one_scale_for_a_tensor_lose_a_third_at_most(seed: int) -> None:
    made, x = built(PAIR, seed), {"x": normal(64, 16, seed=8)}
    c = (
        array(made, "c") / np.abs(array(made, "a")).max(0)[:, None]
    )  # what is small behind one is large before the other
    edit.overwrite(made.graph.initializers["c"], c)
    eight = Quantize(mode="weight", weight="int8", weight_granularity="per_tensor", kernels="preferred")

    def error(*passes: Any) -> float:
        after, _ = kit.apply(made, *passes, ctx=context(None, None))
        wanted, got = (kit.run(m, x)["y"].astype(np.float64) for m in (made, after))
        return float(np.square(got - wanted).sum() / np.square(wanted).sum())

    assert error(EqualizeLayers(), eight) * 3 <= error(eight)


@pytest.mark.parametrize("op", ["Gelu", "Sigmoid", "HardSwish", "Tanh"])
def test_what_is_not_homogeneous_and_branches_are_left_with_the_reason(op: str) -> None:
    made = built(PAIR, 0)
    (relu,) = [n for n in made.graph if n.op_type == "Relu"]
    relu.op_type = op
    made.opset_imports[""] = 21
    after, report = equalized(made)
    assert report.changed == 0 and any(op in s.why for s in report.skips)
    np.testing.assert_array_equal(array(after, "a"), array(made, "a"))


def test_a_value_that_leaves_the_graph_too_stays() -> None:
    made = built(PAIR, 0)
    made.graph.outputs.append(next(o for n in made.graph for o in n.outputs if o.name == "r"))
    _, report = equalized(made)
    assert report.changed == 0 and len(report.skips) == 1


def test_dead_channels_stay_and_notes_of_batchnorm_follow() -> None:
    made = built(PAIR, 0)
    a = array(made, "a").copy()
    a[:, 3] = 0
    edit.overwrite(made.graph.initializers["a"], a)
    node = next(n for n in made.graph if n.op_type == "MatMul")
    STATISTICS.set(node, {"mean": [1.0] * 24, "std": [2.0] * 24})
    after, _ = equalized(made)
    assert not array(after, "a")[:, 3].any() and np.isfinite(array(after, "c")).all()
    np.testing.assert_array_equal(array(after, "c")[3], array(made, "c")[3])
    told = STATISTICS.get(next(n for n in after.graph if n.op_type == "MatMul"))
    assert told is not None
    np.testing.assert_allclose(told["mean"], array(after, "b") / array(made, "b"), rtol=1e-5)
    np.testing.assert_allclose(told["std"], 2 * array(after, "b") / array(made, "b"), rtol=1e-5)


def test_a_second_run_finds_nothing_and_rounds_are_positive() -> None:
    after, _ = equalized(built(TRIPLE, 1))
    assert equalized(after)[1].changed == 0
    with pytest.raises(BadRequest, match="option 'rounds'"):
        equalized(built(PAIR, 0), rounds=0)
