"""GPTQ as a pass: against a reference on the rounded prefix, out of sample, on every kind of layer, interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.observe.data import CalibrationData
from graphpress.observe.im2col import Window
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers import obs
from graphpress.passes.recover.rounding import grids, waves
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.passes.recover.rounding.layer_by_layer import split
from graphpress.runner import Runner
from tests import kit
from tests.passes.quantizing import context, model, normal

CHAIN = """
g (float[N, 32] x, float[32, 48] a, float[48] b, float[48, 16] c, float[32, 16] d) => (float[N, 16] y) {
    h = MatMul(x, a)
    k = Add(h, b)
    r = Relu(k)
    u = MatMul(r, c)
    v = MatMul(x, d)
    y = Add(u, v)
}
"""
GROUPS = Quantize(mode="weight", weight="int4", weight_granularity="per_group", group_size=16)
CHANNELS = replace(GROUPS, weight_granularity="per_channel")


def correlated(rows: int, seed: int = 0, width: int = 32) -> np.ndarray:
    mixing = np.random.default_rng(99).normal(size=(width, width)) * np.logspace(0, -1.5, width)[:, None]
    return (np.random.default_rng(seed).normal(size=(rows, width)) @ mixing).astype(np.float32)


def chain() -> ir.Model:
    weights = {"a": normal(32, 48), "b": normal(48, seed=1), "c": normal(48, 16, seed=2), "d": normal(32, 16, seed=3)}
    return model(CHAIN, weights)


def gptq(
    made: ir.Model, x: np.ndarray, *passes: Any, ctx: Context | None = None, name: str = "x"
) -> tuple[ir.Model, PassReport]:
    after, reports = kit.apply(made, *passes, ctx=ctx or context({name: x}, target=None))
    return after, reports[-1]


def weights(made: ir.Model) -> dict[str, np.ndarray]:
    return {q.name: q.weight() for q in grids.quantized_layers(made, PassReport())}


@pytest.mark.parametrize("weight", ["int4", "uint4", "int3", "int2"])
@pytest.mark.parametrize("granularity", ["per_group", "per_channel", "per_tensor"])
@pytest.mark.parametrize("act_order", [True, False])
def test_outputs_come_closer_out_of_sample(weight: Any, granularity: Any, act_order: bool) -> None:
    quantize = replace(GROUPS, weight=weight, weight_granularity=granularity, weight_symmetric=weight != "uint4")
    x, unseen = correlated(256), {"x": correlated(256, seed=5)}
    expected = kit.run(chain(), unseen)["y"]
    nearest, _ = kit.apply(chain(), replace(quantize, weight_observer="mse"), ctx=context(None, None))
    after, report = gptq(chain(), x, quantize, Gptq(act_order=act_order))
    lost = [np.square(kit.run(m, unseen)["y"] - expected).sum() for m in (nearest, after)]
    assert lost[1] < 0.8 * lost[0]
    assert report.changed == 3 and not report.skips


@pytest.mark.parametrize(
    "options", [{}, {"act_order": False}, {"act_order": False, "observer": "mse"}, {"observer": "minmax"}]
)
def test_weights_lie_on_the_grid_of_the_scheme(options: dict[str, Any]) -> None:
    made, _ = gptq(chain(), correlated(64), replace(GROUPS, weight="int3"), Gptq(**options))
    for q in grids.quantized_layers(made, PassReport()):
        np.testing.assert_array_equal(q.rounded(q.params()), q.weight())
    folded, _ = kit.apply(made, FoldWeights(), ctx=context(None, None))
    codes = [
        v.const_value.numpy().astype(int) for v in folded.graph.initializers.values() if v.dtype == ir.DataType.INT4
    ]
    sizes = [c for c in codes if c.any()]
    assert len(sizes) == 3 and all(c.min() >= -4 and c.max() <= 3 for c in codes)


def test_each_layer_is_the_reference_on_what_the_rounded_ones_before_it_give() -> None:
    x, options = correlated(200), Gptq(observer="keep", batch_size=7, samples=200, act_order=False)
    start, _ = kit.apply(chain(), CHANNELS, ctx=context(None, None))
    made, _ = gptq(start, x, options)
    data = CalibrationData.from_arrays({"x": x}).bind(start)
    fit = split(data.take(options.samples, 0), 0)[0]
    inputs = np.concatenate([f["x"] for f in fit.batches(100)]).astype(np.float64)
    found, before = weights(made), {q.name: q for q in grids.quantized_layers(start, PassReport())}
    hidden = np.maximum(inputs @ found["MatMul_0"].T + normal(48, seed=1), 0)
    for name, seen in (("MatMul_0", inputs), ("MatMul_4", inputs), ("MatMul_3", hidden)):
        q = before[name]
        expected = obs.solve(q.weight(), seen.T @ seen, Channels(q.params().scale))
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


class Channels:
    step = 0

    def __init__(self, scale: np.ndarray) -> None:
        self.scale = scale

    def enter(self, columns: np.ndarray, start: int, diagonal: np.ndarray) -> None:
        pass

    def __call__(self, column: np.ndarray, j: int) -> np.ndarray:
        return np.clip(np.rint(column.astype(np.float32) / self.scale), -8, 7) * self.scale


def test_inputs_that_do_not_correlate_leave_rounding_to_nearest_and_say_so() -> None:
    x = np.tile(np.diag(np.arange(1, 33, dtype=np.float32)), (4, 1))  # as many of each: X^T X is diagonal
    made = model("g (float[N, 32] x, float[32, 8] w) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    start, _ = kit.apply(made, GROUPS, ctx=context(None, None))
    (q,) = grids.quantized_layers(start, PassReport())
    after, report = gptq(start, x, Gptq(observer="keep", samples=128))
    np.testing.assert_array_equal(weights(after)[q.name], q.rounded(q.params()))
    assert "no worse" in report.skips[0].why
    assert report.metrics["error against rounding to nearest"] == 1.0


def test_never_worse_on_samples_held_out() -> None:
    made = model("g (float[N, 32] x, float[32, 8] w) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    start, _ = kit.apply(made, GROUPS, ctx=context(None, None))
    data = CalibrationData.from_arrays({"x": np.arange(64 * 32, dtype=np.float32).reshape(64, 32)}).bind(start)
    held = [int(row[0] // 32) for f in split(data, 0)[1].batches(64) for row in f["x"]]
    x = correlated(64)[:, :1] * np.ones((1, 32), np.float32)  # one direction to fit to, all of them held out
    x[held] = 10 * normal(len(held), 32)
    (q,) = grids.quantized_layers(start, PassReport())
    after, report = gptq(start, x, Gptq(damping=1e-6))
    np.testing.assert_array_equal(weights(after)[q.name], q.rounded(q.params()))
    assert "held-out" in report.skips[0].why
    assert report.metrics["error against rounding to nearest"] == 1.0  # which was kept: nothing was lost


@pytest.mark.parametrize("granularity", ["per_channel", "per_group"])
def test_convolutions_with_groups(granularity: Any) -> None:
    text = """
    g (float[N, 64, 6, 6] x, float[8, 32, 3, 3] w, float[8] b) => (float[N, 8, 3, 3] y) {
        y = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)
    }
    """
    mixing = normal(64, 64, seed=9) * np.logspace(0, -1.5, 64, dtype=np.float32)[:, None]
    x = np.einsum("nchw,cd->ndhw", normal(120, 64, 6, 6), mixing)
    unseen = {"x": np.einsum("nchw,cd->ndhw", normal(24, 64, 6, 6, seed=8), mixing)}
    made = model(text, {"w": normal(8, 32, 3, 3), "b": normal(8)})
    quantize = replace(GROUPS, weight_granularity=granularity)
    nearest, _ = kit.apply(made, replace(quantize, weight_observer="mse"), ctx=context(None, None))
    after, report = gptq(made, x, quantize, Gptq())
    expected = kit.run(made, unseen)["y"]
    lost = [np.square(kit.run(m, unseen)["y"] - expected).sum() for m in (nearest, after)]
    assert lost[1] < 0.7 * lost[0] and report.changed == 1


def test_a_group_of_a_convolution_sees_its_own_channels() -> None:
    text = """
    g (float[N, 32, 5, 5] x, float[4, 16, 2, 2] w) => (float[N, 4, 4, 4] y) { y = Conv <group = 2> (x, w) }
    """
    x, w = normal(20, 32, 5, 5) + normal(20, 1, 5, 5, seed=4), normal(4, 16, 2, 2)
    start, _ = kit.apply(model(text, {"w": w}), CHANNELS, ctx=context(None, None))
    (q,) = grids.quantized_layers(start, PassReport())
    fit = split(CalibrationData.from_arrays({"x": x}).bind(start).take(128, 0), 0)[0]
    rows = Window.of(q.layer.node, (2, 2)).rows(np.concatenate([f["x"] for f in fit.batches(100)])).astype(np.float64)
    scale = q.params().scale
    expected = np.concatenate(
        [
            obs.solve(q.weight()[s], r.T @ r, Channels(scale[s]))
            for s, r in ((slice(2), rows[0]), (slice(2, 4), rows[1]))
        ]
    )
    after, _ = gptq(start, x, Gptq(observer="keep", act_order=False))
    np.testing.assert_allclose(weights(after)[q.name], expected, rtol=1e-6)


def test_a_dead_input_keeps_its_weights() -> None:
    x = correlated(64)
    x[:, 5] = 0
    after, _ = gptq(chain(), x, CHANNELS, Gptq(observer="keep"))
    q = next(q for q in grids.quantized_layers(after, PassReport()) if q.name == "MatMul_4")
    nearest = np.rint(normal(32, 16, seed=3)[5] / q.params().scale) * q.params().scale
    np.testing.assert_array_equal(q.weight()[:, 5], nearest)


def test_zeros_of_a_pruned_weight_stay() -> None:
    made = chain()
    w = normal(32, 16, seed=3)
    w.reshape(8, 4, 16)[:, 1:3] = 0
    made.graph.initializers["d"].const_value = ir.tensor(w, name="d")
    edit.find(made, "MatMul_4").metadata_props[SPARSITY] = "2:4"
    after, report = gptq(made, correlated(64), replace(GROUPS, weight="uint4", weight_symmetric=False), Gptq())
    assert not weights(after)["MatMul_4"][:, (w == 0)[:, 0]].any()
    assert report.changed == 3 and not report.skips  # it is not rounding to nearest that kept them


# -- waves and the prefix ----------------------------------------------------------------------------------------------


def test_waves_hold_layers_that_do_not_depend_on_one_another() -> None:
    made = chain()
    nodes = [n for n in made.graph if n.op_type == "MatMul"]
    found = waves.waves(made.graph, nodes)
    assert [[nodes[i].name for i in w.nodes] for w in found] == [["MatMul_0", "MatMul_4"], ["MatMul_3"]]
    assert [w.live for w in found] == [("x",), ("r",)]


def test_no_node_runs_twice_and_batches_do_not_matter(tmp_path: Path) -> None:
    ran: list[str] = []

    def execute(part: ir.Model, outputs: Iterable[str] | None = None) -> Runner:
        ran.extend(n.name or "" for n in part.graph)
        return reference.execute(part, outputs)

    start, _ = kit.apply(chain(), GROUPS, ctx=context(None, None))
    ctx = replace(context({"x": correlated(128)}, None), run=execute)
    report = PassReport()
    one, other = start.clone(), start.clone()
    Gptq(batch_size=40).run(one, ctx, report)
    assert len(ran) == len(set(ran)) and {"MatMul_0", "Relu_2"} <= set(ran)
    assert "MatMul_3" not in ran  # nothing reads it
    Gptq(batch_size=3).run(other, ctx, report)
    for name, w in weights(one).items():
        np.testing.assert_allclose(weights(other)[name], w, atol=1e-6)


def test_what_a_wave_has_run_no_later_one_runs_again() -> None:
    ran: list[str] = []

    def execute(part: ir.Model, outputs: Iterable[str] | None = None) -> Runner:
        ran.extend(n.op_type for n in part.graph if n.op_type in ("Relu", "Tanh", "Abs"))
        return reference.execute(part, outputs)

    text = """g (float[N, 32] x, float[32, 16] a, float[16, 16] b, float[16, 16] c, float[16, 16] d) => (float[N, 16] y)
    { h = MatMul(x, a) i = Relu(h) j = MatMul(i, b) k = Tanh(j) l = MatMul(k, c) m = Abs(l) y = MatMul(m, d) }"""
    given = {n: normal(32 if n == "a" else 16, 16, seed=i) for i, n in enumerate("abcd")}
    start, _ = kit.apply(model(text, given), GROUPS, ctx=context(None, None))
    Gptq(batch_size=128).run(start, replace(context({"x": correlated(64)}, None), run=execute), PassReport())
    assert ran == ["Relu", "Tanh", "Abs"]


def test_values_beyond_the_memory_lie_on_disk() -> None:
    batches = [{"a/b": normal(3, 4, seed=i), "c": np.array(i)} for i in range(5)]
    store = waves.BatchStore.of(batches, memory=100)
    assert sum(isinstance(b, Path) for b in store.batches) == 4 and len(store) == 5
    for _ in range(2):
        for seen, expected in zip(store, batches, strict=True):
            assert seen.keys() == expected.keys()
            np.testing.assert_array_equal(seen["a/b"], expected["a/b"])


# -- interrupted, refused, left out ------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_identical_result(tmp_path: Path, after: int) -> None:
    def stopping(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        for i, item in enumerate(items):
            if label == "gptq" and i == after:
                raise Stop
            yield item

    state, ctx = tmp_path / "state.npz", context({"x": correlated(128)}, None)
    start, _ = kit.apply(chain(), GROUPS, ctx=context(None, None))
    whole, again = start.clone(), start.clone()
    Gptq().run(whole, ctx, PassReport())
    options, report = Gptq(state=str(state)), PassReport()
    if after < 2:
        with pytest.raises(Stop):
            options.run(start.clone(), replace(ctx, progress=stopping), PassReport())
    else:
        options.run(start.clone(), ctx, PassReport())
    options.run(again, ctx, report)
    assert kit.structure(again) == kit.structure(whole)
    for name, w in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], w)
    assert report.changed == 3


def test_a_state_of_another_job_is_not_used_and_another_file_is_refused(tmp_path: Path) -> None:
    state, ctx = tmp_path / "state.npz", context({"x": correlated(128)}, None)
    start, _ = kit.apply(chain(), GROUPS, ctx=context(None, None))
    Gptq(state=str(state), damping=0.5).run(start.clone(), ctx, PassReport())
    made, plain = start.clone(), start.clone()
    Gptq(state=str(state)).run(made, ctx, PassReport())
    Gptq().run(plain, ctx, PassReport())
    for name, w in weights(plain).items():
        np.testing.assert_array_equal(weights(made)[name], w)
    state.write_text("something of the user's")
    with pytest.raises(BadRequest, match="no state of gptq"):
        Gptq(state=str(state)).run(start.clone(), ctx, PassReport())
    assert state.read_text() == "something of the user's"


def test_without_data_it_says_what_to_give() -> None:
    start, _ = kit.apply(chain(), GROUPS, ctx=context(None, None))
    with pytest.raises(BadRequest, match="--data"):
        Gptq().run(start, context(None, None), PassReport())
    with pytest.raises(BadRequest, match="damping"):
        Gptq(damping=-1).run(start, context({"x": correlated(4)}, None), PassReport())


def test_what_it_cannot_reach_is_a_skip() -> None:
    text = """
    g (bool f, int64[N] i, float[N, 32] x, float[9, 32] t, float[32, 32] w, float[32, 8] a, float[32, 8] b)
        => (float[N, 8] y, float[N, 32] z)
    {
        e = Gather(t, i)
        h = MatMul(x, w)
        j = MatMul(e, w)
        z = Add(h, j)
        y = If (f) <
            then_branch = p () => (float[N, 8] u) { u = MatMul(x, a) },
            else_branch = q () => (float[N, 8] v) { v = MatMul(x, b) }
        >
    }
    """
    made = model(text, {"t": normal(9, 32), "w": normal(32, 32), "a": normal(32, 8), "b": normal(32, 8)})
    feeds = {"f": np.array(True), "i": np.arange(64) % 9, "x": correlated(64)}
    after, reports = kit.apply(made, GROUPS, Gptq(), ctx=context(feeds, None))
    said = {s.where: s.why for s in reports[-1].skips}
    assert "MatMul_5" not in said and "no weight of a linear layer" in said["Gather_0"]
    assert "shared by 2" in said["MatMul_1"]
    _, reports = kit.apply(after, FoldWeights(), Gptq(), ctx=context(feeds, None))
    assert "before the passes that fold" in {s.where: s.why for s in reports[-1].skips}["MatMul_1"]


def test_layers_with_too_many_inputs_keep_rounding_to_nearest() -> None:
    after, report = gptq(chain(), correlated(64), GROUPS, Gptq(largest=40))
    assert {s.where: s.why for s in report.skips}["MatMul_3"] == "it has 48 inputs, over the 40 of option 'largest'"
    q = next(q for q in grids.quantized_layers(after, PassReport()) if q.name == "MatMul_3")
    np.testing.assert_array_equal(q.weight(), normal(48, 16, seed=2).T)


@pytest.mark.slow
def test_the_code_model_in_three_bits(zoo: Path) -> None:
    """GPTQ leaves at most 0.8 of what rounding to nearest loses, and the same function within 0.02 nats."""
    import graphpress as gp
    from graphpress.backends import ort
    from graphpress.tools.bench.language import nats

    folder = zoo / "llm/codelm"
    made = gp.load(folder / "codelm.onnx")
    ids = np.load(folder / "calib.npz")["ids"].astype(np.int64)[:, :257]
    ctx = Context(data=CalibrationData.from_arrays({"ids": ids[:48, :256]}), run=ort.execute, oracle=reference.execute)
    head = [n.name or "" for n in made.graph if n.op_type == "MatMul"][-1]
    quantize = replace(GROUPS, weight="int3", group_size=64, weight_observer="mse", embeddings=False, ignore=(head,))

    def loss(*passes: Any) -> float:
        after = kit.apply(made, *passes, ctx=ctx)[0] if passes else made
        return nats(ort.execute(after), (ids[i : i + 8] for i in range(96, 128, 8)))

    base = loss()
    nearest, rounded = loss(quantize) - base, loss(replace(quantize, weight_observer="minmax"), Gptq()) - base
    assert rounded <= 0.8 * nearest and rounded <= 0.02
