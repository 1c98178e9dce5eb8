"""The samplers of the bench against closed forms: a constant flow, noise that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphpress.tools.bench.diffusion import NONE, Sampler
from graphpress.tools.bench.figures.diffusion import order


def test_a_constant_flow_is_followed_with_guidance() -> None:
    sampler = Sampler(Path(), "dit", count=10)

    def predict(x: np.ndarray, t: float, label: np.ndarray) -> np.ndarray:
        return np.where(label == NONE, 1.0, 3.0).reshape(-1, 1, 1, 1) * np.ones_like(x)

    (start, first, guided), *_, (made, last, _) = sampler.way(predict)
    assert (first, last) == (1.0, 0.0) and np.allclose(guided, 1 + 2 * (3 - 1))
    np.testing.assert_allclose(made, start - 5.0, atol=1e-5)


def test_noise_that_is_known_leaves_the_picture() -> None:
    """x_t = a x0 + s eps: whoever predicts eps exactly has x0 at each step."""
    sampler = Sampler(Path(), "unet", count=10)
    picture = np.random.default_rng(1).uniform(-1, 1, (10, 1, 28, 28))

    def predict(x: np.ndarray, t: float, label: np.ndarray) -> np.ndarray:
        return (x - np.cos(np.pi / 2 * t) * picture) / np.sin(np.pi / 2 * t)

    *_, (made, _, _) = sampler.way(predict)
    np.testing.assert_allclose(made, picture, atol=1e-4)


def test_an_order_holds_where_each_loses_less_and_other_draws_are_told() -> None:
    draws = {"W4A4 RTN": (3.0, 1.0), "W4A4 smooth": (3.5, 0.9), "W4A4 smooth, low rank": (1.0, 0.5)}
    new, way = order("unet", {"W4A4 RTN": 3.0, "W4A4 smooth": 2.0, "W4A4 smooth, low rank": 1.0}, draws)
    assert (new.met, way.met) == (False, True)
    assert new.measured == "3.0000, 3.5000, 1.0000" and new.note == "on other draws of samples: 1.0000, 0.9000, 0.5000"
