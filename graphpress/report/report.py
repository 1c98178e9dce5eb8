"""What a compilation did, as data: the API returns it, the command line prints it, the HTML page draws it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graphpress.contracts import PassReport, Skip
from graphpress.graph import edit, half_storage, quantized
from graphpress.graph.movement import rearranges
from graphpress.job.gate import GateResult
from graphpress.keys import SCHEME
from graphpress.report import html
from graphpress.types import Plan

# Operators that hold the weights and do the multiply-adds: what compression is about. MatMul and Attention also
# multiply two computed values.
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Gather", "Attention")


@dataclass
class SiteRow:
    """One operator of the float model and what became of it.

    ``verdict`` is the runtime's: integer, float, fallback, weight-only; empty where there was no audit. ``weights``
    counts elements, ``macs`` multiply-adds of the audited run, ``microseconds`` of one run. ``sqnr`` is that of its
    output in dB, ``added`` the noise that its inputs do not explain as a share of its output's power;
    ``unmeasured`` says why neither is known.
    """

    node: str
    op: str
    scheme: str = ""
    skip: str = ""
    weights: int = 0
    verdict: str = ""
    kernel: str = ""
    reason: str = ""
    microseconds: float = 0.0
    share: float = 0.0
    macs: int = 0
    sqnr: float | None = None
    added: float = 0.0
    unmeasured: str = ""

    @property
    def kind(self) -> str:
        """integer, weight-only or float: how it runs, or without an audit how its scheme means it to."""
        if self.verdict:
            return self.verdict if self.verdict in ("integer", "weight-only") else "float"
        return ("integer" if "activation[" in self.scheme else "weight-only") if self.scheme else "float"


@dataclass(frozen=True)
class Coverage:
    """Shares between 0 and 1 of what was reached; ``macs`` is None without an audit.

    ``kinds`` holds those of integer, weight-only and float sites apart: of ``sites``, ``weights`` and ``macs``, as far
    as there are any. What fell back counts as float; without an audit a site counts as its scheme means it.
    """

    sites: float
    weights: float
    macs: float | None
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Report:
    """Everything there is to say about one compilation."""

    model: str = ""
    recipe: str = ""
    target: str = ""
    seed: int = 0
    passes: list[PassReport] = field(default_factory=list)
    plan: Plan | None = None
    gate: GateResult = field(default_factory=GateResult)
    metric: dict[str, float] = field(default_factory=dict)  # before, after, allowed: of the user's evaluation
    measured_by: str = ""  # its name, where it has one
    idle: list[Skip] = field(default_factory=list)  # what the recipe is for and did not do: report.idle
    reverted: list[str] = field(default_factory=list)  # nodes put back to float to hold max_drop
    widened: list[str] = field(default_factory=list)  # nodes that got 8 bits for it
    sites: list[SiteRow] = field(default_factory=list)
    half: str = ""  # what of a model in half precision is computed and stored how
    size: dict[str, int] = field(default_factory=dict)  # before, after: bytes of the saved file
    ops: dict[str, dict[str, int]] = field(default_factory=dict)  # before, after: operator histogram
    latency: dict[str, float] = field(default_factory=dict)  # before, after (ms), ratio
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the worst sites: PassReport.histograms
    audit: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    @property
    def skips(self) -> list[Skip]:
        """Every place that was left alone, with the reason, over all passes."""
        return [s for p in self.passes for s in p.skips]

    @property
    def warnings(self) -> list[Skip]:
        """What did nothing, and every place whose scales are degenerate, over all passes."""
        return [*self.idle, *(w for p in self.passes for w in p.warnings)]

    def coverage(self) -> Coverage:
        """What share of sites, weights and multiply-adds was rewritten (with an audit: runs on integer kernels)."""
        reached = [s for s in self.sites if s.scheme]
        macs = sum(s.macs for s in self.sites)
        on_integers = sum(s.macs for s in self.sites if s.verdict in ("integer", "weight-only"))
        return Coverage(
            len(reached) / max(len(self.sites), 1),
            sum(s.weights for s in reached) / max(sum(s.weights for s in self.sites), 1),
            on_integers / macs if macs else None,
            self._kinds(),
        )

    def _kinds(self) -> dict[str, dict[str, float]]:
        totals = {"sites": len(self.sites)} | {
            what: sum(getattr(s, what) for s in self.sites) for what in ("weights", "macs")
        }
        found = {}
        for kind in ("integer", "weight-only", "float") if self.sites else ():
            mine = [s for s in self.sites if s.kind == kind]
            amounts = {"sites": len(mine), "weights": sum(s.weights for s in mine), "macs": sum(s.macs for s in mine)}
            found[kind] = {what: amounts[what] / total for what, total in totals.items() if total}
        return found

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict and the figures; ``report.page`` draws all of it."""
        a, b = self.size.get("file_before", 0), self.size.get("file_after", 0)
        share = self.coverage()
        rows = [
            ("model, recipe, target", ", ".join(filter(None, (self.model, self.recipe, self.target)))),
            ("gate", self.gate.verdict if not self.gate.left_out else f"{self.gate.verdict}: {self.gate.left_out}"),
            ("file", f"{a:,} -> {b:,} bytes ({b / a:.2f}x)" if a and b else ""),
            ("latency", f"{self.latency['ratio']:.2f}x" if self.latency else ""),
            (self.measured_by or "metric", "{before:.4g} -> {after:.4g}".format(**self.metric) if self.metric else ""),
            *((f"SQNR of {o.name}", f"{o.sqnr:.1f} dB") for o in self.gate.outputs),
            ("rewritten", f"{100 * share.sites:.1f} % of sites, {100 * share.weights:.1f} % of weights"),
            *(("warning", f"{w.where}: {w.why}") for w in self.warnings),
            *(("below the gate", said) for said in self.gate.failures),
        ]
        return html.drawn([html.Drawn("graphpress", ("", ""), [row for row in rows if row[1]])])

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinite figures become None."""
        data = dataclasses.asdict(dataclasses.replace(self, plan=None, passes=[], gate=GateResult()))
        data["plan"] = self.plan.to_json() if self.plan else None
        data["passes"] = [_pass_json(p) for p in self.passes]
        data["gate"] = self.gate.to_json()
        data["warnings"] = [dataclasses.asdict(w) for w in self.warnings]
        data["coverage"] = dataclasses.asdict(self.coverage())
        return finite(data)


def _pass_json(p: PassReport) -> dict[str, Any]:
    plain = dataclasses.asdict(dataclasses.replace(p, plan=None, histograms={}, handed={}))
    del plain["histograms"]  # those of the worst sites are in the report
    del plain["handed"]  # the report has the digest of data
    return plain | {"plan": p.plan.to_json() if p.plan else None}


def finite(value: Any) -> Any:
    """Plain data with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def histogram(model: ir.Model) -> dict[str, int]:
    """Operator types of all graphs, most frequent first."""
    counts = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in edit.nodes(model))
    return dict(sorted(counts.items(), key=lambda i: (-i[1], i[0])))


