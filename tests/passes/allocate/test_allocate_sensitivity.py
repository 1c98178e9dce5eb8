"""Sensitivity: prefix reuse against whole models, the estimate against what it estimates, bad metrics, time, cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest, Unsupported
from graphpress.job.natures import Form, Kind, Nature
from graphpress.observe.memo import Recall
from graphpress.passes.allocate import fisher
from graphpress.passes.allocate.divergence import divergence
from graphpress.passes.allocate.edges import Probe
from graphpress.passes.allocate.sensitivity import Measurer, Sensitivity
from graphpress.passes.allocate.store import Cache
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.runner import Runner
from graphpress.types import Plan
from tests.passes import allocating


def measured(
    ctx: Context, method: str = "kl", seconds: float | None = None, store: Cache | None = None
) -> tuple[Sensitivity, Context]:
    ctx = replace(ctx, calibrate=Recall())
    found = allocating.parts(allocating.residual(), ctx, ties=())
    return Measurer(found, ctx, method, 16, seconds, store or Cache(None, "x")).run(), ctx


def test_kl_of_a_site_is_that_of_the_whole_model_with_it_rewritten() -> None:
    found, ctx = measured(allocating.context(allocating.images()))
    model = allocating.residual()
    space = allocating.parts(model, ctx, ties=()).space
    data = Probe(model, ctx, 16).data
    (feeds,) = data.batches(16)
    assert ctx.oracle is not None
    before = ctx.oracle(model)(feeds)
    for node in ("stem", "second", "head"):
        for name in space.wanted()[node]:
            clone = model.clone()
            ApplyPlan(Plan(space.own[node][name])).run(clone, ctx, PassReport())
            after = ctx.oracle(clone)(feeds)
            whole = divergence(before, after, {"y": Nature(Kind.CLASSES, sure=False)})
            assert found.drops[node][name] == pytest.approx(whole, rel=1e-3, abs=1e-9), (node, name)
    assert set(found.drops) == {"stem", "first", "second", "head"}
    assert not found.estimated


def test_fewer_bits_cost_more() -> None:
    found, _ = measured(allocating.context(allocating.images()))
    for row in found.drops.values():
        assert 0 <= row["w8a16"] < row["w4a16-asym"]
        assert row["w8a8"] < row["w4a8"]


def test_the_divergence_is_the_textbook_kl() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), size=7), rng.dirichlet(np.ones(5), size=7)
    exact = float(np.mean((p * np.log(p / q)).sum(-1)))
    logits, given = Nature(Kind.CLASSES, 2), Nature(Kind.CLASSES, 2, Form.PROBABILITIES)
    tokens = {"z": np.log(p)[None]}, {"z": np.log(q)[None] + 3.0}  # a constant is nothing to a softmax
    assert divergence(*tokens, {"z": logits}) == pytest.approx(exact, rel=1e-12)
    assert divergence({"z": p[None]}, {"z": q[None]}, {"z": given}) == pytest.approx(exact, rel=1e-9)
    columns = {"z": p.T[None, :, :, None]}, {"z": q.T[None, :, :, None]}  # a map: classes along the second axis
    assert divergence(*columns, {"z": replace(given, axis=1)}) == pytest.approx(exact, rel=1e-9)
    one = {"z": np.array([1.0, 2.0, 2.0])}, {"z": np.array([1.0, 2.0, 5.0])}
    for kind in set(Kind) - {Kind.CLASSES}:
        assert divergence(*one, {"z": Nature(kind)}) == pytest.approx(1.0)
    assert divergence(*tokens, {}) == 0.0
    assert np.isnan(divergence({"z": p}, {"z": p * np.nan}, {"z": Nature(Kind.CLASSES)}))
    assert divergence({"z": p}, {"z": p[1:]}, {"z": Nature(Kind.VALUES)}) == 1.0


def test_what_is_only_likely_to_be_scores_counts_as_values_too() -> None:
    """A softmax does not see what moves all of them; in columns that move together that is all there is."""
    scores = np.random.default_rng(0).normal(size=(7, 5))
    moved = {"z": scores}, {"z": scores + 3.0}
    assert divergence(*moved, {"z": Nature(Kind.CLASSES)}) == pytest.approx(0, abs=1e-12)
    both = divergence(*moved, {"z": Nature(Kind.CLASSES, sure=False)})
    assert both == pytest.approx(9 * scores.size / (scores**2).sum(), rel=1e-9)


def test_the_estimate_agrees_with_kl_where_changes_are_small() -> None:
    ctx = replace(allocating.context(allocating.images(96)), calibrate=Recall())
    found = allocating.parts(allocating.residual(), ctx, ties=())
    probe = Probe(found.space.model, ctx, 96)
    wanted = found.space.wanted()
    guess = fisher.estimate(found, ctx, probe, wanted)
    exact = Measurer(found, ctx, "kl", 96, None, Cache(None, "x")).run().drops
    pairs = [(exact[n][f], guess[n][f]) for n in wanted for f in wanted[n]]
    ratios = np.array([g / e for e, g in pairs])
    assert 0.6 < np.median(ratios) < 1.7  # 96 samples of a squared Gaussian: 15 % standard error each, and third orders
    logs = np.log(np.array(pairs))
    assert np.corrcoef(logs.T)[0, 1] > 0.97


def test_where_time_is_up_the_estimate_stands_in_and_says_so() -> None:
    found, _ = measured(allocating.context(allocating.images()), seconds=0.0)
    assert found.estimated == {(n, f) for n, row in found.drops.items() for f in row}
    exact, _ = measured(allocating.context(allocating.images()), seconds=None)
    assert {n: set(r) for n, r in found.drops.items()} == {n: set(r) for n, r in exact.drops.items()}


@pytest.mark.parametrize("hidden", [True, False])
def test_without_torch_the_estimate_is_the_error_of_each_result_and_says_so(hidden: bool) -> None:
    """In order it is near what is measured: it lacks what the rest of the graph makes of an error."""

    def refuse(*args: object, **options: object) -> None:
        raise Unsupported("torch is not installed")

    ctx = allocating.context(allocating.images(), torch=False)
    ctx = replace(ctx, differentiate=None if hidden else refuse)
    exact, _ = measured(ctx)
    assert not exact.estimated and not exact.how
    found, _ = measured(ctx, seconds=0.0)
    assert found.estimated == {(n, f) for n, row in exact.drops.items() for f in row}
    assert "torch" in found.how
    pairs = np.array([(exact.drops[n][f], found.drops[n][f]) for n, f in sorted(found.estimated)])
    assert (pairs > 0).all() and np.corrcoef(np.log(pairs).T)[0, 1] > 0.8


def test_what_was_measured_is_found_again_and_what_was_estimated_is_not(tmp_path: Path) -> None:
    ctx = allocating.context(allocating.images())
    measured(ctx, seconds=0.0, store=Cache(tmp_path, "s"))
    first, _ = measured(ctx, store=Cache(tmp_path, "s"))
    assert first.cached == 0
    again, _ = measured(ctx, store=Cache(tmp_path, "s"))
    assert again.cached == sum(len(r) for r in again.drops.values())
    assert again.drops == first.drops
    other, _ = measured(allocating.context(allocating.images(seed=8)), store=Cache(tmp_path, "s"))
    assert other.cached == 0
    (tmp_path / "s.npz").write_text("{broken")
    with pytest.raises(BadRequest, match=r"s.npz: the file is no store of measured figures. Delete it"):
        Cache(tmp_path, "s")


def accuracy(runner: Runner) -> float:
    x = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)
    return float(runner({"x": x})["y"].mean())


def test_a_metric_in_place_of_kl_gives_points_lost() -> None:
    ctx = replace(allocating.context(allocating.images()), evaluate=accuracy)
    found, _ = measured(ctx, "metric")
    assert all(v >= 0 for row in found.drops.values() for v in row.values())
    assert max(v for row in found.drops.values() for v in row.values()) > 0


def broken(runner: Runner) -> float:
    raise ZeroDivisionError("no samples")


def no_number(runner: Runner) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("metric", "said"),
    [(broken, "metric broken.* raises ZeroDivisionError"), (no_number, "no_number.* gives nan")],
)
def test_a_metric_that_fails_is_named(metric: object, said: str) -> None:
    ctx = replace(allocating.context(allocating.images()), evaluate=metric)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=said):
        measured(ctx, "metric")


def test_no_data_no_metric_and_nan_outputs_are_refused() -> None:
    with pytest.raises(BadRequest, match="calibration data, and there is none"):
        measured(allocating.context(None))
    with pytest.raises(BadRequest, match="there is no metric"):
        measured(allocating.context(allocating.images()), "metric")
    with pytest.raises(BadRequest, match="needs torch"):
        measured(allocating.context(allocating.images(), torch=False), "fisher")
    model = allocating.residual()
    bias = model.graph.initializers["bf"].const_value
    assert bias is not None
    bias.numpy()[0] = np.nan
    ctx = replace(allocating.context(allocating.images()), calibrate=Recall())
    with pytest.raises(BadRequest, match="NaN on the data"):
        Measurer(allocating.parts(model, ctx, ties=()), ctx, "kl", 8, None, Cache(None, "x")).run()
