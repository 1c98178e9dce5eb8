"""What is compared: natures as the gate finds them, and inner values for outputs that nobody can compare."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import graphpress as gp
from graphpress.backends import ort, reference
from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.hush import hushed
from graphpress.job.natures import Kind
from graphpress.observe.data import CalibrationData
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.watched import Watched, watch
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.recipe import Recipe
from tests import kit
from tests.passes.quantizing import model, normal


def context(feeds: dict[str, np.ndarray], **options: Any) -> Context:
    data = CalibrationData.from_arrays(feeds)
    return Context(data=data, run=partial(ort.execute, threads=1), oracle=reference.execute, **options)


def seen(text: str, weights: dict[str, np.ndarray], feeds: dict[str, np.ndarray], **options: Any) -> Watched:
    made, _ = kit.apply(model(text, weights), InferShapes())
    return watch(made, context(feeds, **options))


def layers(columns: int, noise: float) -> tuple[str, dict[str, np.ndarray]]:
    """Two layers and a head whose columns are one and a little of their own."""
    head = normal(32, 1, seed=3) * 0.3 + normal(32, columns, seed=4) * noise
    text = f"""g (float[N, 16] x, float[16, 32] w, float[32, 32] v, float[32, {columns}] h) => (float[N, C] y) {{
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Tanh(c) y = MatMul(d, h) }}"""
    return text, {"w": normal(16, 32, seed=1) * 0.25, "v": normal(32, 32, seed=2) * 0.15, "h": head.astype(np.float32)}


ROWS = {"x": normal(80, 16, seed=5)}


@pytest.mark.parametrize(("columns", "noise"), [(1, 0.0), (12, 0.002)])
def test_heads_that_mean_themselves_are_kept_by_mixed(columns: int, noise: float) -> None:
    """A class of one is no class, and of columns that move together a softmax sees nothing."""
    text, weights = layers(columns, noise)
    made = model(text, weights)
    recipe = Recipe.load("mixed").set(["allocate.usual_size=0.4x"])
    low, _ = gp.compile(made, recipe, ROWS, gate=False, prove=False)
    want, got = (reference.execute(m)(ROWS)["y"].astype(np.float64) for m in (made, low))
    assert 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()) > 25


def test_the_nature_is_the_gates_and_what_the_user_says_counts() -> None:
    text, weights = layers(12, 0.3)
    assert {n: v.kind for n, v in seen(text, weights, ROWS).natures.items()} == {"y": Kind.CLASSES}
    assert seen(text, weights, ROWS, outputs={"y": "embedding"}).natures["y"].kind is Kind.EMBEDDING
    quiet = seen(*layers(12, 0.002), ROWS)  # columns that move together
    assert quiet.natures["y"].kind is Kind.VALUES
    named, weights = text.replace("C] y)", "C] logits)").replace("y = ", "logits = "), weights
    assert seen(named, weights, ROWS).natures["logits"].sure


BOXES = """
g (float[1, 3, 16, 16] x, float[8, 3, 3, 3] w, float[4, 8, 1, 1] b, float[2, 8, 1, 1] c, float[1, 64, 4] anchors)
   => (float[1, D, 4] found, int64[D, 3] sel)
