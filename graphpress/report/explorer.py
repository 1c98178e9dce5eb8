"""Node data for Google's Model Explorer: its graph view coloured by bits, SQNR and time, one file each.

Format: ``GraphNodeData`` of model-explorer's node_data_builder; keys are output tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphpress import keys
from graphpress.graph import edit
from graphpress.report.report import Report, SiteRow

_GOOD, _MIDDLE, _BAD = "#2e7d32", "#fdd835", "#c62828"


def node_data(report: Report, model: ir.Model) -> dict[str, dict[str, Any]]:
    """File stem -> content, for the bits of the weights, the SQNR in dB and the microseconds of each site."""
    outputs = {n.name: n.outputs[0].name for n in edit.nodes(model) if n.outputs and n.outputs[0].name}
    by_tensor = {outputs[s.node]: s for s in report.sites if s.node in outputs}
    return {
        "bits": _data("weight bits", {t: bits(s) for t, s in by_tensor.items()}, (_GOOD, _MIDDLE, _BAD)),
        "sqnr": _data("SQNR (dB)", {t: s.sqnr for t, s in by_tensor.items()}, (_BAD, _MIDDLE, _GOOD)),
        "time": _data("time (µs)", {t: s.microseconds or None for t, s in by_tensor.items()}, (_GOOD, _MIDDLE, _BAD)),
    }


def bits(site: SiteRow) -> int:
    """Width of a site's lowest storage type; 32 for a float site."""
    return min((s.bits for s in keys.read_schemes(site.scheme, site.node).values()), default=32)


def _data(name: str, values: Mapping[str, float | None], colours: tuple[str, str, str]) -> dict[str, Any]:
    found = {t: {"value": v} for t, v in values.items() if v is not None and math.isfinite(v)}
    stops = [{"stop": s, "bgColor": c} for s, c in zip((0, 0.5, 1), colours, strict=True)]
    return {"name": name, "results": found, "gradient": stops}
