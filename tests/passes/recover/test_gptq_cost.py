"""The scale that GPTQ finds for a group, and when: each weight's error counts by what it costs the output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphpress.backends import ort
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers.affine import Affine
from graphpress.passes.recover.rounding import columns
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.passes.recover.rounding.gptq_state import State
from graphpress.passes.recover.rounding.layer_by_layer import split
from graphpress.types import Scheme, per_group
from tests import kit
from tests.passes import quantizing

SIZE, ROWS, GROUP = 64, 48, 32
INT4 = Quantize(mode="weight", weight="int4", weight_granularity="per_group", group_size=GROUP)


def rounded(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(w / scale), -8, 7) * scale


def least(w: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The best of many scales for each group and output [SIZE / GROUP, ROWS], by a cost of each input [SIZE]."""
    parts = w.reshape(-1, GROUP, ROWS)
    tried = np.abs(parts).max(1) / 7 * np.linspace(0.3, 1.1, 801)[:, None, None]
    lost = [((rounded(parts, s[:, None]) - parts) ** 2 * cost.reshape(-1, GROUP, 1)).sum(1) for s in tried]
    return np.take_along_axis(tried, np.argmin(lost, 0)[None], 0)[0]


def reach(w: np.ndarray, axis: int) -> np.ndarray:
    """The scale at which int4 holds the extremes, each within half a step of its last code: -8 and 7."""
    return np.maximum(w.max(axis) / 7.5, -w.min(axis) / 8.5)


def settled(w: np.ndarray, x: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(weights, scales of groups) that GPTQ makes of ``x @ w``."""
    return made_of(w, x, **options)[:2]


def made_of(
    w: np.ndarray, x: np.ndarray, quantize: Quantize | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray, PassReport]:
    """The same, and the report."""
    text = f"g (float[N, {SIZE}] x, float[{SIZE}, {ROWS}] w) => (float[N, {ROWS}] y) {{ [layer] y = MatMul(x, w) }}"
    made = quantizing.model(text, {"w": w})
    quantize = quantize or INT4
    ctx = Context(data=CalibrationData.from_arrays({"x": x}), run=ort.execute)
    after, _ = kit.apply(made, quantize, ctx=ctx)
    report = PassReport()
    Gptq(samples=len(x), **options).run(after, ctx, report)
    encode = edit.find(after, "layer").inputs[1].producer().inputs[0].producer()
    value, scale = (np.asarray(edit.constant(v), np.float64) for v in encode.inputs[:2])
    return value, scale.reshape(-1, ROWS), report


@pytest.mark.parametrize("act_order", [False, True])
def test_errors_count_by_the_power_of_their_input(act_order: bool) -> None:
    """Inputs that never come together: H is diagonal, losing w costs w^2 E[x^2], and half way to equal costs is |x|."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(SIZE, ROWS)).astype(np.float32)
    loud = 10 ** rng.uniform(-0.8, 0.8, SIZE)
    x = np.tile(np.diag(loud), (8, 1)).astype(np.float32)
    _, scale = settled(w, x, act_order=act_order, damping=1e-9, observer="loss")

    def lost(s: np.ndarray) -> float:
        each = np.repeat(s, GROUP, 0)
        return float(((rounded(w.astype(np.float64), each) - w) ** 2 * loud[:, None]).sum())

    whole, half, plain = (lost(least(w.astype(np.float64), loud**p)) for p in (2, 1, 0))
    assert half < min(whole, plain)
    scheme = Scheme("int4", per_group(0, GROUP), observer="mse")
    seen = np.sqrt(np.square(parts(x)[0]).sum(0))
    np.testing.assert_allclose(scale, Affine().fit(w, scheme, seen[:, None]).scale, rtol=1e-5)


def test_costs_are_one_on_average_so_that_float32_holds_them() -> None:
    diagonal = np.array([[1e-30, 2e-30], [1e-30, 4e-30]])
    np.testing.assert_allclose(columns._costs(diagonal), np.array([[4, 2], [4, 1]]) / 2.75, rtol=1e-12)


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """(weight, inputs that go together)."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(SIZE, SIZE)) * np.logspace(0, -1.5, SIZE)[:, None]
    x = (rng.normal(size=(400, SIZE)) @ mixing).astype(np.float32)
    return rng.normal(size=(SIZE, ROWS)).astype(np.float32), x


def least_squares(w: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ by its meaning: after each input the rest is what minimises the error, and a group's scale is that of its
    extremes when it is reached."""
    now, scales = w.astype(np.float64), []
    for j in range(SIZE):
        if j % GROUP == 0:
            scales.append(reach(now[j : j + GROUP], 0))
        now[j] = rounded(now[j], scales[-1])
        lost = now[: j + 1] - w[: j + 1]
        now[j + 1 :] = w[j + 1 :] - np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, : j + 1] @ lost)
    return now, np.stack(scales)