<int64[3] rb = {0, 4, -1}, int64[3] rc = {0, 2, -1}, int64[1] most = {10}, float[1] iou = {0.5},
 float[1] least = {0.55}, int64[1] two = {2}, int64[1] axis = {1}> {
    [stem] s = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)
    f = Relu(s)
    [box] b0 = Conv(f, b)
    b1 = Sigmoid(b0)
    b2 = Reshape(b1, rb)
    b3 = Transpose<perm = [0, 2, 1]>(b2)
    boxes = Add(b3, anchors)
    [cls] c0 = Conv(f, c)
    c1 = Reshape(c0, rc)
    scores = Sigmoid(c1)
    sel = NonMaxSuppression(boxes, scores, most, iou, least)
    i0 = Gather<axis = 1>(sel, two)
    i1 = Squeeze(i0, axis)
    found = Gather<axis = 1>(boxes, i1)
}
"""
PARTS = {
    "w": normal(8, 3, 3, 3, seed=1) * 0.3, "b": normal(4, 8, 1, 1, seed=2) * 0.3, "c": normal(2, 8, 1, 1, seed=3) * 0.5,
    "anchors": np.abs(normal(1, 64, 4, seed=4)) * 3,
}  # fmt: skip
PICTURES = {"x": np.random.default_rng(6).uniform(0, 1, (12, 3, 16, 16)).astype(np.float32)}


def test_rows_that_the_data_choose_are_compared_before_they_are_chosen() -> None:
    found = seen(BOXES, PARTS, PICTURES)
    assert set(found.natures) == {"boxes", "scores"}
    assert [s.where for s in found.left_out] == ["output 'found'", "output 'sel'"]
    assert "NonMaxSuppression chooses; what lies before is compared: boxes, scores" in found.left_out[0].why
    low, report = gp.compile(model(BOXES, PARTS), "mixed", PICTURES, gate=False, prove=False)
    assert [v.name for v in low.graph.outputs] == ["found", "sel"]
    (done,) = (p for p in report.passes if p.name == "allocate")
    assert 0 < float(done.metrics["divergence"]) < 0.1
    assert any("NonMaxSuppression" in s.why for s in done.skips)


def test_an_output_whose_shape_depends_on_the_data_is_not_compared() -> None:
    """Rows above zero: how many there are changes with any rounding."""
    text = """g (float[4, 16] x, float[16, 8] w) => (float[4, 8] y, float[D] kept) {
        [fc] y = MatMul(x, w) n = NonZero(y) t = Transpose<perm = [1, 0]>(n) kept = GatherND(y, t) }"""
    relu = text.replace("n = NonZero(y)", "r = Relu(y) n = NonZero(r)")
    found = seen(relu, {"w": normal(16, 8)}, {"x": normal(40, 16)})
    assert set(found.natures) == {"y", "r"} and "shape that depends on the data" in found.left_out[0].why


def test_an_output_without_elements_is_not_compared() -> None:
    text = """g (float[1, 4, L] x, float[8, 4, 3] w, float[4, 8, 1] v) => (float[1, 4, L] y, float[1, 8, 0] none)
    <int64[1] from = {0}, int64[1] to = {0}, int64[1] axis = {2}> {
        [c1] c = Conv<pads = [1, 1]>(x, w) none = Slice(c, from, to, axis) [c2] y = Conv(c, v) }"""
    weights = {"w": normal(8, 4, 3) * 0.3, "v": normal(4, 8, 1, seed=1) * 0.3}
    found = seen(text, weights, {"x": normal(40, 4, 9)})
    assert set(found.natures) == {"y"}
    assert [(s.where, s.why) for s in found.left_out] == [("output 'none'", "not compared: it has no elements")]
    made, _ = kit.apply(model(text, weights), InferShapes())
    assert len(Probe(made, context({"x": normal(40, 4, 9)}), 8).data) == 8


def test_a_choice_alone_is_compared_by_what_it_is_made_from() -> None:
    """And an operator that only the choice sees is not free: it would be stored in two bits."""
    text = """g (float[N, 16] x, float[16, 24] w, float[24, 6] v, float[24, 5] u) => (float[N, 5] y, int64[N] best) {
        [in] a = MatMul(x, w) b = Relu(a) [one] z = MatMul(b, v) best = ArgMax<axis = 1, keepdims = 0>(z)
        [two] y = MatMul(b, u) }"""
    weights = {"w": normal(16, 24), "v": normal(24, 6, seed=1), "u": normal(24, 5, seed=2)}
    assert set(seen(text, weights, ROWS).natures) == {"y", "z"}
    shown = text.replace("int64[N] best)", "int64[N] best, float[N, 6] p)").replace("best = ", "p = Softmax(z) best = ")
    assert set(seen(shown, weights, ROWS).natures) == {"y", "p"}  # p shows it already


def test_a_model_with_nothing_to_compare_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"nothing to compare: output 's' holds no floats.*Give the model an output"):
        seen("g (float[N, 4] x) => (int64[2] s) { s = Shape(x) }", {}, {"x": normal(8, 4)})


NARROW = "g (float[N, 2] x, float[2, 200] w) => (float[N, 200] y) { [fc] y = MatMul(x, w) }"


def test_a_budget_that_nobody_asked_for_is_held_as_far_as_it_goes() -> None:
    made, data = model(NARROW, {"w": normal(2, 200)}), {"x": normal(80, 2)}
    _, report = gp.compile(made, "mixed", data, gate=False, prove=False)
    (warned,) = (w for w in report.warnings if w.where == "max_size")
    assert "the recipe's own budget, max_size 0.3x" in warned.why and "of 0.5" in warned.why
    (done,) = (p for p in report.passes if p.name == "allocate")
    assert "nobody gave one" in str(done.metrics["budget"])
    with pytest.raises(BadRequest, match="no plan keeps the budget"):
        gp.compile(made, "mixed", data, gate=False, prove=False, max_size="0.3x")
    asked = Recipe.load("mixed").set(["allocate.max_size=0.3x"])
    with pytest.raises(BadRequest, match="no plan keeps the budget"):
        gp.compile(made, asked, data, gate=False, prove=False)


def test_the_solver_never_prints(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS writes through C, which keeps lines back until long after the call."""
    solve, said = scipy.optimize.milp, []

    def loud(*args: Any, **options: Any) -> Any:
        said.append(ctypes.CDLL(None).puts(b"a line of the solver"))
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    text, weights = layers(12, 0.3)
    _, report = gp.compile(model(text, weights), "mixed", ROWS, gate=False, prove=False)
    ctypes.CDLL(None).fflush(None)
    assert said and "".join(capfd.readouterr()) == ""
    (done,) = (p for p in report.passes if p.name == "allocate")
    assert done.metrics["budget"] == "max_size 0.3x, the recipe's own: nobody gave one"
    assert float(done.metrics["size"]) <= 0.3 and not report.warnings


def test_what_is_said_before_and_after_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before\n")
    with hushed():
        os.write(1, b"within\n")
        os.write(2, b"within\n")
    os.write(1, b"after\n")
    assert "".join(capfd.readouterr()) == "before\nafter\n"
