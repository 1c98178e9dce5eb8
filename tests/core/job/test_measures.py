"""What an output is judged by, against figures worked out by hand, brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.gate import compare_outputs
from graphpress.job.measures import MEASURES, Classes, Figure
from graphpress.job.natures import Form, Kind, Nature, objectness

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def figures(
    nature: Nature, a: np.ndarray, b: np.ndarray, gate: Gate | None = None, **more: np.ndarray
) -> dict[str, Figure]:
    """Of output y, in batches of 7; ``more`` are other outputs, the same in both models."""
    measure = MEASURES[nature.kind]("y", nature)
    for i in range(0, len(a), 7):
        others = {n: v[i : i + 7] for n, v in more.items()}
        measure.add({"y": a[i : i + 7], **others}, {"y": b[i : i + 7], **others})
    return {f.what: f for f in measure.figures(gate or Gate())}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(Form))
def test_the_choice_and_what_another_costs(form: Form) -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.45, 0.05], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    q = np.array([[0.2, 0.7, 0.1], [0.4, 0.55, 0.05], [0.1, 0.2, 0.7], [0.6, 0.1, 0.3]])
    write = {Form.PROBABILITIES: lambda x: x, Form.LOGARITHMS: np.log, Form.LOGITS: lambda x: np.log(x) + 7.0}[form]
    found = figures(Nature(Kind.CLASSES, 1, form), write(p), write(q))
    assert set(found) == {"agreement of the choice", "expected loss of accuracy"}  # no sequence: no nats
    assert found["agreement of the choice"].value == 0.75  # 0.5 against 0.45 is no loss, 0.7 against 0.2 is one
    assert found["expected loss of accuracy"].value == pytest.approx(100 * (0.5 + 0.05) / 4, abs=1e-9)


def test_the_expected_loss_is_what_is_lost_where_the_float_model_is_right_about_itself() -> None:
    """Labels drawn from the float model's probabilities: accuracy falls by the expected loss."""
    a = RNG.normal(size=(4000, 10)) * 2
    b = a + RNG.normal(size=a.shape) * 0.8
    p = softmax(a)
    labels = (p.cumsum(1) > RNG.uniform(size=(len(a), 1))).argmax(1)
    lost = 100 * ((a.argmax(1) == labels).mean() - (b.argmax(1) == labels).mean())
    found = figures(Nature(Kind.CLASSES), a, b)["expected loss of accuracy"]
    assert found.low - 1.5 < lost < found.high + 1.5 and found.high - found.low < 1.5


@pytest.mark.parametrize("form", list(Form))
def test_what_one_changed_choice_more_costs_follows_from_the_noise_between_the_best_two(form: Form) -> None:
    """Odds of 6 : 3 that become 4 : 5 are a noise of log 2.5: it turns a choice that costs (2.5 - 1) / (2.5 + 1)."""
    p = np.array([[0.6, 0.3, 0.1]] * 20)
    q = p.copy()
    q[3] = [0.4, 0.5, 0.1]
    write = {Form.PROBABILITIES: lambda x: x, Form.LOGARITHMS: np.log, Form.LOGITS: lambda x: np.log(x) + 7.0}[form]
    measure = MEASURES[Kind.CLASSES]("y", Nature(Kind.CLASSES, 1, form))
    measure.add({"y": write(p)}, {"y": write(q)})
    assert isinstance(measure, Classes) and measure.change == pytest.approx(1.5 / 3.5, abs=1e-12)
    (loss,) = (f for f in measure.figures(Gate()) if f.what.startswith("expected"))
    values = np.array([0.3] + [0.0] * 19 + [1.5 / 3.5])  # with the one more
    half = 2.085963 * values.std(ddof=1) / np.sqrt(21)
    assert (loss.low, loss.high) == pytest.approx((0.0, 100 * (values.mean() + half)), abs=1e-4)


def test_twenty_choices_that_stay_are_no_proof_where_noise_is_as_large_as_margins() -> None:
    """Logits 4 apart: noise that moves them by 0.2 passes at 2 points, noise that moves them by 3 does not."""
    a = np.tile([4.0, 0.0, -3.0], (20, 1))
    verdicts = []
    for noise in (0.0, 0.2, 3.0):
        loss = figures(Nature(Kind.CLASSES), a, a - np.eye(3)[0] * noise, Gate(max_loss=2))["expected loss of accuracy"]
        assert loss.value == 0.0
        assert loss.high == pytest.approx(100 * np.tanh(noise / 2) * (1 + 2.085963) / 21, abs=1e-4)
        verdicts.append(loss.verdict)
    assert verdicts == [Verdict.PASSED, Verdict.PASSED, Verdict.UNSURE]


