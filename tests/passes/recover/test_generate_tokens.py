"""Tokens that a model writes: against chains of known probabilities, the inputs beside them, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.inputs.generate_tokens import GenerateTokens
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from tests.passes.quantizing import model

VOCABULARY = 5
BIGRAMS = np.random.default_rng(0).dirichlet(np.full(VOCABULARY, 0.7), VOCABULARY).astype(np.float32)
CHAIN = """<ir_version: 10, opset_import: ["" : 20]>
chain (int64[N,S] ids, float[5,5] table) => (float[N,S,5] logits) { [look] logits = Gather (table, ids) }"""


def chain(text: str = CHAIN) -> ir.Model:
    """The next token depends on the one before it alone: with probabilities ``BIGRAMS``."""
    return model(text, {"table": np.log(BIGRAMS)})


def run(step: GenerateTokens, of: ir.Model, seed: int = 0, data: CalibrationData | None = None) -> PassReport:
    ctx = Context(run=reference.execute, oracle=reference.execute, seed=seed, data=data)
    return Pipeline([step]).run(of, ctx)[1][0]


def made(found: PassReport) -> dict[str, np.ndarray]:
    parts = list(found.handed["data"].batches(1000))
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def test_tokens_follow_the_distribution_of_the_model() -> None:
    """Counts of pairs against the chain's probabilities: within four standard errors of each."""
    ids = made(run(GenerateTokens(samples=400, length=30, greedy=0, batch=400), chain()))["ids"]
    for before in range(VOCABULARY):
        after = ids[:, 1:][ids[:, :-1] == before]
        share = np.bincount(after, minlength=VOCABULARY) / len(after)
        error = np.sqrt(BIGRAMS[before] * (1 - BIGRAMS[before]) / len(after))
        assert (np.abs(share - BIGRAMS[before]) <= 4 * error + 1e-9).all()


def test_the_first_ones_are_the_likeliest_and_the_start_is_even() -> None:
    ids = made(run(GenerateTokens(samples=500, length=6, greedy=3, batch=500), chain()))["ids"]
    for at in range(1, 4):
        assert (ids[:, at] == BIGRAMS.argmax(1)[ids[:, at - 1]]).all()
    assert not (ids[:, 4] == BIGRAMS.argmax(1)[ids[:, 3]]).all()
    assert (np.bincount(ids[:, 0], minlength=VOCABULARY) > 60).all()  # 100 each, standard deviation 9


def test_a_low_temperature_draws_the_likeliest() -> None:
    ids = made(run(GenerateTokens(samples=16, length=12, greedy=0, temperature=1e-3), chain()))["ids"]
    assert (ids[:, 1:] == BIGRAMS.argmax(1)[ids[:, :-1]]).all()


def test_a_fixed_length_gives_what_an_open_one_gives() -> None:
    fixed = chain(CHAIN.replace("N,S", "2,9"))
    step = GenerateTokens(samples=6, length=9, batch=2)
    assert np.array_equal(made(run(step, fixed))["ids"], made(run(step, chain()))["ids"])


def test_masks_positions_and_empty_caches_are_fed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
net (int64[N,S] input_ids, int64[N,S] attention_mask, int64[N,S] position_ids, float[N,2,P,4] past_key_values_0_key,
float[5,5] table) => (float[N,S,5] logits, float[N,2,P,4] present_0_key) {
  s = Add (attention_mask, position_ids)
  f = Cast <to = 1> (s)
  u = Unsqueeze (f, axis)
  z = Sub (u, u)
  g = Gather (table, input_ids)
  logits = Add (g, z)
  present_0_key = Identity (past_key_values_0_key)
}"""
    text = text.replace("float[5,5] table", "float[5,5] table, int64[1] axis")
    net = model(text, {"table": np.log(BIGRAMS), "axis": np.array([2])})
    found = made(run(GenerateTokens(samples=4, length=7), net))
    assert (found["attention_mask"] == 1).all() and found["past_key_values_0_key"].shape == (4, 2, 0, 4)
    assert np.array_equal(found["position_ids"], np.tile(np.arange(7), (4, 1)))


def test_random_tokens_are_even_over_the_vocabulary() -> None:
    ids = made(run(GenerateTokens(samples=200, length=50, how="random"), chain()))["ids"]
    assert (np.abs(np.bincount(ids.ravel(), minlength=5) / ids.size - 0.2) < 0.02).all()  # five standard errors


def test_the_seed_decides() -> None:
    step = GenerateTokens(samples=4, length=10)
    one, again, other = (made(run(step, chain(), s))["ids"] for s in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_compile_calibrates_and_gates_on_them_and_says_so() -> None:
    recipe = Recipe.load({"name": "free", "passes": [{"generate-tokens": {"samples": 16, "length": 8}},
                                                     {"quantize": {"mode": "static"}}]})  # fmt: skip
    text = """<ir_version: 10, opset_import: ["" : 20]>
net (int64[N,S] ids, float[5,8] table, float[8,5] head) => (float[N,S,5] logits) {
  [look] x = Gather (table, ids)
  [head] logits = MatMul (x, head)
}"""
    rng = np.random.default_rng(1)
    net = model(text, {"table": rng.normal(size=(5, 8)), "head": rng.normal(size=(8, 5))})
    _, report = gp.compile(net, recipe, None, prove=False)
    assert report.data["made_by"] == "generate-tokens" and "generate-tokens made" in report.gate.left_out


def test_given_data_are_used_instead() -> None:
    data = CalibrationData.from_arrays({"ids": np.zeros((4, 3), np.int64)})
    found = run(GenerateTokens(), chain(), data=data)
    assert not found.handed and "data was given" in found.skips[0].why


BOTH = """<ir_version: 10, opset_import: ["" : 20]>
net (int64[N,S] ids, int64[1] axes, float[5,5] table) => (float[N,S,5] logits) {
  g = Gather (table, ids)
  m = ReduceMean (g, axes)
  logits = Add (g, m)
}"""


@pytest.mark.parametrize(("text", "weights", "what"), [
    (BOTH, {"axes": np.array([1])}, "no causal language model"),
    (CHAIN.replace("int64[N,S] ids", "int64[N,S] ids, float[N,3] extra"), {}, "input 'extra': nothing is known"),
    (CHAIN.replace("int64[N,S] ids", "float[N,S] ids").replace("Gather (table, ids)", "MatMul (ids, table)"), {},
     "0 inputs take token ids"),
    (CHAIN.replace("(float[N,S,5] logits)", "(float[N,5] logits)").replace(
        "logits = Gather (table, ids)", "g = Gather (table, ids) logits = ReduceMax <keepdims = 0> (g, axes)"
    ).replace("float[5,5] table", "float[5,5] table, int64[1] axes"), {"axes": np.array([1])},
     "no output holds scores"),
])  # fmt: skip
def test_what_is_no_causal_language_model_is_refused(text: str, weights: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        run(GenerateTokens(samples=2, length=4), model(text, {"table": np.log(BIGRAMS), **weights}))


@pytest.mark.parametrize(("options", "what"), [
    ({"samples": 0}, "samples"), ({"length": 1}, "length"), ({"batch": 0}, "batch"), ({"greedy": -1}, "greedy"),
    ({"temperature": 0.0}, "temperature"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        GenerateTokens(**options)
