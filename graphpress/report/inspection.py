"""Look at a model, or at what changed between two: data first, tables of it for people."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphpress.graph import text
from graphpress.job.models import ModelLike, as_model
from graphpress.keys import SCHEME, SCOPE, TARGET
from graphpress.passes.structure.layers.overview import Overview
from graphpress.pipeline import stage_of
from graphpress.report import report as reports
from graphpress.report.html import drawn
from graphpress.report.tables import Table, scheme, size


@dataclass(frozen=True)
class SiteInfo:
    """One operator that holds weights or has a scheme."""

    node: str
    op: str
    scope: str
    weights: int
    scheme: str


@dataclass
class Inspection:
    """What is in a model."""

    name: str
    stage: str
    target: str
    opsets: dict[str, int]
    ir_version: int
    inputs: list[str]
    outputs: list[str]
    ops: dict[str, int]
    storage: dict[str, dict[str, int]]  # element type -> tensors, elements, bytes
    sites: list[SiteInfo] = field(default_factory=list)
    structure: Overview | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        return drawn(self.tables())

    def tables(self) -> list[Table]:
        head = [("stage", self.stage), ("target", self.target or "-"), ("IR version", str(self.ir_version))]
        head += [(f"opset {d or 'ai.onnx'}", str(v)) for d, v in self.opsets.items()]
        head += [("input", i) for i in self.inputs] + [("output", o) for o in self.outputs]
        stored = [(t, str(s["tensors"]), f"{s['elements']:,}", size(s["bytes"])) for t, s in self.storage.items()]
        return [
            Table(self.name, ("", ""), head),
            Table("Weights by type", ("type", "tensors", "elements", "bytes"), stored),
            Table("Operators", ("op", "count"), [(o, str(c)) for o, c in self.ops.items()]),
            Table(
                "Sites",
                ("site", "op", "module", "weights", "scheme"),
                [(s.node, s.op, s.scope, f"{s.weights:,}", scheme(s.scheme)) for s in self.sites],
            ),
            *([] if self.structure is None else _structure(self.structure)),
        ]


def _structure(found: Overview) -> list[Table]:
    parts = {
        "Residual streams": found.streams,
        "Norms": found.norms,
        "Feed-forward blocks": found.blocks,
        "Places of factors": found.factors,
        "Attention heads": found.heads,
        "MLP pairs": found.pairs,
        "Embeddings": found.embeddings,
    }
    return [
        Table(title, tuple(rows[0]), [tuple(_cell(k, v) for k, v in row.items()) for row in rows])
        for title, rows in parts.items()
        if rows
    ]


def _cell(key: str, value: Any) -> str:
    """Reasons and layers by name, the many ends of a stream by number."""
    if isinstance(value, list):
        return str(len(value)) if key in ("writers", "readers", "norms") else "; ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)


def inspect(model: ModelLike, *, structure: bool = False) -> Inspection:
    """Operators, weights by storage type, and sites of a model or an ONNX file.

    Args:
        model: A model or the path of an ONNX file.
        structure: Look for residual streams, norms, feed-forward blocks, attention heads, MLP pairs, places of
            SmoothQuant's factors and embeddings as well, each with what keeps a pass from using it.
    """
    from graphpress.passes.structure.layers.overview import overview

    model = as_model(model)
    return Inspection(
        name=model.graph.name or "model",
        stage=stage_of(model).value,
        target=model.metadata_props.get(TARGET, ""),
        opsets=dict(model.opset_imports),
        ir_version=model.ir_version,
        inputs=[text.value(v) for v in model.graph.inputs],
        outputs=[text.value(v) for v in model.graph.outputs],
        ops=reports.histogram(model),
        storage=storage(model),
        sites=_sites(model),
        structure=overview(model) if structure else None,
    )


def storage(model: ir.Model) -> dict[str, dict[str, int]]:
    """Tensors, elements and bytes of all initializers and Constant tensors by element type."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "elements": 0, "bytes": 0})
    for tensor in reports.tensors(model):
        entry = found[tensor.dtype.name.lower()]
        entry["tensors"] += 1
        entry["elements"] += tensor.size
        entry["bytes"] += tensor.nbytes
    return dict(sorted(found.items(), key=lambda i: -i[1]["bytes"]))


def _sites(model: ir.Model) -> list[SiteInfo]:
    return [
        SiteInfo(
            n.name or "",
            n.op_type,
            n.metadata_props.get(SCOPE, ""),
            reports.weights(n),
            n.metadata_props.get(SCHEME, ""),
        )
        for n in reports.operators(model)
        if reports.heavy(n) or SCHEME in n.metadata_props
    ]


@dataclass(frozen=True)
class SiteChange:
    """One operator in both models; empty text where it is missing from one."""

    node: str
    before: str
    after: str


@dataclass
class Difference:
    """What changed from one model to another."""

    sites: list[SiteChange]
    ops: dict[str, tuple[int, int]]
    storage: dict[str, tuple[int, int]]  # element type -> bytes before, after
    lines: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        return drawn(self.tables())

    def tables(self) -> list[Table]:
        return [
            Table(
                "Weights by type",
                ("type", "before", "after"),
                [(t, size(a), size(b)) for t, (a, b) in self.storage.items()],
            ),
            Table("Operators", ("op", "before", "after"), [(o, str(a), str(b)) for o, (a, b) in self.ops.items()]),
            Table(
                "Sites", ("site", "before", "after"), [(s.node, s.before or "-", s.after or "-") for s in self.sites]
            ),
        ]


def diff(a: ModelLike, b: ModelLike) -> Difference:
    """What changed from ``a`` to ``b``: schemes by site, operator counts, bytes by type, and the lines that differ."""
    a, b = as_model(a), as_model(b)
    left, right = ({s.node: f"{s.op} {s.scheme or 'float'}" for s in _sites(m)} for m in (a, b))
    sites = [SiteChange(n, left.get(n, ""), right.get(n, "")) for n in dict.fromkeys([*left, *right])]
    ops = _pairs(reports.histogram(a), reports.histogram(b))
    held = [{t: s["bytes"] for t, s in storage(m).items()} for m in (a, b)]
    return Difference([s for s in sites if s.before != s.after], ops, _pairs(*held), text.diff(a, b))


def _pairs(a: dict[str, int], b: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {k: (a.get(k, 0), b.get(k, 0)) for k in dict.fromkeys([*a, *b]) if a.get(k, 0) != b.get(k, 0)}