def test_of_a_sequence_the_one_changed_choice_more_is_at_one_position() -> None:
    a = np.tile([4.0, 0.0, -3.0], (12, 30, 1))
    loss = figures(Nature(Kind.CLASSES, 2), a, a - np.eye(3)[0] * 3.0)["expected loss of accuracy"]
    assert loss.high == pytest.approx(100 * np.tanh(1.5) / 30 * (1 + 2.178813) / 13, abs=1e-4)


def test_probabilities_too_small_for_8_bits_show_no_noise() -> None:
    p = np.tile([0.9985, 0.001, 0.0005], (20, 1))
    q = np.tile([1.0, 0.0, 0.0], (20, 1))
    nature = Nature(Kind.CLASSES, 1, Form.PROBABILITIES)
    sure = figures(nature, p, q)["expected loss of accuracy"]
    assert sure.high == pytest.approx(100 * (1 + 2.085963) / 21, abs=1e-4)  # nothing is known but the rule of three
    p[0], q[0] = [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]
    assert figures(nature, p, q)["expected loss of accuracy"].high == 0.0


@pytest.mark.parametrize(("noise", "spread"), [(0.3, 0.7), (1.0, 0.0)])
def test_in_95_of_100_cases_the_expected_loss_of_all_samples_is_in_the_interval(noise: float, spread: float) -> None:
    """Of 20 samples each: ten classes, one of them ahead by about 7; noise as large for all or differing by sample."""
    a = 1.5 * RNG.normal(size=(20000, 10)) + 7.0 * np.eye(10)[RNG.integers(0, 10, 20000)]
    b = a + RNG.normal(size=a.shape) * noise * np.exp(spread * RNG.normal(size=(len(a), 1)))
    p, every = softmax(a), np.arange(len(a))
    truth = 100 * (p.max(1) - p[every, b.argmax(1)]).mean()
    held = []
    for part in RNG.integers(0, len(a), (60, 20)):
        measure = MEASURES[Kind.CLASSES]("y", Nature(Kind.CLASSES))
        measure.add({"y": a[part]}, {"y": b[part]})
        (loss,) = (f for f in measure.figures(Gate()) if f.what.startswith("expected"))
        held.append(loss.low <= truth <= loss.high)
    assert np.mean(held) >= 0.95


def test_nats_of_a_sequence_are_what_its_loss_rises_by() -> None:
    a = RNG.normal(size=(12, 30, 8)) * 2
    b = a + RNG.normal(size=a.shape) * 0.5
    p, q = softmax(a), softmax(b)
    expected = (p * (np.log(p) - np.log(q))).sum(-1).mean()
    found = figures(Nature(Kind.CLASSES, 2), a, b, Gate(max_nats=float(expected) / 10))["divergence in nats"]
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.verdict is Verdict.FAILED
    assert figures(Nature(Kind.CLASSES, 2), a, a)["divergence in nats"].high == 0.0


def test_classes_on_the_second_axis_of_a_map() -> None:
    a = RNG.normal(size=(5, 4, 6, 6)) * 3
    b = np.roll(a, 1, 1)
    found = figures(Nature(Kind.CLASSES, 1), a, b)["agreement of the choice"]
    p = softmax(np.moveaxis(a, 1, -1))
    chosen = np.take_along_axis(p, np.moveaxis(b, 1, -1).argmax(-1)[..., None], -1)[..., 0]
    assert found.value == pytest.approx((p.max(-1) - chosen <= 0.1).mean(), abs=1e-12)


def test_classes_that_are_masked_out_do_no_harm() -> None:
    a = np.array([[1.0, -np.inf, 3.0], [2.0, 1.0, -np.inf]])
    found = figures(Nature(Kind.CLASSES), a, a)
    assert found["agreement of the choice"].value == 1.0 and found["expected loss of accuracy"].value == 0.0


# -- yes and no --------------------------------------------------------------------------------------------------------


