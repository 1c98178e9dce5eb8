"""What passes put on show is drawn by its kind; the page knows no pass."""

from __future__ import annotations

import json

import pytest

from graphpress.contracts import Exhibit, PassReport
from graphpress.errors import BadRequest
from graphpress.report import page
from graphpress.report.report import Report
from graphpress.report.scatter import scatter

HOSTILE = "<script>alert(1)</script>"
POINTS = [
    {"x": 10.0, "y": 1e-3, "look": "predicted", "text": HOSTILE},
    {"x": 20.0, "y": 1e-1, "look": "taken", "text": "b"},
]
LEVELS = {
    "columns": ["where", "mean", HOSTILE, "strip"],
    "parts": [{"name": HOSTILE, "names": [HOSTILE], "counts": [[1, 3]], "strips": [[0.0, 1.0]]}],
}
KINDS = {
    "scatter": {"across": "size", "whole": 20.0, "points": POINTS},
    "levels": LEVELS,
    "table": {"columns": ["a", HOSTILE], "rows": [["1", HOSTILE]], "note": HOSTILE},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_as_text_and_stands_in_the_json(kind: str) -> None:
    report = Report(passes=[PassReport(name="mine", exhibits=[Exhibit(kind, HOSTILE, KINDS[kind])])])
    text = page.render(report)
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)" in text
    (found,) = json.loads(json.dumps(report.to_json()))["passes"][0]["exhibits"]
    assert found == {"kind": kind, "name": HOSTILE, "data": KINDS[kind]}


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"unknown kind 'scater'.*mean 'scatter'"):
        Exhibit("scater", "x", {})


def test_a_scatter_spans_its_box_and_ticks_are_shares_of_the_whole() -> None:
    drawn = scatter(KINDS["scatter"])
    low, high = drawn.dots
    assert (low.x, high.x) == (74.0, 700.0)
    assert (low.y, high.y) == (280.0, 16.0)  # 1e-3 to 1e-1: two decades, the box whole
    assert [t for _, t in drawn.across] == ["0.50x", "0.62x", "0.75x", "0.88x", "1.00x"]
    assert [t for _, t in drawn.up] == ["1e-3", "1e-2", "1e-1"]
    assert drawn.line == "74.0,280.0"  # only what is predicted lies on it
    assert scatter({"across": "size", "points": []}).dots == []


def test_what_is_handed_to_later_passes_stays_out_of_the_json() -> None:
    text = json.dumps(Report(passes=[PassReport(name="mine", handed={"data": object()})]).to_json())
    assert "handed" not in text


def test_budgets_that_were_asked_for_are_lines_within_the_box() -> None:
    asked = {"x": 5.0, "y": 1e-4}
    drawn = scatter({**KINDS["scatter"], "asked": asked, "up": "divergence"})
    assert drawn.asked == [("x", 74.0, "asked: 0.25x"), ("y", 280.0, "asked: 0.0001")]
    assert [t for _, t in drawn.up] == ["1e-4", "1e-3", "1e-2", "1e-1"]
    assert (drawn.title, drawn.label) == ("divergence", "size")
    assert scatter({**KINDS["scatter"], "asked": {"x": None, "y": None}}).asked == []
