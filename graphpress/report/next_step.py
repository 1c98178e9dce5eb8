"""What to do now: a sentence or two for each verdict, from what the report knows."""

from __future__ import annotations

from graphpress.job.chance import Verdict
from graphpress.report.report import Report

_FEW = 100  # samples below which a gate leaves much to chance


def next_steps(report: Report) -> list[str]:
    """Sentences, the first to be done first."""
    said = _of_gate(report) + _of_latency(report)
    return said or ["Use model.onnx: it runs wherever the target does, with nothing of graphpress installed."]


def _of_gate(report: Report) -> list[str]:
    gate = report.gate
    if gate.verdict is Verdict.FAILED:
        found = [f"{line.rstrip('.')}." for line in gate.remedy]
        return found or ["Leave the sites to blame in float with quantize.ignore, or let --max-drop do it."]
    if not gate.outputs:
        return gate.remedy or ["Give --data: without samples nothing says how much accuracy the rewriting cost."]
    if gate.verdict is Verdict.UNSURE and gate.left_out:
        return [f"Give samples of your own to hold out: the {gate.samples} that the gate saw cannot tell."]
    if gate.verdict is Verdict.UNSURE:
        return [f"Give more samples than the {gate.samples} that were held out: so few cannot tell."]
    if gate.left_out:
        return ["Give samples of your own to hold out: the gate saw others than a user will."]
    if gate.samples < _FEW and not report.metric:
        return [f"It passed on {gate.samples} samples; hold out more, with labels, before it is shipped."]
    return []


def _of_latency(report: Report) -> list[str]:
    latency = report.latency
    if not latency:
        return []
    if latency.get("busy"):
        return ["Measure the latency again on a quiet machine: interleaved runs disagreed."]
    if latency.get("ratio_low", latency["ratio"]) > 1:
        return ["It is slower than the float model here: see in the sites which kernels run, and try another recipe."]
    if latency.get("ratio_high", latency["ratio"]) >= 1:
        return ["It is no faster than the float model here: take it for its size, or try another recipe."]
    return []
