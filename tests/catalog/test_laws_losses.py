"""What every loss of the catalog keeps."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from graphpress import catalog
from graphpress.errors import BadRequest
from graphpress.passes.recover.losses.base import Seen, make

torch = pytest.importorskip("torch")
LOSSES = catalog.losses()
# Divergences: nothing is left to win where the student is its teacher.
DIVERGENCES = {"kl", "mse"}


def seen(student: np.ndarray, teacher: np.ndarray) -> Seen:
    labels = torch.arange(len(student)) % student.shape[-1]
    return Seen(
        {"labels": labels}, {"y": torch.tensor(student, requires_grad=True)}, {"y": torch.tensor(teacher)}, ("y",),
        done=0.5, seed=1, step=5, total=10,
    )  # fmt: skip


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 7))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_wrong_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match=f"{name}.*no_such_option"):
        make({name: {"no_such_option": 1}})
    for field in dataclasses.fields(LOSSES[name]):
        if field.init:
            with pytest.raises(BadRequest, match=field.name):
                make({name: {field.name: [{"nothing": [object]}]}})
    for weight in (0, -1, "much", float("nan")):
        with pytest.raises(BadRequest, match="weight"):
            make({name: {"weight": weight}})


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_options_survive_json(name: str) -> None:
    (_, loss) = make({name: {}}).terms[name]
    options = {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss) if f.init}
    (_, again) = make({name: json.loads(json.dumps(options))}).terms[name]
    assert again == loss
    assert json.loads(json.dumps(loss.state())) == loss.state()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_state_that_is_given_back_goes_on_as_before(name: str) -> None:
    (_, loss), (_, other) = (make({name: {}}).terms[name] for _ in range(2))
    for step, value in enumerate((3.0, 2.0, 2.5)):
        loss.after_step(value, step, 10)
    other.load(json.loads(json.dumps(loss.state())))
    for one in (loss, other):
        one.after_step(1.5, 3, 10)
    assert other.state() == loss.state()
    look = seen(logits(0), logits(1))
    assert float(loss(look).detach()) == float(other(look).detach())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_is_the_slope(name: str) -> None:
    """Central differences in float64; what a loss takes for a constant (a target) is held still."""
    (_, loss) = make({name: {}}).terms[name]
    student, teacher = logits(0), logits(1)
    look = seen(student, teacher)
    value = loss(look)
    assert value.ndim == 0 and value.dtype == torch.float64 and float(value.detach()) >= 0
    value.backward()
    gradient = look.student["y"].grad.numpy()
    along, step = logits(2), 1e-5

    def at(x: np.ndarray) -> float:
        return float(_still(loss, look)(seen(x, teacher)).detach())

    slope = (at(student + step * along) - at(student - step * along)) / (2 * step)
    assert (gradient * along).sum() == pytest.approx(slope, rel=1e-6, abs=1e-9)


def _still(loss: Any, look: Seen) -> Any:
    """The loss with its target, if it makes one of the student, as it was."""
    if not hasattr(loss, "target"):
        return loss
    fixed = loss.target(look.student["y"], look.teacher["y"]).detach()

    def held(other: Seen) -> Any:
        return loss.cross(other, other.student["y"], fixed)

    return held


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_divergence_is_nothing_where_nothing_differs_and_more_elsewhere(name: str) -> None:
    (_, loss) = make({name: {}}).terms[name]
    assert float(loss(seen(logits(1), logits(1))).detach()) == pytest.approx(0, abs=1e-12)
    assert float(loss(seen(logits(0), logits(1))).detach()) > 0.01


def test_every_divergence_is_a_loss() -> None:
    assert set(LOSSES) >= DIVERGENCES
