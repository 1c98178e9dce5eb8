"""The gate's figures against closed forms."""

import math

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.job.bars import Gate
from graphpress.job.gate import compare_outputs, judge


def runner(outputs: list[np.ndarray]):
    pending = iter(outputs)
    return lambda feeds: {"y": next(pending)}


def test_figures_over_batches_equal_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=(12, 10)).astype(np.float32), rng.normal(size=(12, 10)).astype(np.float32) * 0.1
    b = a + noise
    outputs, samples = compare_outputs(runner([a[:5], a[5:]]), runner([b[:5], b[5:]]), [{"x": a[:5]}, {"x": a[5:]}])
    u, v = a.astype(np.float64), b.astype(np.float64)
    assert samples == 12
    assert outputs[0].sqnr == pytest.approx(10 * math.log10((u**2).sum() / ((u - v) ** 2).sum()), abs=1e-9)
    assert outputs[0].cosine == pytest.approx((u * v).sum() / math.sqrt((u**2).sum() * (v**2).sum()), abs=1e-12)
    assert outputs[0].agreement is None and not outputs[0].figures  # nothing was said of what it is
    each = [10 * math.log10((r**2).sum() / ((r - s) ** 2).sum()) for r, s in zip(u, v, strict=True)]
    assert outputs[0].worst == (int(np.argmin(each)), pytest.approx(min(each), abs=1e-9))
    assert outputs[0].max_abs == np.abs(u - v).max()


@pytest.mark.parametrize(
    "bad", [np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), np.float32), np.zeros((3, 5), np.float32)]
)
def test_broken_outputs_never_pass(bad: np.ndarray) -> None:
    good = np.arange(12, dtype=np.float32).reshape(3, 4)
    result = judge(*compare_outputs(runner([good]), runner([bad]), [{"x": good}]), Gate())
    assert not result.passed and "output 'y'" in result.failures[0]


def test_equal_outputs_pass_and_masks_of_minus_infinity_do_not_count() -> None:
    x = np.array([[0.0, 1.0, -np.inf]], np.float32)
    outputs, n = compare_outputs(runner([x]), runner([x]), [{"x": x}])
    assert outputs[0].sqnr == math.inf and judge(outputs, n, Gate()).passed


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0},
        {"min_cosine": 2.0},
        {"min_agreement": -0.1},
        {"max_loss": -1},
        {"max_nats": math.nan},
        {"outputs": {"y": "class"}},
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(options: dict) -> None:
    with pytest.raises(BadRequest, match="gate option"):
        Gate(**options)
