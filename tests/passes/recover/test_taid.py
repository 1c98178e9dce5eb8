"""``taid``: its gradient, its clock against the formulas by hand, and a student with a large gap to its teacher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.recover.losses.base import Seen
from graphpress.passes.recover.losses.taid import Taid
from graphpress.passes.recover.recover import Recover
from tests import kit
from tests.passes import quantizing
from tests.passes.recovering import context, recover

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(3, 5, 7)), 2 * RNG.normal(size=(3, 5, 7))
MASK = (RNG.random((3, 5)) < 0.6).astype(np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def at(t: float, **options: Any) -> Taid:
    loss = Taid(**options)
    loss.t = t
    return loss


def look(student: np.ndarray = S, teacher: np.ndarray = T, **beside: np.ndarray) -> Seen:
    batch = {n: torch.tensor(a) for n, a in beside.items()}
    return Seen(batch, {"y": torch.tensor(student, requires_grad=True)}, {"y": torch.tensor(teacher)}, ("y",))


def test_at_the_students_own_place_there_is_no_gradient() -> None:
    seen = look()
    at(0.0)(seen).backward()
    assert float(seen.student["y"].grad.abs().max()) < 1e-15


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shift", [False, True])
def test_its_gradient_is_q_minus_the_target_over_the_tokens_that_count(t: float, shift: bool) -> None:
    seen = look(mask=MASK)
    loss = at(t, mask="mask", shift=shift)(seen)
    loss.backward()
    q, p = softmax(S), softmax((1 - t) * S + t * T)
    counted = np.zeros_like(MASK)
    counted[:, : 4 if shift else 5] = MASK[:, 1:] if shift else MASK
    expected = (q - p) * counted[..., None] / counted.sum()
    np.testing.assert_allclose(seen.student["y"].grad.numpy(), expected, rtol=0, atol=1e-15)
    value = -(counted[..., None] * p * np.log(q)).sum() / counted.sum()
    assert float(loss.detach()) == pytest.approx(value, rel=1e-12)


def test_classes_that_a_student_cannot_have_do_not_count() -> None:
    student, teacher = S.copy(), T.copy()
    student[..., 2] = -np.inf
    kept = np.delete(np.arange(7), 2)
    for t in (0.0, 0.5, 1.0):
        found = float(at(t)(look(student, teacher)).detach())
        p = softmax((1 - t) * student + t * teacher) if 0 < t < 1 else softmax(teacher if t else student)
        expected = -(p[..., kept] * np.log(softmax(student)[..., kept])).sum(-1).mean()
        assert found == pytest.approx(expected, rel=1e-12)


def test_what_is_kept_is_judged_by_the_divergence_from_the_teacher() -> None:
    q, p = softmax(S), softmax(T)
    for t in (0.4, 1.0):
        found = float(at(t).fixed()(look()).detach())
        assert found == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-12)
    masked = float(Taid(mask="mask").fixed()(look(mask=MASK)).detach())
    assert masked == pytest.approx(((p * np.log(p / q)).sum(-1) * MASK).sum() / MASK.sum(), rel=1e-12)
    assert float(Taid().fixed()(look(T)).detach()) == 0.0


def test_without_alpha_the_clock_is_the_line() -> None:
    loss, total = Taid(start=0.2, alpha=0.0), 37
    for step in range(total):
        assert loss.t == (0.2 if step < 2 else 0.2 + (1.0 - 0.2) * step / total)
        loss.after_step(float(RNG.random()), step, total)
    assert loss.t == 1.0


@pytest.mark.parametrize("alpha", [5e-4, 0.3])
def test_the_clock_never_goes_back_is_ahead_of_the_line_and_ends_at_the_end(alpha: float) -> None:
    """Step by step as the released code has it, written anew."""
    losses, total = 1.0 + RNG.random(50), 50
    loss = Taid(alpha=alpha, end=0.9)
    t, m, previous, seen = 0.4, 0.0, None, []
    for n, value in enumerate(losses, 1):
        loss.after_step(float(value), n - 1, total)
        if previous is not None:
            m = 0.99 * m + 0.01 * (previous - value) / (previous + 1e-15)
            t = min(0.9, max(0.4 + 0.5 * n / total, t + alpha * (1 / (1 + np.exp(-m))) * (1 - t)))
        previous = value
        seen.append(loss.t)
        assert loss.t == pytest.approx(t, abs=1e-14)
        again = Taid(alpha=alpha, end=0.9)
        again.load(loss.state())
        assert again.state() == loss.state()
    assert seen == sorted(seen)
    assert seen[-1] == 0.9
    assert (max(s - (0.4 + 0.5 * n / total) for n, s in enumerate(seen, 1)) > 0.05) == (alpha == 0.3)


@pytest.mark.parametrize("options", [{"start": 0.8, "end": 0.5}, {"end": 1.5}, {"beta": 1.0}, {"alpha": math.inf}])
def test_clocks_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="start <= end"):
        Taid(**options)


def test_a_clock_needs_steps_and_a_mask_its_shape() -> None:
    with pytest.raises(BadRequest, match="number of steps"):
        Taid().after_step(1.0, 0, None)
    with pytest.raises(BadRequest, match="no mask"):
        Taid(mask="mask")(look())
    with pytest.raises(BadRequest, match="has shape"):
        Taid(mask="mask")(look(mask=MASK[0]))


# -- the gap: a wide teacher of three layers, a student of 8 units, digits of 8 x 8 -----------------------------------

TEACHER = """agraph (float[N, 64] x, float[64, 256] a, float[256] ab, float[256, 256] b, float[256] bb,
                  float[256, 10] c) => (float[N, 10] y)
  { p = MatMul(x, a) q = Add(p, ab) h = Relu(q) r = MatMul(h, b) s = Add(r, bb) g = Relu(s) y = MatMul(g, c) }"""
STUDENT = """agraph (float[N, 64] x, float[64, 8] a, float[8] ab, float[8, 10] c) => (float[N, 10] y)
  { p = MatMul(x, a) q = Add(p, ab) h = Relu(q) y = MatMul(h, c) }"""


def network(text: str, widths: dict[str, tuple[int, ...]], seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    made = {n: rng.normal(size=s) * (2 / s[0]) ** 0.5 * (len(s) > 1) for n, s in widths.items()}
    return quantizing.model(text, {n: a.astype(np.float32) for n, a in made.items()})


@pytest.mark.slow
def test_a_small_student_of_a_large_teacher_is_no_worse_than_by_the_plain_divergence() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, labels = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    rest, val = order[:1200], order[1200:]
    feeds = {"x": x[rest], "labels": labels[rest]}
    wide = {"a": (64, 256), "ab": (256,), "b": (256, 256), "bb": (256,), "c": (256, 10)}
    common = {"lr": 3e-3, "batch_size": 64, "samples": 1200}
    start = network(TEACHER, wide, 0)
    options = Recover(losses={"labels": {}}, steps=150, **common)  # type: ignore[arg-type]
    teacher, _ = recover(start, options, context(None, feeds))
    found: dict[str, list[float]] = {"kl": [], "taid": []}
    for seed in range(3):
        student = network(STUDENT, {"a": (64, 8), "ab": (8,), "c": (8, 10)}, seed + 1)
        for name, losses in found.items():
            options = Recover(losses={name: {}}, steps=400, **common)  # type: ignore[arg-type]
            after, report = recover(student, options, context(teacher, {"x": x[rest]}, seed=seed))
            assert report.metrics["steps"] == 400.0
            logits = kit.run(after, {"x": x[val]})["y"].astype(np.float64)
            losses.append(-np.log(softmax(logits)[np.arange(len(val)), labels[val]]).mean())
    assert np.mean(found["taid"]) <= 1.02 * np.mean(found["kl"]), found
