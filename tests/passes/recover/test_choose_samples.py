"""Samples that stand for all: the bins against brute force, clusters that a random or a single bin misses, the pass."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphpress as gp
from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.inputs.choose_samples import ChooseSamples
from graphpress.passes.recover.inputs.coverage import bins, covering, greedy, shares, unit
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from tests.passes.quantizing import model, normal

CLUSTERS = (400, 300, 200, 70, 30)


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of five clusters in 16 dimensions, shuffled, and which cluster each is of."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(5), CLUSTERS))
    centres = 2.0 * rng.normal(size=(5, 16))
    return (centres[which] + rng.normal(size=(len(which), 16))).astype(np.float32), which


def likeness(x: np.ndarray) -> float:
    """Mean of 1/2 + 1/2 cos over all pairs of two, in float64."""
    y = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    s = (1 + y @ y.T) / 2
    return float((s.sum() - np.trace(s)) / (len(x) * (len(x) - 1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99))
def test_bins_are_disjoint_hold_all_and_differ_by_one(n: int, count: int, seed: int) -> None:
    rows = unit(np.random.default_rng(seed).normal(size=(n, 3)))
    found = list(bins(rows, min(count, n)))
    assert sorted(np.concatenate(found)) == list(range(n))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 99))
def test_the_greedy_gain_is_that_of_brute_force(n: int, trade: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 4))
    y = x / np.linalg.norm(x, axis=1, keepdims=True)
    sim, taken = (1 + y @ y.T) / 2, []
    for _ in range(n // 2):
        gains = [-np.inf if i in taken else trade * sim[i].sum() - 2 * sim[i, taken].sum() for i in range(n)]
        best = max(gains)
        near = [i for i, g in enumerate(gains) if g > best - 1e-4]
        mine = int(greedy(unit(x), len(taken) + 1, trade)[-1])
        assert mine in near  # ties within float32 go either way
        taken.append(mine)


def test_every_cluster_is_met_where_a_single_bin_misses_some() -> None:
    """arXiv:2308.10524: 5 % of the samples; the first greedy bin holds what is central, all bins together hold all."""
    missed, single, alike, before = 0, 0, [], []
    for seed in range(10):
        x, which = clustered(seed)
        rows = unit(x)
        found = np.concatenate(covering(rows, 50, 10, 1.0, np.random.default_rng(seed)))
        one = greedy(rows, 50)
        assert len(set(found)) == 50
        missed += len(set(which[found])) < 5
        single += len(set(which[one])) < 5
        alike.append(likeness(x[found]))
        before.append(likeness(x[one]))
    assert missed <= 3 and single >= 8
    assert np.mean(before) - np.mean(alike) >= 0.1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.data())
def test_shares_add_up_within_sizes_and_are_proportional(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    found = shares(total, sizes)
    assert sum(found) == total
    for got, size in zip(found, sizes, strict=True):
        assert abs(got - total * size / sum(sizes)) < 1 and got <= size


def classifier(classes: int = 4) -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 20]>
net (float[N,16] x, float[K,16] w) => (float[N,K] y) { [r] h = Relu (x) [head] y = Gemm <transB = 1> (h, w) }"""
    return model(text.replace("K", str(classes)), {"w": normal(classes, 16)})


def run(step: ChooseSamples, data: CalibrationData, seed: int = 0) -> PassReport:
    ctx = Context(run=reference.execute, oracle=reference.execute, data=data, seed=seed)
    return Pipeline([step]).run(classifier(), ctx)[1][0]


def test_the_pass_hands_some_of_each_bin_on_and_says_which() -> None:
    x, _ = clustered(0)
    found = run(ChooseSamples(samples=50, embedding="features"), CalibrationData.from_arrays({"x": x}))
    kept = next(iter(found.handed["data"].batches(100)))["x"]
    (table,) = found.exhibits
    said = [int(i) for row in table.data["rows"] for i in row[2].split(", ")]
    assert len(table.data["rows"]) == 10 and np.array_equal(x[np.sort(said)], kept)
    features = np.maximum(x, 0)
    assert found.metrics["mean similarity"] == pytest.approx(likeness(features[said]), abs=1e-4)
    assert found.metrics["of all"] == pytest.approx(likeness(features), abs=1e-4)


def test_labels_split_the_bins_by_class_in_proportion() -> None:
    x, which = clustered(1)
    found = run(ChooseSamples(samples=100), CalibrationData.from_arrays({"x": x}, which))
    counts = np.bincount(found.handed["data"].labels)
    assert counts.tolist() == [40, 30, 20, 7, 3] and found.metrics["classes"] == 5


def test_gradients_are_those_of_the_cross_entropy() -> None:
    import torch

    from graphpress.passes.recover.inputs.choose_samples import _gradients

    x, w = (torch.randn(n, 16, generator=torch.Generator().manual_seed(n)) for n in (5, 4))
    labels = torch.tensor([0, 1, 2, 3, 1])
    for i in range(5):
        weight = w.clone().requires_grad_(True)
        torch.nn.functional.cross_entropy(x[i : i + 1] @ weight.T, labels[i : i + 1]).backward()
        assert weight.grad is not None
        mine = _gradients(x.numpy(), (x @ w.T).numpy(), labels.numpy())[i].reshape(4, 16)
        assert np.allclose(mine, weight.grad.numpy(), atol=1e-6)


def test_the_same_seed_gives_the_same_samples() -> None:
    x, _ = clustered(2)
    data = CalibrationData.from_arrays({"x": x})
    first, again, other = (run(ChooseSamples(samples=20), data, s).handed["data"].digest() for s in (3, 3, 4))
    assert first == again != other


def test_compile_calibrates_on_what_is_kept() -> None:
    x, which = clustered(3)
    recipe = Recipe.load(
        {"name": "few", "passes": [{"choose-samples": {"samples": 40}}, {"quantize": {"mode": "static"}}]}
    )
    _, report = gp.compile(classifier(5), recipe, {"x": x, "labels": which}, gate=False, prove=False)
    assert report.data["calibration"] == 40 and report.data["made_by"] == "choose-samples"


def test_all_are_kept_where_there_are_no_more() -> None:
    found = run(ChooseSamples(samples=64), CalibrationData.from_arrays({"x": np.ones((9, 16), np.float32)}))
    assert not found.handed and "all of them are kept" in found.skips[0].why


@pytest.mark.parametrize(("options", "what"), [
    ({"samples": 0}, "samples"), ({"bins": 0}, "bins"), ({"trade": 0.0}, "trade"),
    ({"at": "h", "embedding": "gradients"}, "last layer"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        ChooseSamples(**options)  # type: ignore[arg-type]


def test_equal_and_zero_samples_are_no_trouble() -> None:
    x = np.concatenate([np.zeros((6, 16)), np.ones((6, 16))]).astype(np.float32)
    found = run(ChooseSamples(samples=4, bins=3, embedding="features"), CalibrationData.from_arrays({"x": x}))
    assert len(found.handed["data"]) == 4