def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(samples that are fitted to, samples held out), float64."""
    made = quantizing.model(f"g (float[N, {SIZE}] x) => (float[N, {SIZE}] y) {{ y = Relu(x) }}", {})
    pair = split(CalibrationData.from_arrays({"x": x}).bind(made).take(len(x), 0), 0)
    fit, held = (np.concatenate([f["x"] for f in p.batches(len(x))]).astype(np.float64) for p in pair)
    return fit, held


def test_a_group_gets_its_scale_when_it_is_reached_and_the_report_says_what_was_won() -> None:
    w, x = correlated()
    fit, held = parts(x)
    assert len(held) == len(x) // 8
    h = fit.T @ fit
    h += 0.3 * h.diagonal().mean() * np.eye(SIZE)
    value, scale, report = made_of(w, x, act_order=False, observer="minmax", damping=0.3)
    expected, scales = least_squares(w, h)
    np.testing.assert_allclose(scale, scales, rtol=1e-5)
    assert np.isclose(value, expected, rtol=1e-4, atol=1e-6).mean() > 0.995  # but for ties
    nearest = rounded(w.astype(np.float64), np.repeat(reach(w.reshape(-1, GROUP, ROWS), 1), GROUP, 0))
    before, after = (float(np.square(held @ (v - w)).sum()) for v in (nearest, value))
    assert report.metrics["error against rounding to nearest"] == round(after / before, 4)


def test_a_group_gets_its_zero_point_when_it_is_reached() -> None:
    """The group that is reached last has moved by what the first has lost: its range and its zero are others."""
    w, x = correlated()
    w[GROUP:] = np.abs(w[GROUP:]) / 20  # small, and by themselves their codes begin at 0
    fit, _ = parts(x)
    h = fit.T @ fit
    h += 0.3 * h.diagonal().mean() * np.eye(SIZE)
    quantize = replace(INT4, weight="uint4", weight_symmetric=False)
    value, scale, report = made_of(w, x, quantize, act_order=False, observer="minmax", damping=0.3)
    now = w.astype(np.float64)
    for j in range(SIZE):
        if j % GROUP == 0:
            low, high = now[j : j + GROUP].min(0), now[j : j + GROUP].max(0)
            step = (np.maximum(high, 0) - np.minimum(low, 0)) / 15
            zero = np.rint(-np.minimum(low, 0) / step)
            np.testing.assert_allclose(scale[j // GROUP], step, rtol=1e-5)
        now[j] = (np.clip(np.rint(now[j] / step) + zero, 0, 15) - zero) * step
        lost = now[: j + 1] - w[: j + 1]
        now[j + 1 :] = w[j + 1 :] - np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, : j + 1] @ lost)
    assert (zero > 0).mean() > 0.5 and report.changed == 1
    assert np.isclose(value, now, rtol=1e-4, atol=1e-6).mean() > 0.995  # but for ties


@pytest.mark.parametrize(("samples", "held"), [(1, 0), (7, 1), (8, 1), (15, 1), (16, 2), (64, 8)])
def test_an_eighth_is_held_out(samples: int, held: int) -> None:
    seen, unseen = parts(np.arange(samples * SIZE, dtype=np.float32).reshape(samples, SIZE))
    both = sorted([*seen[:, 0], *unseen[:, 0]])
    assert (len(seen), len(unseen)) == ((samples - held, held) if held else (samples, samples))
    assert not held or both == [float(SIZE * i) for i in range(samples)]


@pytest.mark.parametrize(
    ("option", "value", "refused"),
    [
        ("samples", 0, True), ("samples", 1, False), ("batch_size", 0, True), ("batch_size", 1, False),
        ("block", 0, True), ("block", 1, False), ("damping", -0.01, True), ("damping", 0, False),
        ("damping", 1, False), ("damping", 1.01, True),
    ],
)  # fmt: skip
def test_limits_of_options(option: str, value: float, refused: bool) -> None:
    plain = quantizing.model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", {})
    ctx = Context(data=CalibrationData.from_arrays({"x": np.ones((4, 4), np.float32)}), run=ort.execute)
    step = Gptq(**{option: value})  # type: ignore[arg-type]
    if not refused:
        step.run(plain, ctx, PassReport())
        return
    with pytest.raises(BadRequest, match=option):
        step.run(plain, ctx, PassReport())


def test_a_layer_of_just_the_largest_size_is_taken() -> None:
    w, x = correlated()
    report = made_of(w, x, largest=SIZE)[2]
    assert report.changed == 1 and not report.skips
    report = made_of(w, x, largest=SIZE - 1)[2]
    assert report.changed == 0 and "over the 63" in report.skips[0].why


def test_what_lies_on_its_grid_already_is_no_worse() -> None:
    """Rounding to nearest loses nothing: there is no share of it."""
    _, x = correlated()
    on_grid = np.random.default_rng(2).integers(-8, 8, (SIZE, ROWS)).astype(np.float32) / 4
    value, _, report = made_of(on_grid, x)
    np.testing.assert_array_equal(value, on_grid)
    assert report.changed == 0 and report.metrics["error against rounding to nearest"] == 1.0


def test_scales_are_those_of_the_weights_where_loud_columns_go_first() -> None:
    w, x = correlated()
    _, scale = settled(w, x, act_order=True, observer="minmax")
    np.testing.assert_allclose(scale, reach(w.reshape(-1, GROUP, ROWS), 1), rtol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
def test_scales_are_kept_on_request(act_order: bool) -> None:
    w, x = correlated()
    value, scale = settled(w, x, act_order=act_order, observer="keep")
    np.testing.assert_allclose(scale, reach(w.reshape(-1, GROUP, ROWS), 1), rtol=1e-6)
    assert (value != rounded(w.astype(np.float64), np.repeat(scale, GROUP, 0))).any()


def test_no_torch_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    w, x = correlated()
    used: list[object] = []
    real = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: used.append(array) or real(array))
    settled(w, x)
    assert not used
    settled(w, x, device="cpu")
    assert used


def test_what_is_done_is_saved_after_each_wave_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[bool] = []
    monkeypatch.setattr(State, "save", lambda state, now=False: saved.append(now))
    settled(*correlated())
    assert saved == [False, True]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_costs_are_of_the_order_in_which_columns_are_settled(seed: int) -> None:
    """Settling a column costs its squared error times what of its input the later ones cannot tell; the root counts."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(SIZE, SIZE)) * np.logspace(0, -1.5, SIZE)[:, None]
    x = (rng.normal(size=(400, SIZE)) @ mixing * rng.permutation(np.logspace(-0.7, 0.7, SIZE))).astype(np.float32)
    w = rng.normal(size=(SIZE, ROWS)).astype(np.float32)
    fit, _ = parts(x)
    h = fit.T @ fit
    order = np.argsort(-h.diagonal())
    h += 0.01 * h.diagonal().mean() * np.eye(SIZE)
    cost, natural = (np.empty(SIZE) for _ in range(2))
    for i, j in enumerate(order):
        cost[j] = 1 / np.linalg.inv(h[np.ix_(order[i:], order[i:])])[0, 0]
        natural[j] = 1 / np.linalg.inv(h[j:, j:])[0, 0]
    _, scale = settled(w, x, act_order=True, observer="loss")

    scheme = Scheme("int4", per_group(0, GROUP), observer="mse")
    expected, other = (Affine().fit(w, scheme, c[:, None]).scale for c in (cost**0.5, natural**0.5))
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert (np.abs(other / expected - 1) > 0.02).mean() > 0.1


