"""Layers on power spectra: columns of one size, the same function bit for bit, and weights that survive few bits."""

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.equalize.equalize_columns import EqualizeColumns, decades_lost
from tests import kit
from tests.passes import quantizing

RNG = np.random.default_rng(0)
BINS, HIDDEN = 24, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def loudness() -> np.ndarray:
    """Of each bin, over seven decades."""
    return 10 ** np.linspace(4, -3, BINS)


def stack(op: str = "LSTM") -> ir.Model:
    """Two layers on power spectra; the first one's weights undo the loudness of each bin."""
    rows = GATES[op] * HIDDEN
    text = f"""
    g (float[T, N, {BINS}] x, float[1, {rows}, {BINS}] w, float[1, {rows}, {HIDDEN}] r,
       float[1, {rows}, {HIDDEN}] w2, float[1, {rows}, {HIDDEN}] r2) => (float[T, N, {HIDDEN}] y)
      <int64[1] one = {{1}}> {{
      [first] a = {op} <hidden_size = {HIDDEN}> (x, w, r) [b] b = Squeeze(a, one)
      [second] c = {op} <hidden_size = {HIDDEN}> (b, w2, r2) [d] y = Squeeze(c, one)
    }}"""
    shapes = {"w": (1, rows, BINS), "r": (1, rows, HIDDEN), "w2": (1, rows, HIDDEN), "r2": (1, rows, HIDDEN)}
    arrays = {n: RNG.normal(size=s) / np.sqrt(s[-1]) for n, s in shapes.items()}
    return quantizing.model(text, arrays | {"w": arrays["w"] / loudness()})


def spectra(steps: int = 20, samples: int = 12) -> np.ndarray:
    return (loudness() * RNG.exponential(size=(steps, samples, BINS))).astype(np.float32)


def decibels(model: ir.Model, low: ir.Model, x: np.ndarray) -> float:
    a, b = (kit.run(m, {"x": x})["y"].astype(np.float64) for m in (model, low))
    return float(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))


@pytest.mark.parametrize("op", GATES)
def test_the_function_is_the_same_bit_for_bit_and_columns_are_of_one_size(op: str) -> None:
    model, x = stack(op), spectra()
    made, (report,) = kit.apply(model, EqualizeColumns())
    assert report.changed == 1 and "first" in next(iter(report.metrics))
    np.testing.assert_array_equal(kit.run(model, {"x": x})["y"], kit.run(made, {"x": x})["y"])
    first = next(n for n in made.graph if n.name == "first")
    largest = np.abs(first.inputs[1].const_value.numpy()).max((0, 1))
    assert largest.max() / largest.min() < 2.9  # powers of two: at most a half of one to either side, and both ends
    assert first.inputs[0].producer().op_type == "Mul"
    scales = first.inputs[0].producer().inputs[1].const_value.numpy()
    assert (np.frexp(scales)[0] == 0.5).all()
    _, (second,) = kit.apply(made, EqualizeColumns())
    assert second.changed == 0


@pytest.mark.parametrize(("recipe", "least"), [("w8a16", 35), ("w4a16", 12), ("w8a8", 25), ("w8a8-dynamic", 25)])
def test_a_stack_on_power_spectra_keeps_what_few_bits_can_hold(recipe: str, least: float) -> None:
    model, x = stack(), spectra()
    data = {"x": np.stack([spectra(20, 1) for _ in range(20)])}
    plain = [p for p in gp.Recipe.load(recipe).passes if p.name != "equalize-columns"]
    before, _ = gp.compile(model, plain, data, gate=False, prove=False)
    after, _ = gp.compile(model, recipe, data, gate=False, prove=False)
    assert decibels(model, gp.Pipeline([]).run(before)[0], x) < least - 8
    assert decibels(model, after, x) > least


