"""Words for figures and schemes."""

import math

import pytest

from graphpress.report import tables


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("", "float"),
        ("weight[1] int8 per_channel:0 sym minmax", "weight int8 per_channel:0"),
        (
            "activation[0] uint8 per_tensor asym mse; output[0] uint8 per_tensor asym mse; "
            "weight[1] int8 per_tensor sym mse",
            "weight int8, activation uint8",
        ),
        (
            "activation[0] uint8 per_tensor asym mse; output[0] int8 per_tensor asym mse",
            "output int8, activation uint8",
        ),
        ("activation[0] int8 per_token sym dynamic", "activation int8 per_token dynamic"),
        (
            "weight[1] int8 per_channel:1 sym minmax; weight[2] int4 per_channel:1 sym minmax",
            "weight int8 per_channel:1 and int4 per_channel:1",
        ),
        ("something", "something"),
    ],
)
def test_schemes_are_said_in_short(text: str, short: str) -> None:
    assert tables.scheme(text) == short


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2.5e9, "2.50 GB"), (4e12, "4000.00 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert tables.size(count) == text


def test_figures_that_are_none_or_infinite() -> None:
    figures = {None: "-", math.inf: "exact", -math.inf: "broken", math.nan: "broken", 3.14: "3.1 dB"}
    assert [tables.decibel(v) for v in figures] == list(figures.values())
    assert [tables.percent(v) for v in (None, 0.5)] == ["-", "50.0 %"]