def compensated(w: np.ndarray, h: np.ndarray, scales: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int2 by the meaning of GPTQ, with scales of groups that are given, inputs in an order."""
    now, each = w.astype(np.float64), np.repeat(scales, GROUP, 0)
    for i, j in enumerate(order):
        now[j] = np.clip(np.rint(now[j] / each[j]), -2, 1) * each[j]
        done, rest = order[: i + 1], order[i + 1 :]
        now[rest] = w[rest] - np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ (now - w)[done])
    return now


@pytest.mark.parametrize("observer", ["best", None])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_output_takes_the_ranges_after_which_less_is_lost_on_samples_held_out(seed: int, observer: str) -> None:
    """Ranges by the second and by the fourth power of errors; at 2 bits without asking."""
    _, x = correlated()
    x = x * np.random.default_rng(seed).permutation(np.logspace(-0.5, 0.5, SIZE)).astype(np.float32)
    w = np.random.default_rng(10 + seed).normal(size=(SIZE, ROWS)).astype(np.float32)
    _, scale, _ = made_of(w, x, replace(INT4, weight="int2"), act_order=True, observer=observer)

    fit, held = parts(x)
    h = fit.T @ fit
    order = np.argsort(-h.diagonal())
    h += 0.01 * h.diagonal().mean() * np.eye(SIZE)
    cost = np.empty(SIZE)
    for i, j in enumerate(order):
        cost[j] = np.linalg.inv(h[np.ix_(order[i:], order[i:])])[0, 0] ** -0.5
    schemes = [Scheme("int2", per_group(0, GROUP), observer=o) for o in ("mse", "l4")]
    fits = [Affine().fit(w, scheme, cost[:, None]).scale for scheme in schemes]
    off = [compensated(w, h, s, order) - w for s in fits]
    first, second = (np.einsum("ir,ij,jr->r", e, held.T @ held, e) for e in off)
    assert 0 < (first < second).sum() < ROWS, "each is the better one of some output"
    np.testing.assert_allclose(scale, np.where(first <= second, *fits), rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_that_share_a_scale_choose_together(seed: int) -> None:
    """One scale for the tensor: all weights lie on one grid."""
    w, x = correlated()
    w = w * np.random.default_rng(seed).uniform(0.2, 1, ROWS).astype(np.float32)
    quantize = Quantize(mode="weight", weight="int2", weight_granularity="per_tensor")
    text = f"g (float[N, {SIZE}] x, float[{SIZE}, {ROWS}] w) => (float[N, {ROWS}] y) {{ [layer] y = MatMul(x, w) }}"
    after, _ = kit.apply(quantizing.model(text, {"w": w}), quantize, ctx=Context(run=ort.execute))
    ctx = Context(data=CalibrationData.from_arrays({"x": x}), run=ort.execute)
    Gptq(samples=len(x)).run(after, ctx, PassReport())
    encode = edit.find(after, "layer").inputs[1].producer().inputs[0].producer()
    value, scale = (np.asarray(edit.constant(v), np.float64) for v in encode.inputs[:2])
    assert scale.size == 1
    codes = value / scale.item()
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
