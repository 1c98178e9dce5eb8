"""A recipe that did nothing of what it is for says so, in one line."""

from __future__ import annotations

import numpy as np
import pytest

import graphpress as gp
from graphpress.contracts import PassReport, Skip
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report.idle import idle, purpose
from tests.passes import quantizing

CONV = "g (float[N, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[N, 4, 6, 6] y) { [conv] y = Conv(x, w) }"


def conv():
    return quantizing.model(CONV, {"w": quantizing.normal(4, 3, 3, 3)})


def images() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)}


def linear():
    text = "g (float[N, 32] x, float[32, 16] w) => (float[N, 16] y) { [fc] y = MatMul(x, w) }"
    return quantizing.model(text, {"w": quantizing.normal(32, 16)})


def test_purpose() -> None:
    assert purpose(Recipe.load("w8a8")) == {"quantize"}
    assert purpose(Recipe.load("zeroq")) == {"quantize", "zeroq"}
    assert purpose(Recipe.load("fold")) == {p.name for p in Recipe.load("fold").passes}
    assert "fold-batchnorm" in purpose(Recipe.load("clean"))


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("acm", "it has no feed-forward block"),
        ("sparse24", "the first layer is kept dense"),
    ],
)
def test_all_of_it_in_one_line_and_nothing_is_trained(recipe: str, why: str) -> None:
    pytest.importorskip("torch")
    before = conv()
    model, report = gp.compile(before, recipe, images(), prove=False)
    assert report.warnings == [Skip(f"recipe {recipe!r}", f"it changed nothing: {why}")]
    assert {"where": f"recipe {recipe!r}", "why": f"it changed nothing: {why}"} in report.to_json()["warnings"]
    trained = [p for p in report.passes if p.name in ("recover", "train-acm")]
    assert all(not p.changed and not p.metrics.get("steps") for p in trained)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None and np.array_equal(weight.numpy(), before.graph.initializers["w"].const_value.numpy())


def test_a_part_of_it_by_the_pass() -> None:
    _, report = gp.compile(linear(), "w4a4-rot", {"x": quantizing.normal(20, 32)}, gate=False, prove=False)
    said = {s.where: s.why for s in report.warnings if "changed nothing" in s.why}
    assert said["rotate"] == "it changed nothing: no residual stream, attention or MLP pair was found"
    assert "recipe" not in " ".join(said) and "quantize" not in said and "remove-dead" not in said


def test_what_tidies_up_owes_nothing() -> None:
    tidy = Recipe.load("clean")
    some = [PassReport(p.name, changed=int(p.name == "remove-dead")) for p in tidy.passes]
    assert idle(tidy, some) == []
    none = [PassReport(p.name) for p in tidy.passes]
    assert idle(tidy, none) == [Skip("recipe 'clean'", "it changed nothing: there is nothing that it applies to")]


def test_a_recipe_that_goes_on_from_another_is_refused_by_its_name() -> None:
    with pytest.raises(
        BadRequest, match=r"^recipe 'fold': it is for a model at stage qdq, and this one is float\. Quant"
    ):
        gp.compile(conv(), "fold")
    made, _ = Pipeline([Quantize(mode="weight")]).run(conv())
    with pytest.raises(
        BadRequest, match=r"^recipe 'acm': it is for a model at stage float, and .* is qdq\. Give it the"
    ):
        gp.compile(made, "acm", images())


def test_a_pass_that_only_hands_data_on_has_done_its_part() -> None:
    zeroq, quantize = PassReport("zeroq", handed={"data": None}), PassReport("quantize", changed=3)
    assert idle(Recipe.load("zeroq"), [zeroq, quantize]) == []
    quantize.changed = 0
    (said,) = idle(Recipe.load("zeroq"), [zeroq, quantize])
    assert said.where == "recipe 'zeroq'"
