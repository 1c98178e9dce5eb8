"""What a verdict is against what a task's metric lost."""

import math

import pytest

from graphpress.job.bars import Gate
from graphpress.tools.bench.confusion import Judged, price, table


def judged(lost: float, verdict: str, model: str = "m") -> Judged:
    return Judged(model, "w8a8", "top-1 %", 90.0, 90.0 - lost, lost, 2.0, verdict, [])


@pytest.mark.parametrize(
    ("lost", "verdict", "right"),
    [
        (2.1, "passed", "missed"), (2.1, "failed", "right"), (2.1, "not enough samples to tell", "undecided"),
        (1.5, "passed", "right"), (1.5, "failed", "right"),  # in between either is right
        (0.9, "passed", "right"), (0.9, "failed", "false alarm"), (0.9, "not enough samples to tell", "right"),
        (-1.0, "failed", "false alarm"),
    ],
)  # fmt: skip
def test_right_and_wrong(lost: float, verdict: str, right: str) -> None:
    assert judged(lost, verdict).right == right


def test_the_price_is_in_the_unit_of_the_metric() -> None:
    gate = Gate(max_loss=2, max_nats=0.03, min_sqnr=10)
    assert price("top-1 %", 80, gate) == 2
    assert price("nats/byte", 1.2, gate) == 0.03
    # signal 1, noise 1/10 of the float model's own, and 1/10 more: 3 dB
    assert price("SI-SDR dB", 10, gate) == pytest.approx(10 * math.log10(2))


def test_the_share_of_wrong_verdicts_stands_first() -> None:
    text = table([judged(3, "passed"), judged(0, "passed", "n"), judged(3, "not enough samples to tell"), judged(0, "failed")])  # fmt: skip # noqa: E501
    assert "4 cases: 1 right, 1 missed, 1 false alarms (50.0 % wrong), 1 lose too much" in text
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == ["| m", "| m", "| m", "| n"]
