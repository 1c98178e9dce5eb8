"""Where the gate's figures and verdicts turn: limits, broken outputs, what is compared at all."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

import graphpress as gp
from graphpress.errors import BadRequest
from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.gate import GateResult, OutputCheck, compare_outputs, judge, sqnr, told
from graphpress.job.measures import Figure
from graphpress.job.natures import Kind, Nature
from tests import kit


def runner(*outputs: np.ndarray):
    pending = iter(outputs)
    return lambda feeds: {"y": next(pending)}


def check(a: list[np.ndarray], b: list[np.ndarray], kind: Kind | None = None) -> OutputCheck:
    """The figures of output y over batches."""
    nature = {"y": Nature(kind, a[0].ndim - 1)} if kind else {}
    (found,), _ = compare_outputs(runner(*a), runner(*b), [{"x": x} for x in a], Gate(), lambda seen: nature)
    return found


def test_what_is_asked_unless_told_otherwise() -> None:
    assert dataclasses.asdict(Gate()) == {
        "samples": 64, "min_sqnr": 8.0, "min_cosine": 0.9, "min_agreement": 0.8, "max_loss": 5.0, "max_nats": 0.05,
        "outputs": {},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["min_cosine", "min_agreement"])
def test_the_ends_of_an_option_are_allowed_and_nothing_beyond(name: str) -> None:
    for value in (0, 1):
        assert getattr(Gate(**{name: value}), name) == value
    for value in (-1e-9, 1 + 1e-9):
        with pytest.raises(BadRequest, match=name):
            Gate(**{name: value})
    assert Gate(samples=1).samples == 1


def test_what_is_no_number_is_no_bar() -> None:
    for name in ("min_sqnr", "min_cosine", "max_loss", "max_nats"):
        with pytest.raises(BadRequest, match=name):
            Gate(**{name: math.nan})


def test_outputs_that_are_not_there_and_seeds_below_zero_are_refused_first() -> None:
    model = kit.parse("g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }")
    recipe = gp.Recipe.load("clean").set(["gate.outputs={z: classes}"])
    with pytest.raises(BadRequest, match=r"'z': the model has no such output. Known: y"):
        gp.compile(model, recipe)
    with pytest.raises(BadRequest, match="seed: -1 is no seed"):
        gp.compile(model, "clean", seed=-1)


def test_one_bad_batch_breaks_an_output_for_good() -> None:
    good, nan = np.eye(3, dtype=np.float32), np.full((3, 3), np.nan, np.float32)
    for broken in (nan, np.full((3, 3), np.inf, np.float32), np.zeros((3, 4), np.float32)):
        for b in ([broken, good], [good, broken]):
            found = check([good, good], b, Kind.CLASSES)
            assert (found.sqnr, found.cosine, found.max_abs) == (-math.inf, 0.0, math.inf)
            assert found.agreement in (None, 0.0) and not found.figures
    images = np.ones((2, 2, 2), np.float32)
    assert check([images], [images * np.nan]).agreement is None


def test_where_the_float_model_is_not_finite_nothing_is_compared() -> None:
    a = np.array([[1.0, np.inf, np.nan, 2.0]], np.float32)
    found = check([a], [np.array([[1.0, 0.0, 7.0, 2.5]], np.float32)])
    assert found.max_abs == 0.5
    assert found.sqnr == pytest.approx(10 * math.log10(5 / 0.25), abs=1e-12)
    assert found.cosine == pytest.approx((1 + 5) / math.sqrt(5 * 7.25), abs=1e-12)


@pytest.mark.parametrize(("a", "b", "cosine", "db"), [(0, 0, 1.0, math.inf), (0, 1, 0.0, -math.inf), (1, 0, 0.0, 0.0)])
def test_outputs_of_zeros(a: float, b: float, cosine: float, db: float) -> None:
    found = check([np.full((2, 2), a, np.float32)], [np.full((2, 2), b, np.float32)])
    assert (found.cosine, found.sqnr, found.max_abs) == (cosine, db, abs(a - b))


def test_an_empty_output_is_equal_to_itself() -> None:
    empty = np.zeros((0, 4), np.float32)
    found = check([empty], [empty])
    assert (found.cosine, found.sqnr, found.max_abs, found.agreement) == (1.0, math.inf, 0.0, None)


def test_the_largest_difference_is_of_any_batch() -> None:
    x = np.ones((2, 2), np.float32)
    for order in ([0.5, 0.25], [0.25, 0.5]):
        assert check([x, x], [x - np.float32(d) for d in order]).max_abs == 0.5


def test_samples_are_the_longest_input_of_each_batch() -> None:
    y = np.ones((1, 2), np.float32)
    batches = [
        {"x": np.zeros((5, 2)), "length": np.zeros(3)},
        {"length": np.zeros(3), "x": np.zeros((5, 2))},
        {"scalar": np.float32(2)},
    ]
    assert compare_outputs(runner(y, y, y), runner(y, y, y), batches)[1] == 5 + 5 + 1


def test_floats_of_every_kind_are_compared_and_integers_are_not() -> None:
    kinds = {"f16": np.float16, "f32": np.float32, "b16": ml_dtypes.bfloat16, "i": np.int64, "t": bool}
    outputs = {name: np.ones((2, 2)).astype(kind) for name, kind in kinds.items()}
    turned = dict(reversed(outputs.items()))
    found, _ = compare_outputs(lambda feeds: outputs, lambda feeds: turned, [{"x": np.ones(2)}])
    assert [o.name for o in found] == ["f16", "f32", "b16"]


def test_sqnr_is_ten_decades_a_hundred_decibels() -> None:
    assert [sqnr(1e10, 1), sqnr(1, 1), sqnr(1, 100)] == pytest.approx([100, 0, -20])
    assert sqnr(0, 0) == math.inf and sqnr(0, 1) == -math.inf


def test_what_just_reaches_the_gate_passes_and_each_figure_fails_by_itself() -> None:
    gate = Gate(min_sqnr=10.0, min_cosine=0.5, min_agreement=0.25)
    assert judge([OutputCheck("y", 10.0, 0.5, 0.0, 0.25), OutputCheck("z", 10.0, 0.5, 0.0)], 7, gate).passed
    bad = Figure("choice", 0.2, 0.1, 0.24, 0.25, Verdict.FAILED)
    for low, what in (
        ({"sqnr": 9.99}, "SQNR"),
        ({"cosine": 0.49}, "cosine"),
        ({"figures": [bad]}, "choice 0.2 (0.1 to 0.24), asked 0.25"),
        ({"sqnr": math.nan}, "SQNR"),
    ):
        figures = {"sqnr": 10.0, "cosine": 0.5, "max_abs": 0.0, "agreement": 0.25} | low
        result = judge([OutputCheck("y", **figures)], 7, gate)
        assert not result.passed and result.samples == 7 and not result.to_json()["passed"]
        assert len(result.failures) == 1 and what in result.failures[0] and "'y'" in result.failures[0]


def test_what_has_telling_figures_needs_no_decibels_above_a_floor() -> None:
    good = Figure("choice", 1.0, 0.9, 1.0, 0.25, Verdict.PASSED)
    gate = Gate(min_sqnr=20.0, min_cosine=0.99)
    for kind, db, cosine, passes in (
        (Kind.CLASSES, 5.0, 0.7, True), (Kind.CLASSES, 4.9, 0.7, False), (Kind.BOXES, 5.0, 0.69, False),
        (Kind.VALUES, 19.9, 0.99, False), (Kind.VALUES, 20.0, 0.99, True),
    ):  # fmt: skip
        assert judge([OutputCheck("y", db, cosine, 0.0, None, kind, [good])], 7, gate).passed is passes
    assert not judge([OutputCheck("y", 19.9, 0.99, 0.0, None, Kind.CLASSES)], 7, gate).passed  # it has none


def test_a_doubt_is_no_failure_and_is_said() -> None:
    doubt = Figure("choice", 0.5, 0.1, 0.9, 0.8, Verdict.UNSURE)
    result = judge([OutputCheck("y", 30.0, 1.0, 0.0, None, Kind.CLASSES, [doubt])], 7, Gate())
    assert (
        result.passed
        and result.verdict is Verdict.UNSURE
        and result.to_json()["verdict"] == "not enough samples to tell"
    )
    assert result.unsure == ["output 'y': choice 0.5 (0.1 to 0.9), asked 0.8"]


def test_where_nothing_was_compared_nothing_fails_and_the_reason_stands() -> None:
    assert GateResult(left_out="no data").to_json() == {
        "outputs": [], "samples": 0, "failures": [], "blame": [], "left_out": "no data", "passed": True,
        "unsure": [], "verdict": "passed", "remedy": [],
    }  # fmt: skip


def test_the_worst_sample_is_the_first_of_the_worst_and_of_samples_only() -> None:
    x = np.ones((3, 2), np.float32)
    off = np.array([[0.1, 0.1], [0.5, 0.5], [0.5, 0.5]], np.float32)
    worst = check([x, x], [x - off, x - off]).worst
    assert worst is not None and worst[0] == 1 and worst[1] == pytest.approx(20 * math.log10(2), abs=1e-5)
    assert check([x[0]], [x[0] - 0.5]).worst is None  # one axis alone may be anything


def test_measures_see_every_batch_and_have_the_bars_of_a_gate_of_its_own() -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(40, 2)) for _ in range(3)]
    nature = {"y": Nature(Kind.VALUES)}
    (found,), samples = compare_outputs(runner(*x), runner(*x), [{"x": a} for a in x], None, lambda seen: nature)
    assert samples == 120 and [f.asked for f in found.figures] == [Gate().min_sqnr]


def test_labels_say_something_of_the_first_output_only_and_of_classes_only() -> None:
    doubt = Figure("expected loss of accuracy", 9.0, 5.0, 13.0, 2.0, Verdict.FAILED)
    good = Figure("points of top-1 lost", 0.5, 0.2, 0.8, 2.0, Verdict.PASSED)
    for kind, failures in ((Kind.CLASSES, 1), (Kind.VALUES, 2)):
        result = judge([OutputCheck(n, 40.0, 1.0, 0.1, 0.9, kind, [doubt]) for n in ("y", "z")], 64, Gate())
        told(result, good, Gate())
        assert len(result.failures) == failures
        assert [len(o.figures) for o in result.outputs] == [2, 1]
