"""GPTQ towards the float model: its formulas against lstsq and brute sums, and what it wins over GPTQ on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.keys import CORRECTED
from graphpress.observe.moments import Rows
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.drift import DriftSum, best_share
from graphpress.passes.recover.rounding.gptq import Gptq
from tests import kit
from tests.passes.quantizing import context, model, normal
from tests.passes.recover.test_gptq import CHAIN, chain, correlated, weights

COARSE = Quantize(mode="static", weight="int3", activation="uint4", weight_granularity="per_channel")
DEEP = """
g (float[N, 8, 6, 6] x, float[16, 8, 3, 3] a, float[16] p, float[16, 1, 3, 3] b, float[16] q, float[8, 16, 1, 1] c)
    => (float[N, 8, 4, 4] y) {
    h = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(x, a, p)
    i = Relu(h)
    j = Conv<group = 16, kernel_shape = [3, 3]>(i, b, q)
    k = Relu(j)
    y = Conv<kernel_shape = [1, 1]>(k, c)
}
"""


def given(groups: int = 2, tokens: int = 500, width: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(tokens, groups * width)) @ rng.normal(size=(groups * width, groups * width)) + 1.5
    f = x + 0.3 * x @ rng.normal(size=(groups * width, groups * width)) / width + rng.normal(size=x.shape) * 0.1
    return x.astype(np.float32), f.astype(np.float32), rng.normal(size=(3, width))


def seen(x: np.ndarray, f: np.ndarray) -> DriftSum:
    total = DriftSum()
    for part in (slice(0, 200), slice(200, None)):
        total.update(Rows("x"), x[part], f[part])
    return total


def test_the_weight_that_makes_up_is_that_of_ridge_regression() -> None:
    x, f, w = given(groups=1)
    drift = seen(x, f).drift()
    xc, fc = (a.astype(np.float64) - a.astype(np.float64).mean(0) for a in (x, f))
    held = 0.2 * np.square(xc).mean(0).sum() / 5
    rows = np.concatenate([xc, np.sqrt(held * len(x)) * np.eye(5)])
    wanted = np.concatenate([fc @ w.T, np.sqrt(held * len(x)) * w.T])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(drift.made_up(w, 0.2), expected, rtol=1e-9)


def test_errors_and_biases_are_those_of_the_rows() -> None:
    x, f, w = given(groups=1)
    drift, rounded = seen(x, f).drift(), np.round(w * 4) / 4
    off = f.astype(np.float64) @ w.T - x.astype(np.float64) @ rounded.T
    np.testing.assert_allclose(drift.bias(w, rounded), off.mean(0), rtol=1e-9)
    np.testing.assert_allclose(drift.error(w, rounded), np.square(off - off.mean(0)).sum(1).mean(), rtol=1e-9)


def test_what_does_not_hold_on_other_samples_is_left_alone() -> None:
    x, f, w = given(groups=1)
    fit, same = seen(x, f).drift(), seen(x, x).drift()
    np.testing.assert_array_equal(best_share(w, fit, same), w)  # no drift there: any change is a loss
    assert fit.error(w, best_share(w, fit, fit)) < 0.5 * fit.error(w, w)


def test_of_a_grouped_convolution_each_group_has_its_own() -> None:
    rng, node = np.random.default_rng(0), deep().graph.node(2)
    x, f = (rng.normal(size=(4, 16, 6, 6)).astype(np.float32) for _ in range(2))
    total = DriftSum()
    total.update(Rows.of(node), x, f)
    drift = total.drift()
    assert drift.read.shape == (16, 9, 9) and drift.count == 4 * 16
    patch = np.stack([x[:, 5, i : i + 4, j : j + 4].ravel() for i in range(3) for j in range(3)]).astype(np.float64)
    np.testing.assert_allclose(drift.read[5], np.cov(patch, bias=True), rtol=1e-9, atol=1e-12)


def test_of_many_rows_so_many_are_taken_as_tell_the_same() -> None:
    node, rng = deep().graph.node(4), np.random.default_rng(1)
    x = (rng.normal(size=(3, 16, 60, 60)) + np.arange(16)[:, None, None]).astype(np.float32)
    f = x + rng.normal(size=x.shape).astype(np.float32)
    total = DriftSum()
    total.update(Rows.of(node), x, f)
    drift = total.drift()
    assert drift.count == 3 * 256
    np.testing.assert_allclose(drift.mean[0], x.mean((0, 2, 3)), atol=0.15)  # 4 deviations of a mean of 768
    np.testing.assert_allclose(drift.lost[0], np.cov((f - x).transpose(1, 0, 2, 3).reshape(16, -1)), atol=0.25)


def deep() -> ir.Model:
    shapes = {"a": (16, 8, 3, 3), "p": (16,), "b": (16, 1, 3, 3), "q": (16,), "c": (8, 16, 1, 1)}
    return model(DEEP, {n: normal(*s, seed=i) * 0.3 for i, (n, s) in enumerate(shapes.items())})


def pictures(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(count, 8, 3, 3)).repeat(2, 2).repeat(2, 3) + 0.3 * rng.normal(size=(count, 8, 6, 6))
    return rough.astype(np.float32)


@pytest.mark.parametrize(("made", "data", "codes"), [(chain, correlated, "uint4"), (deep, pictures, "uint8")])
def test_outputs_come_closer_than_layer_by_layer_out_of_sample(made, data, codes) -> None:
    quantize, x, unseen = replace(COARSE, activation=codes), data(256, seed=0), {"x": data(256, seed=5)}
    expected, lost = kit.run(made(), unseen)["y"], []
    for towards in ("layer", "teacher"):
        rounding = Gptq(towards=towards, samples=256)
        after, (*_, report) = kit.apply(made(), quantize, rounding, ctx=context({"x": x}, None))
        lost.append(np.square(kit.run(after, unseen)["y"] - expected).sum())
        assert report.changed == 3 and not report.skips
        for q in grids.quantized_layers(after, PassReport()):
            np.testing.assert_array_equal(q.rounded(q.params()), q.weight())
    assert lost[1] < 0.93 * lost[0]


def test_outputs_are_right_on_average() -> None:
    x = {"x": correlated(256)}
    after, _ = kit.apply(chain(), COARSE, Gptq(towards="teacher", samples=256, observer="loss"), ctx=context(x, None))
    off = kit.run(after, x)["y"] - kit.run(chain(), x)["y"]
    plain, _ = kit.apply(chain(), COARSE, Gptq(samples=256, observer="loss"), ctx=context(x, None))
    assert np.abs(off.mean(0)).max() < 0.2 * np.abs((kit.run(plain, x)["y"] - kit.run(chain(), x)["y"]).mean(0)).max()
    assert all(CORRECTED in q.layer.node.metadata_props for q in grids.quantized_layers(after, PassReport()))


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    x, state = {"x": correlated(64)}, str(tmp_path / "state")
    whole = Gptq(towards="teacher", state=state)
    first, _ = kit.apply(chain(), COARSE, whole, ctx=context(x, None))
    again, _ = kit.apply(chain(), COARSE, whole, ctx=context(x, None))
    fresh, _ = kit.apply(chain(), COARSE, replace(whole, state=None), ctx=context(x, None))
    for name, weight in weights(fresh).items():
        np.testing.assert_array_equal(weights(first)[name], weight)
        np.testing.assert_array_equal(weights(again)[name], weight)
    kit.assert_same_outputs(first, again)
    kit.assert_same_outputs(first, fresh)


def test_a_layer_that_the_float_model_lacks_is_a_skip() -> None:
    sizes = {"a": (32, 40), "b": (40,), "c": (40, 16), "d": (32, 16)}
    other = model(CHAIN.replace("48", "40"), {n: normal(*size) for n, size in sizes.items()})
    ctx = replace(context({"x": correlated(64)}, None), teacher=other)
    _, (*_, report) = kit.apply(chain(), COARSE, Gptq(towards="teacher"), ctx=ctx)
    assert report.changed == 1 and len(report.skips) == 2  # d alone is as it is there
    assert "float model has no such layer" in str(report.skips[0])


def test_without_a_float_model_it_says_so() -> None:
    made, _ = kit.apply(chain(), COARSE, ctx=context({"x": correlated(64)}, None))
    with pytest.raises(BadRequest, match="float model"):
        Gptq(towards="teacher").run(made, context({"x": correlated(64)}, None), PassReport(name="gptq"))
