"""What is blamed when the gate fails is what rounds, by what it does alone; and what is advised has been measured."""

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.job import remedy
from graphpress.job.bars import Gate
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from tests.passes import quantizing

RNG = np.random.default_rng(0)


def failed(model: ir.Model, recipe: Recipe | str, x: np.ndarray, **options) -> gp.GateError:
    with pytest.raises(gp.GateError) as caught:
        gp.compile(model, recipe, {"x": x.astype(np.float32)}, prove=False, **options)
    return caught.value


def chain() -> ir.Model:
    text = """
    g (float[N, 8] x, float[8, 8] a, float[8, 8] b, float[8, 8] c) => (float[N, 8] y) {
      [one] p = MatMul(x, a) [t] q = Tanh(p) [two] r = MatMul(q, b) [u] s = Tanh(r) [three] y = MatMul(s, c)
    }"""
    return quantizing.model(text, {n: RNG.normal(size=(8, 8)) for n in "abc"})


def moved() -> ir.Model:
    """Layers behind which only data movement stands on the way to the output."""
    text = """
    g (float[N, 3, 8, 8] x, float[8, 3, 3, 3] a, float[8, 8, 3, 3] b, float[4, 6] c) => (float[N, 6] y)
      <int64[1] from = {0}, int64[1] to = {4}, int64[1] axis = {1}, int64[2] flat = {0, -1}> {
      [first] p = Conv<pads = [1, 1, 1, 1]>(x, a) [relu] q = Relu(p)
      [second] r = Conv<pads = [1, 1, 1, 1]>(q, b) [pool] s = GlobalAveragePool(r)
      [slice] t = Slice(s, from, to, axis) [reshape] u = Reshape(t, flat) [head] y = MatMul(u, c)
    }"""
    sizes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "c": (4, 6)}
    return quantizing.model(text, {n: 0.3 * RNG.normal(size=s) for n, s in sizes.items()})


def rounded(array: np.ndarray) -> np.ndarray:
    """To codes -127 .. 127, a scale for each column."""
    scale = np.abs(array).max(0) / 127
    return np.rint(array / scale) * scale


