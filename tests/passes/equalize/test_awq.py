"""AWQ: exact without clipping, never worse than rounding to nearest, its formulas, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.equalize.awq import Awq, clip, output_error
from graphpress.passes.quantize.quantize import Quantize
from graphpress.types import Scheme, per_group
from tests import kit
from tests.passes.equalize.test_smooth import made_of
from tests.passes.quantizing import context, model, normal

NORM = """<ir_version: 11, opset_import: ["" : 23]>
g (float[N, 128] x, float[128] gain, float[128, 96] w) => (float[N, 96] y) {
    n = RMSNormalization <axis = -1> (x, gain)
    y = MatMul(n, w)
}"""
THREE = Quantize(mode="weight", weight="int3", weight_granularity="per_group", group_size=32, kernels="preferred")
AWQ3 = Awq(weight="int3", group_size=32)


def fixture(seed: int) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A gain that makes four channels 6 times as loud, a weight of normal elements."""
    rng = np.random.default_rng(seed)
    gain = np.logspace(0, -1.5, 128)
    gain[[3, 40, 77, 101]] *= 6
    made = model(NORM, {"gain": gain, "w": normal(128, 96, seed=seed + 5)})
    ShapeInferencePass()(made)
    return made, {"x": (rng.normal(size=(256, 128)) @ rng.normal(size=(128, 128)) / 11).astype(np.float32)}


def rounded(group: np.ndarray) -> np.ndarray:
    """int4 with the smallest step that leaves no element further than half of it."""
    step = max(-group.min() / 8.5, group.max() / 7.5)
    return np.asarray(np.clip(np.rint(group / step), -8, 7) * step)


def error(made: ir.Model, x: dict[str, np.ndarray], *passes: Any) -> float:
    after, _ = kit.apply(made, *passes, ctx=context(x, None))
    wanted, got = (kit.run(m, x)["y"].astype(np.float64) for m in (made, after))
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_bits_lose_a_tenth_less_at_least_and_clipping_is_no_worse(seed: int) -> None:
    made, x = fixture(seed)
    nearest, scaled, both = (error(made, x, *p, THREE) for p in ((), (replace(AWQ3, clip=False),), (AWQ3,)))
    assert scaled < 0.9 * nearest and both <= scaled * 1.001


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_clipping_the_function_stays(seed: int) -> None:
    made, x = fixture(seed)
    after, (report,) = kit.apply(made, replace(AWQ3, clip=False), ctx=context(x, None))
    assert report.changed == 1
    wanted, got = (kit.run(m, x)["y"] for m in (made, after))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_factors_are_powers_of_the_mean_and_normed() -> None:
    made, x = fixture(0)
    after, (report,) = kit.apply(made, replace(AWQ3, clip=False, samples=256), ctx=context(x, None))
    (alpha,) = [float(k.split()[-1]) for k in report.metrics]
    before, now = (edit.constant(m.graph.initializers["w"]) for m in (made, after))
    assert before is not None and now is not None
    s = (now / before).mean(1)
    gain = edit.constant(made.graph.initializers["gain"])
    rms = np.sqrt(np.mean(x["x"].astype(np.float64) ** 2, -1, keepdims=True) + 1e-5)
    mean = np.abs(x["x"] / rms * gain).mean(0)
    np.testing.assert_allclose(s / s[0], (mean / mean[0]) ** alpha, rtol=1e-3)
    assert s.max() * s.min() == pytest.approx(1, rel=1e-4) and 0 < alpha < 1


def test_alpha_0_is_rounding_to_nearest() -> None:
    w, x = normal(8, 32), normal(20, 32, seed=1)
    scheme = Scheme("int4", per_group(1, 16))
    nearest = np.stack([rounded(part) for part in w.reshape(16, 16)]).reshape(8, 32)
    wanted = np.square(x.astype(np.float64) @ (nearest - w).T).sum()
    assert output_error(w, x, scheme, np.ones(32)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clipping_takes_the_best_of_ten_for_each_group_of_each_row(seed: int) -> None:
    w, x = normal(6, 32, seed=seed) ** 3, normal(50, 32, seed=seed + 1)
    got = clip(w, x, Scheme("int4", per_group(1, 16)), 16)
    for row in range(6):
        for a in (0, 16):
            part, costs = w[row, a : a + 16], []
            for share in [1 - i / 20 for i in range(10)]:
                cut = np.clip(part, -share * np.abs(part).max(), share * np.abs(part).max())
                lost = x[:, a : a + 16] @ (rounded(cut) - part)
                costs.append((float(np.square(lost).sum()), float(np.abs(cut).max())))
            wanted = min(costs)[1]
            assert np.abs(got[row, a : a + 16]).max() == pytest.approx(wanted, rel=1e-5)


def test_queries_and_keys_are_scaled_but_not_clipped() -> None:
    body = """q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)
    o = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v) y = MatMul(o, d) z = Identity(y)"""
    made = made_of(body)
    for name in "abcd":
        w = edit.constant(made.graph.initializers[name])
        assert w is not None
        edit.overwrite(made.graph.initializers[name], w**3)
    after, _ = kit.apply(made, Awq(weight="int2", group_size=0), ctx=context({"x": normal(8, 5, 16)}, None))

    def changed(name: str) -> bool:
        return not np.array_equal(*(np.asarray(edit.constant(m.graph.initializers[name])) for m in (made, after)))

    assert [changed(n) for n in "ab"] == [False, False] and changed("c") and changed("d")


def test_what_makes_no_factors_possible_is_said_and_channels_of_zeros_stay() -> None:
    made, x = fixture(0)
    x["x"][:, 7] = 0
    after, (report,) = kit.apply(made, AWQ3, ctx=context(x, None))
    assert np.isfinite(kit.run(after, x)["y"]).all() and not report.skips
    bare = model("g (float[N, 32] x, float[32, 8] w) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    _, (report,) = kit.apply(bare, AWQ3, ctx=context({"x": normal(9, 32)}, None))
    assert [s.why for s in report.skips] == ["not scaled: x: it is an input of its graph"]


def test_bad_options_and_no_data_are_refused() -> None:
    made, x = fixture(0)
    with pytest.raises(BadRequest, match="group_size is 0 or more"):
        kit.apply(made, Awq(group_size=-1), ctx=context(x, None))
    with pytest.raises(BadRequest, match="needs to see activations"):
        kit.apply(made, Awq(), ctx=context(None, None))