def test_a_small_object_that_is_lost_shows_in_the_overlap_alone() -> None:
    a = np.full((20, 1, 16, 16), 0.01)
    a[:, 0, 4:6, 4:6] = 0.9
    found = figures(Nature(Kind.FLAGS), a, np.full_like(a, 0.01))
    assert found["agreement of yes and no"].value == pytest.approx(1 - 4 / 256)
    assert found["overlap of what is yes"].value == 0.0
    assert found["overlap of what is yes"].verdict is Verdict.FAILED
    assert figures(Nature(Kind.FLAGS), a, a)["overlap of what is yes"].value == 1.0


def test_what_hovers_about_a_half_may_turn() -> None:
    a, b = np.array([[0.52], [0.48], [0.9], [0.52]]), np.array([[0.49], [0.51], [0.4], [0.1]])
    assert figures(Nature(Kind.FLAGS), a, b)["agreement of yes and no"].value == 0.5


# -- boxes -------------------------------------------------------------------------------------------------------------


def detector(samples: int = 6, rows: int = 200, means: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities of background and two classes, corners): ``means`` rows of each sample are no background."""
    scores = np.tile([0.96, 0.02, 0.02], (samples, rows, 1))
    for sample, row in itertools.product(range(samples), range(means)):
        scores[sample, row * 9] = [0.05, 0.9, 0.05] if row % 2 else [0.05, 0.05, 0.9]
    corner = RNG.uniform(0, 0.8, (samples, rows, 2))
    return scores, np.concatenate([corner, corner + 0.1], -1)


WHAT = "confident rows that stay"


def test_of_a_detector_the_rows_count_that_it_means() -> None:
    scores, corners = detector()
    nature = Nature(Kind.BOXES, 2, boxes="corners")
    assert figures(nature, scores, scores, corners=corners)[WHAT].value == 1.0
    lost = scores.copy()
    lost[:, 0] = [0.9, 0.05, 0.05]  # one of eight
    assert figures(nature, scores, lost, corners=corners)[WHAT].value == pytest.approx(7 / 8)
    more = scores.copy()
    more[:, 1:3] = [0.1, 0.8, 0.1]  # two that are not there
    assert figures(nature, scores, more, corners=corners)[WHAT].value == pytest.approx(8 / 10)
    other = scores.copy()
    other[:, 0] = other[0, 9]  # another class
    assert figures(nature, scores, other, corners=corners)[WHAT].value == pytest.approx(7 / 8)
    hover = scores.copy()
    hover[:, 3] = [0.45, 0.55, 0.0]  # hardly more than the half
    assert figures(nature, scores, hover, corners=corners)[WHAT].value == 1.0


@pytest.mark.parametrize(("shift", "kept"), [(0.02, 1.0), (0.06, 0.0)])
@pytest.mark.parametrize("sizes", [False, True])
def test_a_box_that_overlaps_by_less_than_half_is_lost(shift: float, kept: float, sizes: bool) -> None:
    """Squares of side 0.1, moved aside by a share t of it, overlap by (1 - t) / (1 + t): 0.67 and 0.25."""
    scores, corners = detector()
    moved = corners + np.array([shift, 0, shift, 0])
    if sizes:  # a middle and sizes in place of corners
        corners, moved = (
            np.concatenate([(c[..., :2] + c[..., 2:]) / 2, c[..., 2:] - c[..., :2]], -1) for c in (corners, moved)
        )
        scores[..., 1:] *= 1.0
    measure = MEASURES[Kind.BOXES]("y", Nature(Kind.BOXES, 2, boxes="c"))
    measure.add({"y": scores, "c": corners}, {"y": scores, "c": moved})
    assert [f.value for f in measure.figures(Gate())] == [kept]


def test_a_detector_with_all_in_one_output() -> None:
    scores, corners = detector()
    table = np.concatenate([320 * corners, scores[..., 1:]], -1)
    lost = table.copy()
    lost[:, 9, 4:] = 0.1
    nature = Nature(Kind.BOXES, 1, boxes="y")
    found = figures(nature, np.moveaxis(table, 2, 1), np.moveaxis(lost, 2, 1))
    assert found[WHAT].value == pytest.approx(7 / 8)


@pytest.mark.parametrize("softmax_of_classes", [False, True])
def test_a_score_of_there_being_anything_is_no_class_and_background_has_none(softmax_of_classes: bool) -> None:
    """YOLO's rows: x, y, w, h, objectness, classes. The classes of background rows say nothing, however high."""
    rows, there = 400, np.arange(0, 400, 50)
    chosen = RNG.integers(0, 3, rows)
    classes = np.where(np.arange(3) == chosen[:, None], 0.9, 0.05) / (1.0 if softmax_of_classes else 1.25)
    anything = np.where(np.isin(np.arange(rows), there), 0.8, 0.02)
    table = np.concatenate([RNG.uniform(0, 320, (rows, 4)), anything[:, None], classes], -1)[None]
    assert objectness(table[0, :, 4:], True) == 0
    nature = Nature(Kind.BOXES, 2, boxes="y")
    other = table.copy()
    other[0, 1::2, 5:] = np.roll(other[0, 1::2, 5:], 1, -1)  # of background rows alone: nobody sees it
    assert figures(nature, table, other)[WHAT].value == 1.0
    equal = table.copy()
    equal[0, there, 5:] *= 0.95 * equal[0, there, 4:5] / equal[0, there, 5:].max(-1, keepdims=True)
    assert figures(nature, table, equal)[WHAT].value == 1.0  # which of the two is higher does not matter
    other[0, there[:2], 5:] = np.roll(other[0, there[:2], 5:], 1, -1)
    assert figures(nature, table, other)[WHAT].value == pytest.approx(6 / 8)
    lost = table.copy()
    lost[0, there[0], 4] = 0.02
    assert figures(nature, table, lost)[WHAT].value == pytest.approx(7 / 8)


