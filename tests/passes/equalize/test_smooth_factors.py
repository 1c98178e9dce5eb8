"""What SmoothQuant remembers, its factors, and what a choice costs: by hand and in float64."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.passes.equalize import factors
from graphpress.passes.equalize.factors import OutputError, SeenRows
from graphpress.types import PER_TOKEN, Scheme, per_channel


def test_the_largest_of_each_channel_and_rows_spread_over_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "KEPT", 5)
    first = np.array([[1, -2], [3, 0], [np.nan, 9], [0, 1], [-4, 1], [2, 2]])  # the row that is not finite is left out
    second = np.array([[[0, -7], [1, np.inf], [0, 0], [2, 1]]])
    seen = SeenRows(batches=2)
    seen.update(first)
    assert seen.largest.tolist() == [4, 2] and seen.count == 5
    seen.update(second)
    seen.update(np.full((3, 2), np.nan))
    assert seen.largest.tolist() == [4, 7] and seen.count == 8
    kept = [k.tolist() for k in seen.kept]  # 5 rows over 2 batches: 3 each, from first to last
    assert kept == [[[1, -2], [0, 1], [2, 2]], [[0, -7], [0, 0], [2, 1]]]


def test_no_batches_are_one() -> None:
    seen = SeenRows(batches=0)
    seen.update(np.ones((3000, 1), np.float32))
    assert len(seen.kept[0]) == 1024


@pytest.mark.parametrize(
    ("activation", "weight", "alpha", "factor"),
    [
        (4.0, 9.0, 0.5, 2 / 3),
        (16.0, 81.0, 0.25, 2 / 27),
        (4.0, 9.0, 0.0, 1 / 9),
        (4.0, 9.0, 1.0, 4.0),
        (0.25, 0.5, 0.5, 0.5**0.5),
        (0.0, 9.0, 0.5, 1.0),  # never anything but 0
        (4.0, 0.0, 0.5, 1.0),
        (1e-9, 1.0, 0.5, 1e-5**0.5),  # a maximum below 1e-5 counts as that
        (1.0, 1e-9, 0.5, 1e5**0.5),
    ],
)
def test_factors_are_those_of_equation_4(activation: float, weight: float, alpha: float, factor: float) -> None:
    found = factors.factors(np.array([activation], np.float32), np.array([weight], np.float32), alpha)
    np.testing.assert_allclose(found, [factor], rtol=1e-6)


ROWS = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32) * np.array([1, 2, 3, 1, 1, 9], np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
FACTOR = np.array([1, 1.5, 2, 0.5, 1, 3], np.float32)


def rounded_weight(w: np.ndarray) -> np.ndarray:
    """int4 for each output: the extremes lie within half a step of the codes -8 and 7."""
    step = np.maximum(w.max(1) / 7.5, -w.min(1) / 8.5)[:, None]
    return np.clip(np.rint(w / step), -8, 7) * step


@pytest.mark.parametrize(("dtype", "reach", "top"), [("int8", 127.0, 127), ("int4", 7.5, 7)])
def test_the_cost_with_a_scale_for_each_token(dtype: str, reach: float, top: int) -> None:
    x, w = ROWS.astype(np.float64) / FACTOR, WEIGHT.astype(np.float64) * FACTOR
    step = np.abs(x).max(1, keepdims=True) / reach
    given = np.minimum(np.rint(x / step), top) * step
    wanted = float(np.square(given @ rounded_weight(w).T - ROWS.astype(np.float64) @ WEIGHT.T).sum())
    scheme = Scheme(dtype, PER_TOKEN, dynamic=True)
    cost = OutputError(ROWS, ROWS, WEIGHT, scheme, Scheme("int4", per_channel(0)))
    assert cost(FACTOR) == pytest.approx(wanted, rel=1e-3)
    assert cost(np.ones(6, np.float32)) != pytest.approx(wanted, rel=1e-2)


def test_a_row_of_zeros_stays_zero() -> None:
    scheme = Scheme("int8", PER_TOKEN, dynamic=True)
    cost = OutputError(
        np.zeros((2, 6), np.float32), np.zeros((2, 6), np.float32), WEIGHT, scheme, Scheme("int4", per_channel(0))
    )
    assert cost(FACTOR) == 0.0


def test_the_cost_with_one_scale() -> None:
    x, w = ROWS.astype(np.float64) / FACTOR, WEIGHT.astype(np.float64) * FACTOR
    step = (x.max() - x.min()) / 255
    zero = np.rint(-x.min() / step)
    given = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    wanted = float(np.square(given @ rounded_weight(w).T - ROWS.astype(np.float64) @ WEIGHT.T).sum())
    scheme = Scheme("uint8", symmetric=False, observer="minmax")
    cost = OutputError(ROWS, ROWS, WEIGHT, scheme, Scheme("int4", per_channel(0)))
    assert cost(FACTOR) == pytest.approx(wanted, rel=1e-3)


def test_the_range_is_that_of_other_rows() -> None:
    """What lies beyond it is clipped, as it will be on new samples."""
    seen, held = ROWS[:4], ROWS[4:] * 3
    x, w = seen.astype(np.float64), WEIGHT.astype(np.float64)
    step = (x.max() - x.min()) / 255
    zero = np.rint(-x.min() / step)
    given = (np.clip(np.rint(held / step) + zero, 0, 255) - zero) * step
    wanted = float(np.square(given @ rounded_weight(w).T - held.astype(np.float64) @ w.T).sum())
    scheme = Scheme("uint8", symmetric=False, observer="minmax")
    cost = OutputError(seen, held, WEIGHT, scheme, Scheme("int4", per_channel(0)))
    assert cost(np.ones(6)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ([(8, 2)], [[0, 0, 1, 1, 2, 2, 3, 3]]),
        ([(2, 3, 2)], [[0, 0, 0, 2, 2, 2]]),  # the rows of a sample stay together
        ([(1, 4, 2)], [[0, 1, 2, 3]]),  # of one sample its rows
        ([(1, 2, 2), (1, 2, 2), (1, 1, 2)], [[0, 0], [1, 1], [2]]),
    ],
)
def test_samples_fall_into_parts(shapes: list[tuple[int, ...]], parts: list[list[int]]) -> None:
    seen = SeenRows(batches=len(shapes))
    rng = np.random.default_rng(0)
    for shape in shapes:
        seen.update(rng.normal(size=shape))
    assert [p.tolist() for p in seen.part] == parts


def test_each_part_is_held_out_once() -> None:
    """The largest and the rows of the others, and its own."""
    x = np.array([[1, -2], [3, 0], [0, 9], [2, 1]])
    seen = SeenRows(batches=1)
    seen.update(x)
    parts = list(seen.held_out())
    assert [p for p, _ in parts] == [0, 1, 2, 3]
    for part, held in parts:
        largest, others = seen.without(part)
        rest = np.delete(x, part, axis=0)
        assert largest.tolist() == np.abs(rest).max(0).tolist()
        assert others.tolist() == rest.tolist() and held.tolist() == x[[part]].tolist()
    lone = SeenRows(batches=1)
    lone.update(x[:1])
    assert not list(lone.held_out())
    assert [v.tolist() for v in lone.without(0)] == [[1, 2], [[1, -2]]]


def test_of_many_rows_one_part_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "KEPT", 7)
    seen = SeenRows(batches=1)
    seen.update(np.arange(16.0).reshape(8, 2))
    assert [p for p, _ in seen.held_out()] == [3]


def test_what_lies_beyond_is_that_of_exponential_tails() -> None:
    """By hand: parts of one row; the range reaches from -4 to 4, and in the second channel from -8 to 8."""
    x = np.array([[4, -1], [2, 0], [1, -2], [-4, -2]], np.float32)
    seen = SeenRows(batches=1)
    seen.update(x)
    found = seen.beyond(np.array([1.0, 2.0]), Scheme("uint8", symmetric=False, observer="minmax"))
    above, below = ((4 - mean) / np.log(4) for mean in ((4 + 2 + 1 + 0) / 4, (0 + 0 + 0 + 4) / 4))  # of the first
    second = (2 - (1 + 0 + 2 + 2) / 4) / np.log(4)
    wanted = [(2 * above**2 + 2 * below**2) / 4, 2 * second**2 * np.exp(-(8 - 2) / second) / 4]
    np.testing.assert_allclose(found, wanted, rtol=0.1)
    still = SeenRows(batches=1)
    still.update(np.ones((4, 2), np.float32))
    assert still.beyond(np.ones(2), Scheme("uint8", symmetric=False, observer="minmax")).tolist() == [0, 0]


def test_the_mean_square_beyond_a_range_of_exponential_tails() -> None:
    """Against fresh rows: within a factor of 2 at the range's end, in the mean over 400 draws."""
    rng, told, wanted = np.random.default_rng(0), 0.0, 0.0
    for _ in range(400):
        x, fresh = (rng.exponential(size=(n, 1)).astype(np.float32) for n in (16, 512))
        seen = SeenRows(batches=1)
        seen.update(x)
        told += seen.beyond(np.ones(1), Scheme("uint8", symmetric=False, observer="minmax")).item()
        wanted += np.square(np.maximum(fresh - x.max(), 0), dtype=np.float64).mean()
    assert 0.5 < told / wanted < 2


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_of_a_convolution_each_tap_is_a_product(kernel: tuple[int, int]) -> None:
    """By hand: a range for each output over channels and taps together, then the error of each tap alone."""
    weight = np.random.default_rng(2).normal(size=(4, 6, *kernel))
    x = ROWS.astype(np.float64) / FACTOR
    step = (x.max() - x.min()) / 255
    zero = np.rint(-x.min() / step)
    given = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    loud = weight * FACTOR[:, None, None]
    held = rounded_weight(loud.reshape(4, -1)).reshape(loud.shape)
    wanted = 0.0
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            wanted += np.square(given @ held[:, :, i, j].T - ROWS.astype(np.float64) @ weight[:, :, i, j].T).sum()
    activation = Scheme("uint8", symmetric=False, observer="minmax")
    cost = OutputError(ROWS, ROWS, weight.astype(np.float32), activation, Scheme("int4", per_channel(0)))
    assert cost(FACTOR) == pytest.approx(wanted, rel=1e-3)
