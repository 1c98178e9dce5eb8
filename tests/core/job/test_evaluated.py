"""What a model is measured by: functions of a user's module, and metrics by name against closed forms."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphpress as gp
from graphpress import catalog
from graphpress.errors import CalibrationError, GateError, GraphpressError
from graphpress.graph import edit
from graphpress.job.evaluated import asked
from graphpress.job.metrics import map as boxes
from graphpress.job.metrics import wer
from tests import kit

RNG = np.random.default_rng(0)
OWN = """
calls = []
count = 3
def metric(runner):
    calls.append(runner)
    return 7
def fails(runner): return [][1]
def text(runner): return "good"
def nothing(runner): return float("nan")
def two(runner, data): return 0
class Group:
    @staticmethod
    def metric(runner): return 1.5
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a module in the working folder, another in each test: modules are loaded once."""
    name = f"own_{abs(hash(request.node.name)):x}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def runner(*outputs: np.ndarray) -> Any:
    return lambda feeds: dict(zip("abcd", outputs, strict=False))


def measured(text: str, data: gp.CalibrationData | None, outputs: Any) -> float:
    metric = asked(text).on(data)
    assert metric is not None
    return metric(outputs)


def test_a_function_of_the_working_folder_is_found(here: str) -> None:
    assert measured(f"{here}:metric", None, runner()) == 7
    assert measured(f"{here}:Group.metric", None, runner()) == 1.5


BAD = [
    ("{m}:metrik", "has no 'metrik'. Did you mean 'metric'"),
    ("{m}:count", "is a int, no function"),
    ("{m}:two", "it is called with one argument, a runner"),
    ("{m}:fails", r"fails at own_\w+\.py:7: IndexError: list index out of range"),
    ("{m}:text", "gives a str, not a number. Return one number, higher is better"),
    ("{m}:nothing", "gives nan"),
    ("no_such_module:f", "there is no module 'no_such_module'"),
    ("../{m}:metric", "'../.*' is no name of a module. Name a module of the working folder, without .py"),
    ("/tmp/{m}.py:metric", "is no name of a module"),
    ("top1", "there is no such metric. Did you mean 'top-1'"),
    ("wer{{vocabulary=a", "the brace is not closed"),
    ("top-1", "metric 'top-1': needs samples. Give data with labels"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_cannot_measure_is_refused_in_one_sentence(here: str, text: str, message: str) -> None:
    with pytest.raises(GraphpressError, match=message):
        measured(text.format(m=here), None, runner())


def test_a_function_that_is_no_function() -> None:
    with pytest.raises(GraphpressError, match=r"a int is no function. Give a function of a runner"):
        asked(7)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):  # in Python its own traceback says more
        measured(lambda r: 1 / 0, None, runner())  # type: ignore[arg-type]


def classifier() -> tuple[Any, dict[str, np.ndarray]]:
    weights = RNG.normal(size=(6, 4)).astype(np.float32)
    values = ",".join(f"{w:.5f}" for w in weights.ravel())
    model = kit.parse(f"g (float[N,6] x) => (float[N,4] y) <float[6,4] w = {{{values}}}> {{ y = MatMul(x, w) }}")
    return model, {"x": RNG.normal(size=(40, 6)).astype(np.float32)}


def test_the_metric_of_a_user_is_held_by_the_gate(here: str) -> None:
    model, data = classifier()
    Path(f"{here}.py").write_text("""
import numpy as np
X, known = np.eye(6, dtype=np.float32), []
def metric(runner):  # minus the distance to the model at hand: nothing is lost in float, much in four bits
    return -float(np.abs(runner({"x": X})["y"] - np.load("weights.npy")).max())