def heavy(node: ir.Node) -> bool:
    """Whether an operator holds weights or multiplies matrices (a Gather only as an embedding)."""
    if node.domain or node.op_type not in HEAVY:
        return False
    return node.op_type != "Gather" or weights(node) > 256


def weights(node: ir.Node) -> int:
    """Elements of the constants of rank 2 and above that a node reads as floats, also where they are stored as codes or
    rearranged before; those that a kernel of ONNX Runtime reads as codes."""
    if node.domain == "com.microsoft" and node.op_type == "MatMulNBits":
        return int(edit.attribute(node, "K", 0) * edit.attribute(node, "N", 0))
    return sum(_elements(v, bool(node.domain)) for v in node.inputs if v is not None)


def _elements(value: ir.Value, codes: bool) -> int:
    source = half_storage.behind(_source(value)) or value
    tensor = edit.constant_tensor(source)
    if tensor is None or len(tensor.shape) < 2:
        return 0
    read = value.dtype or tensor.dtype
    return tensor.size if read.is_floating_point() or source is not value or (codes and read.bitwidth <= 8) else 0


def _source(value: ir.Value) -> ir.Value:
    """What ``value`` is made of: behind encoding and decoding, transposition, reshaping."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if not (quantized.encodes(node) or quantized.decodes(node) or rearranges(node)):
            break
        value = node.inputs[0]
    return value


def site_rows(before: ir.Model, after: ir.Model, passes: list[PassReport]) -> list[SiteRow]:
    """A row for each heavy operator of ``before`` and each other operator that has a scheme in ``after``."""
    schemes = {n.name: s for n in edit.nodes(after) if (s := n.metadata_props.get(SCHEME))}
    skips = {s.where: s.why for p in passes if p.plan is not None for s in p.skips}
    rows = []
    for node in operators(before):
        name = node.name or ""
        if heavy(node) or name in schemes:
            held, scheme = weights(node), schemes.get(name, "")
            why = skips.get(name, "") or ("" if scheme else _left_alone(node, held))
            rows.append(SiteRow(name, node.op_type, scheme, why, held))
    return rows


def operators(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes but those in the bodies of the dialect's operators, which are drawn, counted and named as one."""
    own = [f for f in model.functions.values() if f.domain == "graphpress"]
    within = {n for f in own for scope in edit.scopes(f) for n in scope}
    yield from (n for n in edit.nodes(model) if n not in within)


def _left_alone(node: ir.Node, held: int) -> str:
    """Why a site that no pass decided about stays in float."""
    if node.op_type == "Gather":
        return "an embedding: its rows are looked up, and no pass of the recipe stores them in fewer bits"
    if not held:
        return "it multiplies two computed values, and no pass of the recipe quantizes those"
    return "no pass of the recipe quantizes it"


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Each stored tensor once: initializers and Constant values of all graphs."""
    seen: set[int] = set()
    for graph in edit.graphs(model):
        held = [v.const_value for v in graph.initializers.values()] if isinstance(graph, ir.Graph) else []
        held += [edit.constant_tensor(n.outputs[0]) for n in graph if n.op_type == "Constant" and not n.domain]
        for tensor in held:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def stored_bytes(model: ir.Model) -> int:
    """Bytes of all stored tensors; of those that are float32 until they are stored as halves, as halves."""
    return sum(t.nbytes for t in tensors(model)) - half_storage.saved(model)
