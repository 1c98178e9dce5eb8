"""What permute takes and what it leaves, and that all readers of a value have a say in one order."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import ort
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.prune import permute
from graphpress.passes.prune.permute import Permute
from graphpress.passes.prune.search import OrderSearch
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal

NO_LAYER = "its input comes from no layer that is followed"
NO_TWO = "no two of its channels come and go the same way"


def chain(*widths: int) -> ir.Model:
    """x -> first -> Relu -> second -> y."""
    a, b, c = widths
    text = f"""g (float[N, {a}] x, float[{a}, {b}] w, float[{b}, {c}] u) => (float[N, {c}] y) {{
        [first] h = MatMul(x, w) r = Relu(h) [second] y = MatMul(r, u) }}"""
    made = quantizing.model(text, {"w": normal(a, b), "u": normal(b, c, seed=1)})
    return kit.apply(made, InferShapes())[0]


def ran(made: ir.Model, step: Permute, ctx: Context | None = None) -> PassReport:
    report = PassReport()
    step.run(made, ctx or Context(), report)
    return report


@pytest.mark.parametrize(
    ("widths", "changed", "skips"),
    [
        ((8, 8, 12), True, [("first", NO_LAYER)]),  # two groups of four are the fewest that can be ordered
        ((8, 4, 12), False, [("second", NO_TWO), ("first", NO_LAYER)]),
        ((7, 12, 12), True, []),  # seven inputs are too few for anybody
        ((9, 12, 12), True, [("first", NO_LAYER)]),
        ((4, 10, 12), False, []),  # no multiple of four: no mask
    ],
)
def test_what_is_taken_and_what_stays(widths: tuple[int, ...], changed: bool, skips: list[tuple[str, str]]) -> None:
    report = ran(chain(*widths), Permute(escapes=0))
    assert bool(report.changed) == changed and bool(report.metrics) == changed
    assert [(s.where, s.why) for s in report.skips] == skips
    assert report.metrics.get("groups", 1.0) == 1.0


def test_without_options_it_is_two_of_four_by_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Permute() == Permute(n=2, m=4, score="magnitude", stripes=2, escapes=30, samples=128)
    asked: list[tuple[Any, ...]] = []

    def search(*of: Any, seed: int) -> Any:
        asked.append((*of, seed))
        return real(*of, seed=seed)

    real = permute.OrderSearch
    monkeypatch.setattr(permute, "OrderSearch", search)
    ran(chain(8, 16, 4), Permute(n=1, m=2, stripes=3, escapes=5), Context(seed=7))
    assert asked == [(1, 2, 6, 5, 7)]


CHANNELS, PLACES = 8, 4
BOTH = """
g (float[N, 6, 2, 2] x, float[8, 6, 1, 1] w, float[5, 8, 1, 1] v, float[32, 3] u)
    => (float[N, 3] y, float[N, 5, 2, 2] z)
{
    h = Conv(x, w)
    r = Relu(h)
    z = Conv(r, v)
    t = Transpose<perm = [0, 2, 3, 1]>(r)
    f = Flatten(t)
    y = MatMul(f, u)
}
"""


def best(score: np.ndarray, order: tuple[int, ...]) -> float:
    """The two largest of each four neighbours of [rows, 8] in this order."""
    return float(np.sort(score[:, order].reshape(-1, 4), axis=1)[:, 2:].sum())


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("score", ["magnitude", "energy"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_is_the_best_for_all_readers_together(score: str, seed: int, last: bool) -> None:
    """One reads each channel once, the other at four places; two stripes of four have 35 orders that differ.

    Where channels are not the last axis, four neighbours of the second reader are one channel: it has no say.
    """
    w, v, u = (normal(*s, seed=10 * seed + i) for i, s in enumerate([(8, 6, 1, 1), (5, 8, 1, 1), (32, 3)]))
    x = normal(50, 6, 2, 2, seed=99)
    text = BOTH if last else BOTH.replace("[0, 2, 3, 1]", "[0, 1, 2, 3]")
    made = kit.apply(quantizing.model(text, {"w": w, "v": v, "u": u}), InferShapes())[0]
    ctx = Context(data=CalibrationData.from_arrays({"x": x}), run=ort.execute)
    before = made.clone()
    report = ran(made, Permute(score=score, escapes=0), ctx)  # type: ignore[arg-type]
    kit.assert_same_outputs(before, made, {"x": x}, atol=1e-5)

    first, second = v[:, :, 0, 0].astype(np.float64), u.astype(np.float64)
    of_v, of_u = np.abs(first), np.abs(second)
    if score == "energy":
        seen = np.maximum(np.einsum("nchw,oc->nhwo", x.astype(np.float64), w[:, :, 0, 0]), 0)
        flat = (seen if last else np.moveaxis(seen, -1, 1)).reshape(len(x), -1)
        of_v = first**2 * (seen**2).mean((0, 1, 2)) / ((seen @ first.T) ** 2).sum(-1).mean()
        of_u = second**2 * (flat**2).mean(0)[:, None] / ((flat @ second) ** 2).sum(-1).mean()
    parts, fixed = [of_v, *of_u.reshape(PLACES, CHANNELS, 3).transpose(0, 2, 1)], 0.0
    if not last:
        parts, fixed = [of_v], float(np.sort(of_u.reshape(CHANNELS, PLACES, 3), axis=1)[:, 2:].sum())
    orders = [(0, *c, *sorted(set(range(1, CHANNELS)) - set(c))) for c in itertools.combinations(range(1, CHANNELS), 3)]
    every = [fixed + sum(best(p, o) for p in parts) for o in orders]
    assert report.metrics["kept before"] == pytest.approx(every[0], rel=1e-5)
    assert report.metrics["kept after"] == pytest.approx(max(every), rel=1e-5)


ANOTHER = """
g (float[N, 6] x, float[6, 8] w, float[6, 2] e, float[6, 2] f, float[8, 5] u, float[COUNT, 12] v)
    => (float[N, 5] y, float[N, 12] z)
{
    h = MatMul(x, w)
    r = Relu(h)
    i = MatMul(x, e)
    s = Relu(i)
    k = MatMul(x, f)
    t = Relu(k)
    [reader] y = MatMul(r, u)
    BEFORE
    z = MatMul(c, v)
}
"""


@pytest.mark.parametrize(
    ("before", "count"),
    [
        ("c = Concat<axis = -1>(r, s)", 10),  # no multiple of four: it has no mask
        ("c = Concat<axis = -1>(s, r, t)", 12),  # of its three stripes one is of these channels alone
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_reader_whose_stripes_hold_others_has_no_say(before: str, count: int, seed: int) -> None:
    """It has more rows, and is looked at first."""
    shapes = {"w": (6, 8), "e": (6, 2), "f": (6, 2), "u": (8, 5), "v": (count, 12)}
    given = {name: normal(*shape, seed=10 * seed + i) for i, (name, shape) in enumerate(shapes.items())}
    text = ANOTHER.replace("COUNT", str(count)).replace("BEFORE", before)
    made = kit.apply(quantizing.model(text, given), InferShapes())[0]
    start = made.clone()
    ran(made, Permute(escapes=0))
    kit.assert_same_outputs(start, made, {"x": normal(20, 6)}, atol=1e-5)
    found = np.abs(np.asarray(edit.constant(edit.find(made, "reader").inputs[1]), np.float64)).T
    plain = np.abs(given["u"].astype(np.float64)).T
    every = [best(plain, (0, *c, *sorted(set(range(1, 8)) - set(c)))) for c in itertools.combinations(range(1, 8), 3)]
    assert best(found, tuple(range(8))) == pytest.approx(max(every), rel=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_where_readers_part_a_group_in_different_ways_the_one_with_most_rows_decides(first: bool) -> None:
    """The few rows would gain nothing, the many do: their four large columns stand in one stripe."""
    few, many = np.ones((3, 8), np.float32), np.ones((10, 8), np.float32)
    many[:, :4] = 10
    readers = [(np.arange(8), few), (np.array([0, 4, 1, 5, 2, 6, 3, 7]), many)]
    work = permute._Work(SimpleNamespace(roots=lambda: np.arange(8), readers=[]), 4, {})  # type: ignore[arg-type]
    work.readers = readers if first else readers[::-1]
    new = np.arange(8)
    assert work.kept(new, 2) == 3 * 4 + 10 * (20 + 2)
    assert work.order(np.arange(8), OrderSearch(window=0, escapes=0), new)
    assert work.kept(new, 2) == 3 * 4 + 10 * (20 + 20)
