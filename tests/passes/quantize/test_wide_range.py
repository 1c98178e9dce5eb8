"""Inputs over many decades stay out of 8 bits up to what compresses them; nothing else changes for others."""

import numpy as np
import pytest

import graphpress as gp
from graphpress.passes.allocate.space import explore
from graphpress.passes.quantize.wide_range import Wide, decades_lost
from graphpress.types import Role
from tests.passes import quantizing
from tests.passes.allocating import TARGET

RNG = np.random.default_rng(0)


def spectra(rows: int = 200, bins: int = 32) -> np.ndarray:
    """Over nine decades, each row within two."""
    loud = RNG.uniform(np.log(1e-5), np.log(1e4), (rows, 1))
    return np.exp(loud + RNG.uniform(-2, 2, (rows, bins))).astype(np.float32)


def ordinary(rows: int = 200, bins: int = 32) -> np.ndarray:
    return RNG.uniform(0, 1, (rows, bins)).astype(np.float32)


def net(middle: str):
    text = f"""
    g (float[N, 32] x, float[32, 16] f, float[16, 24] w, float[24, 8] v, float[16] gain) => (float[N, 8] y)
      <float eps = {{1e-7}}, float third = {{0.3}}, int64[1] last = {{-1}}> {{
      [filters] a = MatMul(x, f) [add] b = Add(a, eps) {middle}
      [one] d = MatMul(c, w) [relu] e = Relu(d) [two] y = MatMul(e, v)
    }}"""
    sizes = {"w": (16, 24), "v": (24, 8)}
    arrays = {n: 0.2 * RNG.normal(size=s) for n, s in sizes.items()}
    return quantizing.model(text, {"f": np.abs(RNG.normal(size=(32, 16))), "gain": np.ones(16), **arrays})


COMPRESS = {
    "log": "[z] c = Log(b)",
    "root": "[z] c = Sqrt(b)",
    "power": "[z] c = Pow(b, third)",
    "reciprocal": "[z1] r = Reciprocal(b) [z] c = Log(r)",
    "norm": "[z] c = LayerNormalization<axis = -1, epsilon = 1e-12>(b, gain)",
    "share": "[m] s = ReduceMean(b, last) [z] c = Div(b, s)",
    "clipped": "[clip] k = Relu(b) [scale] l = Mul(k, gain) [t] t = Identity(l) [z] c = Log(t)",
}


def quantized(model, x: np.ndarray, recipe: str | gp.Recipe = "w8a8", **data):
    return gp.compile(model, recipe, {"x": x, **data}, gate=False, prove=False)


def decibels(model, low, x: np.ndarray) -> float:
    a, b = (gp.lower(m)({"x": x})["y"].astype(np.float64) for m in (model, low))
    per_row = (a**2).sum(1) / np.maximum(((a - b) ** 2).sum(1), 1e-30)
    return float(10 * np.log10(np.median(per_row)))


@pytest.mark.parametrize("kind", COMPRESS)
def test_what_reads_nine_decades_before_something_that_compresses_stays_float(kind: str) -> None:
    model, x = net(COMPRESS[kind]), spectra()
    low, report = quantized(model, x)
    assert "filters" not in {s.node for s in report.plan}
    assert {"one", "two"} <= {s.node for s in report.plan}
    assert decibels(model, low, x) > (10 if kind == "root" else 20)  # behind a root more than four decades are left
    said = [w for w in report.warnings if w.where == "x"]
    assert len(said) == 1 and "filters" in said[0].why and "decades" in said[0].why


@pytest.mark.parametrize("kind", ["log", "norm"])
def test_an_ordinary_input_is_quantized_as_ever(kind: str) -> None:
    _, report = quantized(net(COMPRESS[kind]), ordinary())
    assert "filters" in {s.node for s in report.plan}
    assert not report.warnings


def test_spectra_that_the_model_makes_itself_are_seen() -> None:
    text = """
    g (float[N, 1, 64] x, float[16, 1, 32] s, float[16, 12] f, float[12, 8] w) => (float[N, 3, 8] y)
      <float eps = {1e-9}> {
      [stft] a = Conv<strides = [16]>(x, s) [square] b = Mul(a, a) [turn] c = Transpose<perm = [0, 2, 1]>(b)
      [mel] d = MatMul(c, f) [add] e = Add(d, eps) [log] g = Log(e) [head] y = MatMul(g, w)
    }"""
    arrays = {"s": RNG.normal(size=(16, 1, 32)), "f": np.abs(RNG.normal(size=(16, 12))), "w": RNG.normal(size=(12, 8))}
    loud = 10 ** RNG.uniform(-3.5, 0, (200, 1, 1))
    x = (loud * RNG.normal(size=(200, 1, 64))).astype(np.float32)
    _, report = quantized(quantizing.model(text, arrays), x)
    assert "mel" not in {s.node for s in report.plan} and "head" in {s.node for s in report.plan}