def test_the_blame_is_what_one_site_alone_does_to_the_outputs() -> None:
    model, x = chain(), RNG.normal(size=(60, 8))
    gate = Gate(min_sqnr=90, outputs={"y": "values"})
    error = failed(model, Recipe("r", (Quantize(mode="weight", sites={"two": "int2"}),), gate=gate), x)
    assert error.report.gate.blame[0][0] == "two"
    assert [n for n, _ in error.report.gate.blame[1:]] == sorted(
        ("one", "three"), key=lambda n: dict(error.report.gate.blame)[n]
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_lonely_site_is_measured_against_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, x = rng.normal(size=(8, 8)), rng.normal(size=(8, 8)), rng.normal(size=(1, 8)).repeat(40, 0)
    text = "g (float[N, 8] x, float[8, 8] a, float[8, 8] b) => (float[N, 8] y) { [one] p = MatMul(x, a) [two] y = MatMul(p, b) }"  # fmt: skip # noqa: E501
    recipe = Recipe("r", (Quantize(mode="weight"),), gate=Gate(min_sqnr=90))
    blame = dict(failed(quantizing.model(text, {"a": a, "b": b}), recipe, x).report.gate.blame)
    wanted = x[0] @ a @ b
    for name, found in (("one", x[0] @ rounded(a) @ b), ("two", x[0] @ a @ rounded(b))):
        noise = ((found - wanted) ** 2).sum() / (wanted**2).sum()
        assert blame[name] == pytest.approx(-10 * np.log10(noise), abs=0.01)


def test_data_movement_is_not_blamed_for_the_noise_that_it_passes_on() -> None:
    recipe = Recipe.load("w8a8").set(["quantize.weight=int2", "gate.min_sqnr=20"])
    error = failed(moved(), recipe, RNG.normal(size=(100, 3, 8, 8)))
    blamed = [n for n, _ in error.report.gate.blame]
    assert set(blamed[:3]) == {"first", "second", "head"} and not {"slice", "reshape"} & set(blamed)


def test_nor_without_the_search_where_a_failed_gate_is_let_pass() -> None:
    recipe = Recipe.load("w8a8").set(["quantize.weight=int2", "gate.min_sqnr=20"])
    data = {"x": RNG.normal(size=(100, 3, 8, 8)).astype(np.float32)}
    _, report = gp.compile(moved(), recipe, data, gate=False, prove=False)
    assert report.gate.failures and not report.gate.remedy
    assert set([n for n, _ in report.gate.blame][:3]) == {"first", "second", "head"}


def test_the_one_site_that_makes_it_pass_is_named_with_what_it_gives() -> None:
    x = RNG.normal(size=(60, 8))
    recipe = Recipe("r", (Quantize(mode="weight", sites={"two": "int2"}),), gate=Gate(min_sqnr=25))
    model = chain()
    error = failed(model, recipe, x)
    told = next(s for s in error.report.gate.remedy if s.startswith("Keep 'two' in float"))
    assert told in str(error)
    kept = Recipe("r", (Quantize(mode="weight", sites={"two": "float"}),), gate=Gate(min_sqnr=25))
    _, report = gp.compile(model, kept, {"x": x.astype(np.float32)}, prove=False)
    assert f"then {report.gate.outputs[0].sqnr:.1f} dB" in told


def test_no_single_site_is_enough_where_all_are_coarse_and_wider_weights_are_named() -> None:
    recipe = Recipe.load("w8a8").set(["quantize.weight=int2", "gate.min_sqnr=25"])
    error = failed(moved(), recipe, RNG.normal(size=(100, 3, 8, 8)))
    assert "No single site is enough" in str(error) and "Recipe w8a8 passes: " in str(error)
    assert "w8a8-smooth" not in str(error)


def loud() -> tuple[ir.Model, np.ndarray]:
    """Two loud channels that a norm's gain makes, and a layer that gives them little weight."""
    gain = np.ones(32)
    gain[[3, 17]] = 200
    text = """
    g (float[N, 32] x, float[32] gain, float[32, 16] a, float[16, 16] b) => (float[N, 16] y) {
      [norm] n = LayerNormalization<axis = -1>(x, gain) [up] u = MatMul(n, a) [t] h = Tanh(u) [down] y = MatMul(h, b)
    }"""
    arrays = {"gain": gain, "a": 0.3 * RNG.normal(size=(32, 16)) / gain[:, None], "b": RNG.normal(size=(16, 16))}
    return quantizing.model(text, arrays), RNG.normal(size=(100, 32))


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8-dynamic"])
def test_smoothing_is_named_where_activations_are_loud(recipe: str) -> None:
    error = failed(loud()[0], Recipe.load(recipe), loud()[1])
    assert "Recipe w8a8-smooth passes: " in str(error)


def test_the_search_keeps_to_its_budget_and_shows_how_far_it_is() -> None:
    seen: list[str] = []

    def show(items, label, total=None):
        seen.append(label)
        return items

    failed(moved(), Recipe.load("w8a8").set(["gate.min_sqnr=90"]), RNG.normal(size=(100, 3, 8, 8)), progress=show)
    trials = [s for s in seen if s.startswith("blame")]
    assert 0 < len(trials) <= 6 and "6" in trials[0]
    assert "noise by site" in seen


def test_where_the_clock_cuts_the_search_short_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, x = Recipe("r", (Quantize(mode="weight"),), gate=Gate(min_sqnr=300)), RNG.normal(size=(60, 8))
    assert "cut off" not in str(failed(chain(), recipe, x))
    monkeypatch.setattr(remedy, "SECONDS", 0.0)
    monkeypatch.setattr(remedy, "TIMES", 0.0)
    error = failed(chain(), recipe, x)
    assert len(error.report.gate.blame) == 1  # the first is always looked at
    assert error.report.gate.remedy[-1].startswith("The search was cut off after 0 s (2 sites and ")
    assert "Keep" not in str(error)


def test_a_gate_that_no_recipe_reaches_says_what_sites_are_worth() -> None:
    recipe = Recipe("r", (Quantize(mode="weight"),), gate=Gate(min_sqnr=300))
    error = failed(chain(), recipe, RNG.normal(size=(60, 8)))
    assert "Keep the 3 sites most to blame in float (quantize.ignore): then inf dB" in str(error)