def test_what_makes_the_channels_takes_the_factors_up() -> None:
    text = f"""
    g (float[T, N, 8] x, float[8, {BINS}] a, float[{BINS}] bias, float[1, 64, {BINS}] w, float[1, 64, 16] r)
      => (float[T, 1, N, 16] y) {{
      [make] m = MatMul(x, a) [add] s = Add(m, bias) [relu] p = Relu(s) [rnn] y = LSTM <hidden_size = 16> (p, w, r)
    }}"""
    arrays = {
        "a": RNG.normal(size=(8, BINS)) * loudness(), "bias": RNG.normal(size=BINS) * loudness(),
        "w": RNG.normal(size=(1, 64, BINS)) / loudness(), "r": RNG.normal(size=(1, 64, 16)),
    }  # fmt: skip
    model, x = quantizing.model(text, arrays), RNG.normal(size=(5, 3, 8)).astype(np.float32)
    made, (_, report) = kit.apply(model, InferShapes(), EqualizeColumns())
    assert kit.ops(made) == kit.ops(model) and "make" in next(iter(report.metrics.values()))
    np.testing.assert_array_equal(kit.run(model, {"x": x})["y"], kit.run(made, {"x": x})["y"])


def test_linear_layers_that_share_an_input_share_the_factors_and_others_read_it_as_it_was() -> None:
    text = f"""
    g (float[N, {BINS}] x, float[{BINS}, 8] w, float[6, {BINS}] v) => (float[N, 8] y, float[N, 6] z, float[N, {BINS}] s)
    {{
      [one] y = MatMul(x, w) [two] z = Gemm<transB = 1>(x, v) [root] s = Sqrt(x)
    }}"""
    arrays = {"w": RNG.normal(size=(BINS, 8)) / loudness()[:, None], "v": RNG.normal(size=(6, BINS)) / loudness()}
    model, x = quantizing.model(text, arrays), np.abs(RNG.normal(size=(5, BINS)) * loudness()).astype(np.float32)
    made, (report,) = kit.apply(model, EqualizeColumns())
    assert report.changed == 2 and kit.ops(made).count("Mul") == 1
    before, after = kit.run(model, {"x": x}), kit.run(made, {"x": x})
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_ordinary_weights_stay_as_they_are(spread: float) -> None:
    """Columns as trained networks have them, also a few loud ones."""
    w = RNG.normal(size=(64, 48))
    w[:, :2] *= spread
    model = quantizing.model("g (float[N, 48] x, float[48, 64] w) => (float[N, 64] y) { y = MatMul(x, w) }", {"w": w.T})
    assert kit.apply(model, EqualizeColumns())[1][0].changed == 0


@pytest.mark.parametrize(
    ("weight", "lost"),
    [
        (np.array([[254.0, 0.1], [1.0, 1.0]]), 0.25),  # one of four lies a decade below 1
        (np.array([[254.0, 0.0], [0.0, 0.0]]), 0.0),
        (np.full((3, 3), 1e-9), 0.0),
        (np.array([[np.nan, 1.0]]), 0.0),
    ],
)
def test_the_decades_that_are_lost(weight: np.ndarray, lost: float) -> None:
    assert decades_lost(weight) == pytest.approx(lost)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a16", "w4a16"])
def test_recipes_still_take_a_model_that_is_quantized_in_part(recipe: str) -> None:
    """A file of quantization-aware training; its decades lie behind Q/DQ and stay as they are."""
    model = kit.parse("""g (float[N, 4] x) => (float[N, 4] y)
    <float s = {0.1}, uint8 z = {128}, float[4, 4] w = {1024.0, 1.0, -1.0, 0.001, 512.0, 2.0, 1.0, 0.002,
        256.0, 1.0, 3.0, 0.001, 128.0, 1.0, -2.0, 0.004}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) h = MatMul(d, w) y = Relu(h) }""")
    x = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    _, report = gp.compile(model, recipe, gp.CalibrationData.from_arrays({"x": x}), gate=False)
    assert next(p for p in report.passes if p.name == "equalize-columns").changed == 0