""")
    np.save("weights.npy", edit.constant(model.graph.initializers["w"]))
    _, report = gp.compile(model, "w4a16", data, evaluate=f"{here}:metric", prove=False)
    assert report.metric["before"] == 0
    assert report.metric["after"] < -0.01
    assert report.measured_by == f"{here}:metric"
    _, report = gp.compile(model, "w4a16", data, evaluate=f"{here}:metric", max_drop=0.01, prove=False)
    assert (len(report.widened), report.reverted) == (1, [])  # 8 bits are near enough
    assert -0.01 <= report.metric["after"] < 0 and report.metric["allowed"] == 0.01
    _, report = gp.compile(model, "w4a16", data, evaluate=f"{here}:metric", max_drop=0.001, prove=False)
    assert report.metric == {"before": 0, "after": 0, "allowed": 0.001}
    assert (report.widened, len(report.reverted)) == ([], 1)
    answers = iter([0, 10, *[0] * 100])  # of the compressed model, of the float one, of each without a site
    with pytest.raises(GateError, match="the metric falls from 10 to 0 even with every site in float"):
        gp.compile(model, "w4a16", data, evaluate=lambda r: next(answers), max_drop=0.1, prove=False)


def test_metrics_are_found_by_being_there() -> None:
    assert set(catalog.metrics()) == {"map", "perplexity", "top-1", "top-5", "wer"}


def samples(n: int, **arrays: np.ndarray) -> gp.CalibrationData:
    return gp.CalibrationData.from_arrays({"x": np.zeros((n, 1), np.float32), **arrays})


@pytest.mark.parametrize(("name", "best"), [("top-1", 1), ("top-5", 5)])
def test_accuracy_counts_labels_among_the_largest(name: str, best: int) -> None:
    scores = RNG.normal(size=(30, 9))
    labels = RNG.integers(0, 9, 30)
    right = [label in sorted(range(9), key=lambda c: -row[c])[:best] for row, label in zip(scores, labels, strict=True)]
    got = measured(name, samples(30, labels=labels), runner(scores))
    assert got == pytest.approx(100 * sum(right) / 30)


def test_top_5_of_a_compilation_is_in_the_report() -> None:
    model, data = classifier()
    _, report = gp.compile(model, "w8a16", {**data, "labels": np.zeros(40, np.int64)}, evaluate="top-5", prove=False)
    assert report.measured_by == "top-5 %"
    assert (report.metric["before"], report.metric["after"]) == (100, 100)  # of four classes
    with pytest.raises(CalibrationError, match=r"metric 'top-5' needs labels. Add an array 'labels'"):
        gp.compile(model, "w8a16", data, evaluate="top-5", prove=False)
    with pytest.raises(GraphpressError, match="metric 'top-5': has no options"):
        gp.compile(model, "w8a16", data, evaluate="top-5{k=3}", prove=False)


def test_perplexity_is_that_of_the_right_tokens() -> None:
    scores, right = RNG.normal(size=(3, 5, 7)), RNG.integers(-1, 7, (3, 5))
    total = [
        -math.log(math.exp(scores[i, j, right[i, j]]) / sum(math.exp(s) for s in scores[i, j]))
        for i in range(3) for j in range(5) if right[i, j] >= 0
    ]  # fmt: skip
    want = -math.exp(sum(total) / len(total))
    assert measured("perplexity", samples(3, labels=right), runner(scores)) == pytest.approx(want, rel=1e-12)


def test_perplexity_without_labels_is_that_of_the_next_token() -> None:
    ids = RNG.integers(0, 7, (3, 6))
    scores = RNG.normal(size=(3, 6, 7))
    data = gp.CalibrationData.from_arrays({"ids": ids})
    shifted = np.concatenate([ids[:, 1:], np.full((3, 1), -1)], axis=1)
    want = measured("perplexity", samples(3, labels=shifted), runner(scores))
    assert measured("perplexity", data, runner(scores)) == pytest.approx(want, rel=1e-12)
    uniform = measured("perplexity", data, runner(np.zeros((3, 6, 7))))
    assert uniform == pytest.approx(-7)
    with pytest.raises(CalibrationError, match=r"tokens have shape \(3, 5\), the first output \(3, 6\)"):
        measured("perplexity", data, runner(np.zeros((3, 7))))
    with pytest.raises(CalibrationError, match=r"which input holds the tokens. Add an array 'labels'"):
        measured("perplexity", samples(3), runner(scores))


@settings(max_examples=20)
@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_word_distance_is_the_least_number_of_edits(a: list[str], b: list[str]) -> None:
    @functools.cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert wer.distance(a, b) == least(len(a), len(b))


def test_word_errors_of_what_is_heard(tmp_path: Path) -> None:
    tokens = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    heard = ["aa<b||c", "a|bb<b|c"]  # a repeats, < is the blank between equal letters
    frames = np.zeros((2, 8, 5))
    for i, text in enumerate(heard):
        for j, mark in enumerate(text.ljust(8, "<")):
            frames[i, j, tokens.get(mark, 0)] = 1
    said = np.array(["ab c", "a bb d e"])
    text = f"wer{{vocabulary={tmp_path / 'vocab.json'}}}"
    got = measured(text, samples(2, labels=said), runner(frames))  # one replaced, one left out, of six
    assert got == pytest.approx(100 - 100 * 2 / 6)
    with pytest.raises(GraphpressError, match=r"metric 'wer': needs the tokens. Write wer\{vocabulary=vocab.json\}"):
        measured("wer", samples(2, labels=said), runner(frames))
    with pytest.raises(GraphpressError, match=r"no option 'vocab'. Did you mean 'vocabulary'"):
        measured("wer{vocab=3}", samples(2, labels=said), runner(frames))


def found(*rows: tuple[float, ...]) -> Any:
    """A detector of two classes and a background in column 0: (x1, y1, x2, y2, score, class) each."""
    corners, scores = np.zeros((1, len(rows), 4)), np.zeros((1, len(rows), 3))
    for i, row in enumerate(rows):
        corners[0, i], scores[0, i, int(row[5]) + 1] = row[:4], row[4]
    return lambda feeds: {"scores": scores, "boxes": corners}


TRUTH = {
    "boxes": np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 0, 0]]], np.float32),
    "labels": np.array([[0, 1, -1]]),
}


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ([(0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1)], 100),
        ([(0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.7, 0), (20, 20, 40, 40, 0.8, 1)], 100),  # the second is suppressed
        ([(0, 0, 10, 10, 0.9, 0)], 50),  # one class of two
        ([(0, 0, 10, 10, 0.9, 1), (20, 20, 40, 40, 0.8, 0)], 0),  # of the other class
        ([(0, 0, 10, 7.2, 0.9, 0), (20, 20, 40, 40, 0.8, 1)], 75),  # overlap 0.72: 5 of 10 thresholds
        ([(0, 0, 10, 10, 0.01, 0)], 0),  # too low a score
    ],
)
def test_mean_precision_of_boxes(rows: list[tuple[float, ...]], want: float) -> None:
    pytest.importorskip("pycocotools")
    assert measured("map{background=0}", samples(1, **TRUTH), found(*rows)) == pytest.approx(want)


def test_what_is_no_detector_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"has outputs a \[1, 4\], and needs corners .*Decode them"):
        measured("map", samples(1, **TRUTH), runner(np.zeros((1, 4))))
    with pytest.raises(CalibrationError, match=r"metric 'map' needs boxes. Add an array 'boxes'"):
        measured("map", samples(1, labels=TRUTH["labels"]), found((0, 0, 1, 1, 1, 0)))
    with pytest.raises(CalibrationError, match=r"metric 'map' needs labels. Add an array 'labels'"):
        measured("map", samples(1), found((0, 0, 1, 1, 1, 0)))


def test_boxes_that_touch_are_kept_and_those_that_lie_on_one_another_are_not() -> None:
    corners = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 2, 1.5], [0, 0, 2, 0.9]], float)
    assert boxes.suppressed(corners, np.array([0.9, 0.8, 0.95, 0.1]), 0.5, 0.05) == [2, 1]
    assert boxes.suppressed(corners, np.array([0.9, 0.8, 0.01, 0.1]), 0.4, 0.05) == [0, 1]
    assert boxes.suppressed(corners, np.array([0.9, 0.8, 0.01, 0.1]), 0.5, 0.05) == [0, 1, 3]
