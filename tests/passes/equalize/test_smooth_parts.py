"""The steps of SmoothQuant by themselves: what it asks for, what it looks at, what it chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.equalize import factors, smooth
from graphpress.passes.equalize.smooth import Smooth, find_places
from graphpress.types import PER_TOKEN, Scheme, per_channel, per_group
from tests import kit
from tests.passes.quantizing import context, model, normal


def best(trials: list[Callable[[float | None], float]], **options: float) -> float | None:
    return Smooth(**options)._best(trials)  # type: ignore[arg-type]


def test_of_eleven_alphas_the_one_that_leaves_least_over_all_parts_is_taken() -> None:
    for wanted in (0.0, 0.3, 0.7, 1.0):
        asked: list[float | None] = []

        def cost(alpha: float | None, wanted: float = wanted, asked: list[float | None] = asked) -> float:
            asked.append(alpha)
            return 9.0 if alpha is None else abs(alpha - wanted)

        assert best([cost]) == wanted
        assert asked == [None, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    parts = [lambda a: 9.0 if a is None else abs(a - 0.2), lambda a: 9.0 if a is None else 3 * abs(a - 0.8)]
    assert best(parts) == 0.8


def test_of_equals_the_first_is_taken_and_none_before_what_gains_less_than_a_tenth() -> None:
    assert best([lambda a: 2.0 if a is None else 1.0]) == 0.0
    assert best([lambda a: 1.0 if a is None else 0.91]) is None
    assert best([lambda a: 1.0 if a is None else 0.89]) == 0.0
    assert best([]) is None


def test_where_each_row_has_its_own_scale_less_of_a_gain_is_enough() -> None:
    """No range was chosen that rows could miss, so a gain on rows that are held out is no chance."""
    assert best([lambda a: 1.0 if a is None else 0.96], activation_granularity="per_token") == 0.0
    assert best([lambda a: 1.0 if a is None else 0.98], activation_granularity="per_token") is None


def test_what_may_lie_beyond_counts_against_factors() -> None:
    """0.9 of what none costs is asked for, with it; what none has to fear does not count."""
    costs = {None: 1.0, 0.2: 0.5, 0.6: 0.7}

    def trial(alpha: float | None) -> float:
        return costs.get(alpha, 2.0)

    for beyond, taken in (({}, 0.2), ({0.2: 0.39}, 0.2), ({0.2: 0.41}, 0.6), ({0.2: 0.41, 0.6: 0.21}, None)):
        assert Smooth()._best([trial], lambda alpha, b=beyond: 9.0 if alpha is None else b.get(alpha, 0.0)) == taken


def test_an_alpha_that_is_given_is_not_searched() -> None:
    assert best([], alpha=0.25) == 0.25


def test_what_is_assumed_unless_told_otherwise() -> None:
    assert asdict(Smooth()) == {
        "alpha": "auto", "activation": "uint8", "activation_granularity": "per_tensor", "observer": "mse",
        "weight": "int8", "group_size": 0, "samples": 128, "batch_size": 8, "insert": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "activation", "weight"),
    [
        ({}, Scheme("uint8", symmetric=False, observer="mse"), Scheme("int8", per_channel(0))),
        (
            {"activation": "int8", "observer": "minmax", "weight": "int4", "group_size": 32},
            Scheme("int8", symmetric=False, observer="minmax"),
            Scheme("int4", per_group(1, 32), observer="mse"),  # short codes want a range that is searched
        ),
        (
            {"activation": "int8", "activation_granularity": "per_token", "weight": "uint8", "group_size": 1},
            Scheme("int8", PER_TOKEN, dynamic=True),
            Scheme("uint8", per_group(1, 1)),
        ),
    ],
)
def test_the_search_assumes_what_the_options_say(
    options: dict[str, object], activation: Scheme, weight: Scheme
) -> None:
    assert Smooth(**options)._schemes() == (activation, weight)  # type: ignore[arg-type]


CHAIN = """g (float[N, 8] x, float[8] s, float[8, 4] a, float[8, 6] b) => (float[N, 4] y, float[N, 6] z) {
    n = RMSNormalization <axis = -1> (x, s) [one] y = MatMul(n, a) [two] z = MatMul(n, b) }"""


def chain():
    made = model(
        f'<ir_version: 11, opset_import: ["" : 23]> {CHAIN}', {"s": normal(8), "a": normal(8, 4), "b": normal(8, 6)}
    )
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(made)
    return made


@pytest.mark.parametrize(
    ("samples", "size", "kept"), [(8, 8, [5]), (9, 8, [3, 1]), (3, 1, [1, 1, 1]), (100, 4, [2, 2, 2])]
)
def test_rows_are_taken_from_all_batches(
    monkeypatch: pytest.MonkeyPatch, samples: int, size: int, kept: list[int]
) -> None:
    """Five rows over one, two, three batches; there are ten samples at most."""
    monkeypatch.setattr(factors, "KEPT", 5)
    made, x = chain(), normal(10, 8)
    step = Smooth(samples=samples, batch_size=size)
    (seen,) = step._observe(made, context({"x": x}, None), find_places(made, PassReport())).values()
    assert [len(rows) for rows in seen.kept] == kept and seen.count == min(samples, 10)


def test_factors_are_those_of_the_loudest_of_all_readers() -> None:
    """By hand: max |X_j|^alpha / max |W_j|^(1 - alpha), W of both layers; columns rise by it and the gain falls."""
    made, x = chain(), normal(10, 8)
    after, (report,) = kit.apply(made, Smooth(alpha=0.25), ctx=context({"x": x}, None))
    before, now = ({n: m.graph.initializers[n].const_value.numpy() for n in "sab"} for m in (made, after))
    seen = x / np.sqrt(np.square(x).mean(1, keepdims=True) + 1e-5) * before["s"]
    heavy = np.maximum(np.abs(before["a"]).max(1), np.abs(before["b"]).max(1))
    factor = np.abs(seen).max(0) ** 0.25 / heavy**0.75
    np.testing.assert_allclose(before["s"] / now["s"], factor, rtol=1e-5)
    for name in "ab":
        np.testing.assert_allclose(
            now[name] / before[name], np.repeat(factor[:, None], now[name].shape[1], 1), rtol=1e-5
        )
    assert report.changed == 1 and report.metrics == {"places with alpha 0.25": 1.0} and not report.skips


def test_what_a_convolution_reads_too_is_a_skip_for_all_its_readers() -> None:
    text = """g (float[N, 4, 5, 5] x, float[4, 5, 5] s, float[6, 4, 1, 1] w, float[5, 3] v) =>
        (float[N, 6, 5, 5] y, float[N, 4, 5, 3] z) { n = Mul(x, s) [one] y = Conv(n, w) [two] z = MatMul(n, v) }"""
    weights = {"s": normal(4, 5, 5), "w": normal(6, 4, 1, 1), "v": normal(5, 3)}
    _, (report,) = kit.apply(model(text, weights), Smooth(alpha=0.5), ctx=context({"x": normal(4, 4, 5, 5)}, None))
    whys = {s.where: s.why for s in report.skips}
    assert report.changed == 0 and whys.keys() == {"one", "two"}
    assert set(whys.values()) == {"channels of a convolution do not stand on the last axis"}


def test_places_of_one_choice_are_counted_together() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[N, 8] x, float[8] s, float[8, 8] a, float[8, 4] b) => (float[N, 4] y) {
        n = RMSNormalization <axis = -1> (x, s) u = MatMul(n, a)
        m = RMSNormalization <axis = -1> (u, s) y = MatMul(m, b) }"""
    made = model(text, {"s": normal(8), "a": normal(8, 8), "b": normal(8, 4)})
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(made)
    _, (report,) = kit.apply(made, Smooth(alpha=0.5), ctx=context({"x": normal(10, 8)}, None))
    assert report.changed == 2 and report.metrics == {"places with alpha 0.5": 2.0}


@pytest.mark.parametrize(("alpha", "fine"), [(0.0, True), (1.0, True), (-0.01, False), (1.01, False)])
def test_alpha_lies_between_0_and_1(alpha: float, fine: bool) -> None:
    step, ctx = Smooth(alpha=alpha), context({"x": normal(10, 8)}, None)
    if fine:
        assert kit.apply(chain(), step, ctx=ctx)[1][0].changed == 1
        return
    with pytest.raises(BadRequest, match="alpha"):
        kit.apply(chain(), step, ctx=ctx)


def test_a_value_that_never_was_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    made = chain()
    for seen in ({}, {"n": factors.SeenRows(1)}):
        monkeypatch.setattr(smooth.Smooth, "_observe", lambda *_, seen=seen: seen)
        after, (report,) = kit.apply(made, Smooth(alpha=0.5), ctx=context({"x": normal(10, 8)}, None))
        assert [s.why for s in report.skips] == ["it was never seen: it is in a body that repeats, or that never ran"]
        assert report.changed == 0 and report.metrics == {}
        kit.assert_same_structure(after, made)