def test_classes_that_exclude_one_another_have_no_objectness_among_them() -> None:
    scores = np.full((400, 3), 0.02)
    for row in range(0, 400, 20):
        scores[row, row // 20 % 3] = 0.9
    assert objectness(scores, True) is None
    scores[0] = [0.6, 0.6, 0.02]  # one that is two
    assert objectness(scores, True) is None
    assert objectness(np.full((400, 1), 0.02), True) is None
    never = np.concatenate([np.full((400, 1), 1e-4), 1 - scores[:, :1], scores[:, :1] - 1e-4], -1)
    assert objectness(never, True) is None  # Softmax of a background and a class that never comes


def test_nothing_is_judged_where_nothing_is_found() -> None:
    scores, corners = detector(means=0)
    assert not figures(Nature(Kind.BOXES, 2, boxes="c"), scores, scores, c=corners)
    assert not figures(Nature(Kind.BOXES, 2), corners, corners)


# -- embeddings and values ---------------------------------------------------------------------------------------------


def test_embeddings_by_direction_and_neighbours() -> None:
    a = RNG.normal(size=(40, 16))
    noisy = a + RNG.normal(size=a.shape) * 0.05
    found = figures(Nature(Kind.EMBEDDING), a, 3 * noisy)  # length does not matter
    cosine = [(u @ v) / np.sqrt((u @ u) * (v @ v)) for u, v in zip(a, noisy, strict=True)]
    assert found["cosine of a sample"].value == pytest.approx(np.mean(cosine), abs=1e-12)
    assert found["neighbours that stay"].value > 0.95
    mixed = figures(Nature(Kind.EMBEDDING), a, a[::-1])
    assert mixed["neighbours that stay"].value < 0.4
    assert "neighbours that stay" not in figures(Nature(Kind.EMBEDDING), a[:8], a[:8])


def test_a_common_part_does_not_hide_the_error() -> None:
    """1000 + x with an error of the size of x: 60 dB, and nothing of x is left."""
    x = RNG.normal(size=(64, 3))
    a, b = 1000 + x, 1000 + RNG.normal(size=x.shape)
    (check,), _ = compare_outputs(
        lambda feeds: {"y": a}, lambda feeds: {"y": b}, [{"x": x}], Gate(), lambda seen: {"y": Nature(Kind.VALUES)}
    )
    assert check.sqnr > 55
    (found,) = check.figures
    expected = 10 * np.log10(((x - x.mean(0)) ** 2).sum() / ((a - b) ** 2).sum())
    assert found.value == pytest.approx(expected, abs=1e-9) and found.verdict is Verdict.FAILED
    assert found.low < found.value < found.high


def test_values_that_never_change_are_not_judged_by_how_they_do() -> None:
    a = np.full((20, 3), 5.0)
    assert not figures(Nature(Kind.VALUES), a, a + 0.1)
    assert not figures(Nature(Kind.VALUES), RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3)))  # too few samples
    assert not figures(Nature(Kind.VALUES), RNG.normal(size=(20, 3, 8, 8)), RNG.normal(size=(20, 3, 8, 8)))
