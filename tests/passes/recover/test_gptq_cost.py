"""The scale that GPTQ finds for a group: each weight's error counts by what it costs the output."""

from __future__ import annotations

import numpy as np

from graphpress.backends import ort
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.rounding.gptq import Gptq
from tests import kit
from tests.passes import quantizing

SIZE, ROWS, GROUP = 64, 48, 32


def rounded(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(w / scale), -8, 7) * scale


def least(w: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The best of many scales for each group and output [SIZE / GROUP, ROWS], by a cost of each input [SIZE]."""
    parts = w.reshape(-1, GROUP, ROWS)
    tried = np.abs(parts).max(1) / 7 * np.linspace(0.3, 1.1, 801)[:, None, None]
    lost = [((rounded(parts, s[:, None]) - parts) ** 2 * cost.reshape(-1, GROUP, 1)).sum(1) for s in tried]
    return np.take_along_axis(tried, np.argmin(lost, 0)[None], 0)[0]


def test_errors_count_by_the_power_of_their_input() -> None:
    """Inputs that never come together: H is diagonal, nothing is made up for, and losing w costs w^2 E[x^2]."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(SIZE, ROWS)).astype(np.float32)
    loud = 10 ** rng.uniform(-0.8, 0.8, SIZE)
    made = quantizing.model(
        f"g (float[N, {SIZE}] x, float[{SIZE}, {ROWS}] w) => (float[N, {ROWS}] y) {{ [layer] y = MatMul(x, w) }}",
        {"w": w},
    )
    quantize = Quantize(mode="weight", weight="int4", weight_granularity="per_group", group_size=GROUP)
    data = CalibrationData.from_arrays({"x": np.tile(np.diag(loud), (8, 1)).astype(np.float32)})
    gptq = Gptq(samples=8 * SIZE, act_order=False, damping=1e-9, observer="loss")
    after, _ = kit.apply(made, quantize, gptq, ctx=Context(data=data, run=ort.execute))
    dequantize = edit.find(after, "layer").inputs[1].producer()
    scale = np.asarray(edit.constant(dequantize.inputs[1]), np.float64).reshape(-1, ROWS)

    def lost(s: np.ndarray) -> float:
        each = np.repeat(s, GROUP, 0)
        return float(((rounded(w.astype(np.float64), each) - w) ** 2 * loud[:, None] ** 2).sum())

    right, root, plain = (lost(least(w.astype(np.float64), loud**p)) for p in (2, 1, 0))
    assert right < root < plain
    # The search is coarser than the one above: 1.21 times its loss; weighted by |x| in place of x^2 it is 1.29 times.
    assert lost(scale) <= 1.25 * right
