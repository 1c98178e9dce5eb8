"""Losses against numpy in float64, and what recipes may ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpress import catalog
from graphpress.errors import BadRequest
from graphpress.passes.recover.losses.base import Seen, Weighted, make
from graphpress.passes.recover.losses.kl import Kl
from graphpress.passes.recover.losses.labels import Labels
from graphpress.passes.recover.losses.mse import Mse

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(4, 5, 7)), 2 * RNG.normal(size=(4, 5, 7))


def seen(student: np.ndarray = S, teacher: np.ndarray = T, labels: Any = None, **more: Any) -> Seen:
    s = torch.tensor(student, requires_grad=student.dtype.kind == "f")
    batch = {} if labels is None else {"labels": torch.tensor(labels)}
    return Seen(batch, {"y": s, **more}, {"y": torch.tensor(teacher), **more}, ("y",))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_the_divergence_per_position_times_the_square_of_the_temperature(axis: int, temperature: float) -> None:
    look = seen()
    loss = Kl(temperature, axis)(look)
    p, q = softmax(T / temperature, axis), softmax(S / temperature, axis)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    gradient = look.student["y"].grad.numpy()
    np.testing.assert_allclose(gradient, temperature * (q - p) / (S.size / S.shape[axis]), atol=1e-15)
    np.testing.assert_allclose(gradient.sum(axis), 0, atol=1e-15)


@pytest.mark.parametrize("loss", [Kl(2.0), Mse()])
def test_a_student_like_its_teacher_has_no_gradient(loss: Any) -> None:
    look = seen(T)
    value = loss(look)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-15)
    assert np.abs(look.student["y"].grad.numpy()).max() < 1e-15


def test_mse_is_relative_to_the_teacher_and_a_mean_over_values() -> None:
    both = Seen(
        {}, {"a": torch.tensor(S), "b": torch.tensor(3 * S)}, {"a": torch.tensor(T), "b": torch.tensor(3 * T)}, ("a",)
    )
    expected = ((S - T) ** 2).mean() / (T**2).mean()
    assert float(Mse()(both)) == pytest.approx(expected, rel=1e-12)
    assert float(Mse(on=("a", "b"))(both)) == pytest.approx(expected, rel=1e-12)
    assert Mse(on=("a", "b")).features == ("a", "b")


def test_integers_among_the_outputs_are_passed_over() -> None:
    look = seen(n=torch.arange(3))
    assert torch.equal(Mse()(Seen(look.batch, look.student, look.teacher, ("n", "y"))), Mse()(look))
    with pytest.raises(BadRequest, match="no output is of floats"):
        Mse()(Seen({}, {"n": torch.arange(3)}, {"n": torch.arange(3)}, ("n",)))


def test_labels_are_cross_entropy_over_the_positions_that_have_one() -> None:
    labels = RNG.integers(0, 7, size=(4, 5))
    labels[0, 3] = labels[2, 1] = -1
    logs = np.log(softmax(S))
    expected = -np.mean([logs[i, j, labels[i, j]] for i in range(4) for j in range(5) if labels[i, j] >= 0])
    assert float(Labels()(seen(labels=labels)).detach()) == pytest.approx(expected, rel=1e-12)
    first = np.moveaxis(S, -1, 1)
    assert float(Labels(axis=1)(seen(first, labels=labels)).detach()) == pytest.approx(expected, rel=1e-12)
    assert float(Labels()(Seen({"labels": torch.tensor(labels)}, {"y": torch.tensor(S)}, {}, ("y",)))) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "has no labels"), (np.zeros(3, int), "do not fit"), (np.full((4, 5), 7), "do not fit")],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Labels()(seen(labels=labels))


def test_a_sum_has_the_gradient_of_its_parts_times_their_factors() -> None:
    total = Weighted({"mse": (0.5, Mse(on=("y",))), "kl": (2.0, Kl(3.0))})
    assert total.features == ("y",)
    gradients = []
    for loss in (total, Mse(), Kl(3.0)):
        look = seen()
        loss(look).backward()
        gradients.append(look.student["y"].grad.numpy())
    np.testing.assert_allclose(gradients[0], 0.5 * gradients[1] + 2.0 * gradients[2], rtol=1e-12)


def test_recipes_ask_for_losses_by_name() -> None:
    assert {"kl", "labels", "mse"} <= set(catalog.losses())
    made = make({"kl": {"temperature": 2, "weight": 3}, "mse": {"on": ["a"]}})
    assert made.terms == {"kl": (3.0, Kl(2.0)), "mse": (1.0, Mse(("a",)))}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "no loss is asked for"),
        ({"label": {}}, "Did you mean 'labels'"),
        ({"kl": {"temprature": 2}}, "Did you mean 'temperature'"),
        ({"kl": {"temperature": "hot"}}, "'temperature'.*got 'hot'"),
        ({"kl": {"temperature": 0}}, "not positive"),
        ({"kl": {"weight": -1}}, "weight -1"),
        ({"mse": {"weight": "much"}}, "weight 'much'"),
    ],
)
def test_what_means_nothing_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        make(asked)
