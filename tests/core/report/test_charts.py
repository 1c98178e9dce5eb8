"""Charts of the report page: what they show of which sites."""

from __future__ import annotations

import math

import pytest

from graphpress.report import charts
from graphpress.report.report import Report, SiteRow


def test_sizes_are_those_of_the_bits_of_the_weights() -> None:
    scheme = "activation[0] uint4 per_tensor asym mse; weight[1] int8 per_channel:0 sym minmax"
    rows = [
        SiteRow("small", "Conv", "", weights=10),
        SiteRow("large", "Conv", scheme, weights=1000),
        SiteRow("foreign", "Conv", "something", weights=100),
    ]  # fmt: skip
    found = charts.sizes(Report(sites=rows))
    assert [(r["name"], r["before"], r["after"], r["value"]) for r in found["rows"]] == [
        ("large", 100.0, 25.0, "4.00 kB → 1.00 kB"),
        ("foreign", 10.0, 10.0, "400 B → 400 B"),
        ("small", 1.0, 1.0, "40 B → 40 B"),
    ]
    many = charts.sizes(Report(sites=[SiteRow(str(i), "Conv", weights=100) for i in range(20)]))
    assert (len(many["rows"]), many["note"].partition(". ")[0]) == (16, "The other 4 layers: 1.60 kB → 1.60 kB")
    assert charts.sizes(Report())["rows"] == []


def test_dots_lie_on_the_scale_and_what_is_exact_is_said() -> None:
    figures = [10.0, 30.0, 20.0, math.inf, None]
    found = charts.noise(Report(sites=[SiteRow(str(i), "Conv", sqnr=v) for i, v in enumerate(figures)]))
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert [d["y"] for d in found["dots"]] == pytest.approx([bottom, top, (bottom + top) / 2])
    assert [d["x"] for d in found["dots"]] == pytest.approx([52, 378, 704])
    assert [t for _, t in found["ticks"]] == ["10", "20", "30"]
    assert found["note"].startswith("2 sites are exact or not measured")
    assert charts.noise(Report(sites=[SiteRow("a", "Conv", sqnr=3.0)])) == {}