def test_without_anything_that_compresses_only_the_first_readers_keep_float_activations() -> None:
    text = """
    g (float[N, 32] x, float[32, 16] f, float[16, 8] w) => (float[N, 8] y)
      <int64[2] shape = {-1, 32}> {
      [view] a = Reshape(x, shape) [first] b = MatMul(a, f) [t] c = Tanh(b) [second] y = MatMul(c, w)
    }"""
    model = quantizing.model(text, {"f": RNG.normal(size=(32, 16)), "w": RNG.normal(size=(16, 8))})
    for recipe in ("w8a8", "w8a8-dynamic"):
        _, report = quantized(model, spectra(), recipe)
        roles = {n: {s.role for s in report.plan.of(n)} for n in ("first", "second")}
        assert roles["first"] == {Role.WEIGHT} and Role.ACTIVATION in roles["second"], recipe


@pytest.mark.parametrize(("start", "narrow"), [(0, False), (16, True)])
def test_a_part_of_a_wide_input_is_judged_by_itself(start: int, narrow: bool) -> None:
    text = f"""
    g (float[N, 32] x, float[16, 16] f, float[16, 8] w) => (float[N, 8] y)
      <int64[1] from = {{{start}}}, int64[1] to = {{{start + 16}}}, int64[1] axis = {{1}}> {{
      [part] a = Slice(x, from, to, axis) [first] b = MatMul(a, f) [t] c = Tanh(b) [second] y = MatMul(c, w)
    }}"""
    x = spectra()
    x[:, 16:] = RNG.uniform(-1, 1, (len(x), 16))  # a state beside the spectrum, say
    _, report = quantized(quantizing.model(text, {"f": RNG.normal(size=(16, 16)), "w": RNG.normal(size=(16, 8))}), x)
    assert (Role.ACTIVATION in {s.role for s in report.plan.of("first")}) is narrow


def test_a_site_that_is_asked_for_by_name_is_quantized_all_the_same() -> None:
    recipe = gp.Recipe.load("w8a8").set(["quantize.sites={'filters[0] activation': 'uint8 asym'}"])
    _, report = gp.compile(net(COMPRESS["log"]), recipe, {"x": spectra()}, gate=False, prove=False)
    assert any(s.node == "filters" and s.role is Role.ACTIVATION for s in report.plan)


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        (np.logspace(-9, 0, 9001), (9 - np.log10(510)) ** 2 / 2 / 9),  # 1/510 is half a step of 1/255
        (np.linspace(0.01, 1, 1000), 0.0),
        (np.concatenate([np.zeros(900), np.ones(100)]), 0.0),  # what is 0 loses nothing
        (np.array([1.0, 1e-9]), 0.0),  # too few
    ],
)
def test_the_decades_that_are_lost(numbers: np.ndarray, lost: float) -> None:
    assert decades_lost(numbers, float(numbers.min()), float(numbers.max())) == pytest.approx(lost, rel=5e-3)


def test_a_normal_distribution_loses_next_to_nothing() -> None:
    x = np.random.default_rng(1).normal(size=100_000)
    assert decades_lost(x, float(x.min()), float(x.max())) < 0.02


@pytest.mark.parametrize("middle", [COMPRESS["log"], "[z] c = Tanh(b)"])
def test_mixed_gives_what_reads_a_wide_input_floats_or_16_bits(middle: str) -> None:
    model, x = net(middle), spectra()
    recipe = gp.Recipe.load("mixed").set(["allocate.formats=[w8a8, w8a8-dynamic, w8a16]", "allocate.usual_size=0.3x"])
    _, report = quantized(model, x, recipe)
    assert {s.role for s in report.plan.of("filters")} <= {Role.WEIGHT}
    assert [w for w in report.warnings if w.where == "x" and "decades" in w.why]
    _, usual = quantized(model, ordinary(), recipe)
    assert not [w for w in usual.warnings if w.where == "x"]
    space = explore(model, TARGET, ("w8a8", "w8a8-dynamic", "w8a16"), (), (), {"filters": Wide("many decades", False)})
    assert space.wanted()["filters"] == ("w8a16",) and "w8a8" in space.wanted()["one"]
