"""What the report says is to be done, and the summary that `compile` prints."""

from __future__ import annotations

import pytest

from graphpress.contracts import Skip
from graphpress.job.gate import GateResult, OutputCheck
from graphpress.report.next_step import next_steps
from graphpress.report.report import Report, SiteRow
from graphpress.report.summary import summary

OUTPUT = OutputCheck("y", 20.0, 0.99, 0.1, 1.0)
SURE = {"before": 2.0, "after": 1.0, "ratio": 0.5, "ratio_low": 0.48, "ratio_high": 0.52, "runs": 40.0, "busy": 0.0}
GOOD = GateResult([OUTPUT], 500)


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (Report(), "Give --data"),
        (Report(gate=GateResult([OUTPUT], 8, failures=["y"])), "quantize.ignore"),
        (Report(gate=GateResult([OUTPUT], 8, failures=["y"], remedy=["Keep a in float"])), "Keep a in float."),
        (Report(gate=GateResult([OUTPUT], 8, unsure=["y"])), "more samples than the 8"),
        (Report(gate=GateResult([OUTPUT], 8, unsure=["y"], left_out="made up")), "to hold out: the 8 that"),
        (Report(gate=GateResult([OUTPUT], 8)), "passed on 8 samples"),
        (Report(gate=GateResult([OUTPUT], 500, left_out="made up")), "samples of your own"),
        (Report(gate=GOOD), "Use model.onnx"),
        (Report(gate=GOOD, latency=SURE), "Use model.onnx"),
        (Report(gate=GOOD, latency=SURE | {"busy": 1.0}), "quiet machine"),
        (Report(gate=GOOD, latency=SURE | {"ratio_low": 1.1, "ratio_high": 1.2}), "slower"),
        (Report(gate=GOOD, latency=SURE | {"ratio_low": 0.9, "ratio_high": 1.1}), "no faster"),
    ],
)
def test_each_verdict_has_its_step(report: Report, word: str) -> None:
    assert word in next_steps(report)[0]


def test_the_summary_is_about_twenty_lines_whatever_happened() -> None:
    sites = [
        SiteRow(f"s{i}", "Conv", "" if i % 2 else "weight[1] int8", f"reason {i}", 10, sqnr=float(i))
        for i in range(300)
    ]
    report = Report(
        model="m.onnx", recipe="w8a8", target="ort-cpu", sites=sites, idle=[Skip("x" * 400, "y " * 300)] * 9,
        latency=SURE | {"busy": 1.0}, metric={"before": 90.0, "after": 89.0}, size={"file_before": 10, "file_after": 5},
        ops={"before": {"Conv": 3}, "after": {"Conv": 4}}, gate=GateResult([OUTPUT], 8, failures=["a " * 400]),
    )  # fmt: skip
    lines = summary(report).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 118 or any("x" * 400 in line for line in lines)
    text = "\n".join(lines)
    assert "0.50x (0.48x to 0.52x of 40 pairs of runs; the machine was busy)" in text
    assert "weight-only 50.0 %, float 50.0 %" in text
    assert "and 6 more warnings" in text
