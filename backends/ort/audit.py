"""Prove what runs: for each site the kernel, its time and multiply-adds, or the rule that keeps it in float."""

from __future__ import annotations

import re
from collections import Counter

import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphpress import keys
from graphpress.backends import canonical, macs
from graphpress.backends.audited import Audit, AuditRow, Conversion, made_up_feeds, size_only
from graphpress.backends.macs import KernelRun
from graphpress.backends.ort import moved_codes, origin, told
from graphpress.backends.ort.groups import quantizers, static_violation
from graphpress.backends.ort.origin import CONVERSIONS, LAYOUT, ExecutedNode
from graphpress.backends.ort.profile import CONTROL, Profile, profile
from graphpress.backends.ort.rules import lower_float
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import ORIGIN, SCHEME
from graphpress.ops import packing
from graphpress.runner import Arrays
from graphpress.target import Fact, Target
from graphpress.types import Role, Storage

_INTEGER = re.compile(r"QLinear|QGemm|MatMulInteger|ConvInteger|DynamicQuantize(MatMul|LSTM)|QAttention")
_WORTH_A_ROW = 0.01  # share of time from which on a node has a row even if nothing about it is quantized


def audit(model: ir.Model, target: Target, feeds: Arrays | None = None) -> Audit:
    """Run a lowered model, optimised and as it is, and read back what became of every site.

    Args:
        model: A lowered model; one that was not lowered is audited as it stands.
        target: What it was lowered for.
        feeds: Inputs; made up where absent (zeros for integers, 1 for open dimensions).

    Raises:
        BadRequest: The feeds do not fit the model.
        Unsupported: ONNX Runtime refuses the model.
    """
    given = made_up_feeds(model) if feeds is None else feeds
    if Fact.KEEPS_KERNELS_TO_ITSELF in target.facts:
        return told.audit(model, target, given)
    try:
        ran = profile(model, given, target=target)
    except BadRequest as e:
        if feeds is not None:
            raise
        raise BadRequest(f"{e.what} (on made-up inputs)", where=e.where, fix="Give inputs to audit on.") from e
    dense = packing.unpacked(model)  # what was packed is unpacked at load: kernels read it as it was
    written = profile(dense, given, optimise=False)
    return _OrtAuditor(dense, target, ran, written).audit(given)


class _OrtAuditor:
    def __init__(self, model: ir.Model, target: Target, ran: Profile, written: Profile) -> None:
        self.target, self.times, self.executed = target, ran.kernels, written.kernels.keys()
        self.nodes = list(edit.nodes(model))
        self.noted = any(SCHEME in n.metadata_props for n in self.nodes)
        self.traced = origin.trace(model, ran.graph)
        self.macs = {n.name: macs.multiply_adds(n, k) for n in self.nodes if (k := written.kernels.get(n.name or ""))}
        self.work: Counter[str] = Counter()  # multiply-adds by site
        for n in self.nodes:
            self.work[_site(n)] += self.macs.get(n.name, 0)
        self.total = sum(k.microseconds for k in ran.kernels.values() if k.op not in CONTROL) or 1.0
        self.by_output = {o: r for r in self.traced for o in r.node.output if o}
        self.readers: dict[str, list[ExecutedNode]] = {}
        for r in self.traced:
            for name in r.node.input:
                self.readers.setdefault(name, []).append(r)

    def audit(self, feeds: Arrays) -> Audit:
        owned: dict[str, list[ExecutedNode]] = {}
        for r in self.traced:
            for name in dict.fromkeys(_site(n) for n in r.covers):
                owned.setdefault(name, []).append(r)
        rows = [row for n in self.nodes if n.name in owned and _is_site(n) and (row := self.row(n, owned[n.name]))]
        return Audit(
            target=self.target.name,
            isa=self.target.isa,
            runtime=f"onnxruntime {ort.__version__}",
            sites=tuple(rows),
            conversions=tuple(self.conversions()),
            microseconds=self.total,
            feeds={k: f"{v.dtype}{list(v.shape)}" for k, v in feeds.items()},
        )

    def row(self, node: ir.Node, ran: list[ExecutedNode]) -> AuditRow | None:
        mine = [r for r in ran if self.owner(r) == node.name]
        main = max(mine or ran, key=lambda r: (bool(_INTEGER.match(r.node.op_type)), self.time(r)))
        spent = sum(self.time(r) for r in mine)
        verdict, reason = self.verdict(node, main)
        work = self.work[node.name or ""]
        if verdict == "float" and not work and spent < _WORTH_A_ROW * self.total:
            return None
        scheme = node.metadata_props.get(SCHEME, "")
        kernel, reason = main.node.op_type, size_only(node, reason, "ONNX Runtime")
        return AuditRow(node.name or "", node.op_type, scheme, verdict, kernel, reason, spent, spent / self.total, work)

    def owner(self, r: ExecutedNode) -> str:
        """The site that a kernel's time goes to: of all it computes the one with most multiply-adds."""
        assert r.base is not None
        heaviest = max(r.covers, key=lambda n: self.macs.get(n.name, 0), default=r.base)
        return _site(heaviest if self.macs.get(heaviest.name, 0) else r.base)

    def time(self, r: ExecutedNode) -> float:
        kernel: KernelRun | None = self.times.get(r.node.name)
        elsewhere = r.base is not None and r.base.name not in self.executed  # a branch not taken, its kernel's namesake
        return 0.0 if kernel is None or kernel.op in CONTROL or elsewhere else kernel.microseconds

    def verdict(self, node: ir.Node, main: ExecutedNode) -> tuple[str, str]:
        op = main.node.op_type
        if op == "MatMulNBits":
            level = next((a.i for a in main.node.attribute if a.name == "accuracy_level"), 0)
            too = "; so do the activations' codes" if any(map(canonical.activation, node.inputs)) else ""
            weights = "blocks of weights become float in the kernel"
            return ("integer", "") if level == 4 else ("weight-only", weights + too)
        if op == "GatherBlockQuantized":
            return "weight-only", "only the rows that are read become float"
        if _INTEGER.match(op) or _on_integers(node) or (node.op_type == op and self.moves_integers(node, main)):
            return "integer", moved_codes.noted(node)
        bits = next((b for v in node.inputs if (b := canonical.restored(node, v))), 0)
        if bits and not any(map(canonical.activation, node.inputs)):
            return "weight-only", f"{bits}-bit weights become float once, at load{_rounded(node)}"
        if node.op_type in lower_float.LEFT:
            return "float", "left in float between quantized neighbours"
        if self.quantized(node):
            return "fallback", static_violation(node, self.target) or "ONNX Runtime kept it in float for no rule known"
        return "float", ""

    def quantized(self, node: ir.Node) -> bool:
        """Whether it was meant to be: a pass noted so, or it stands between Q and DQ.

        In a graph where no pass left notes a quantized input is enough. Elsewhere that means only that a neighbour is.
        """
        inputs = any(canonical.activation(v) or canonical.weight(v) for v in node.inputs)
        outputs = any(quantizers(v) for v in node.outputs)
        return SCHEME in node.metadata_props or (inputs and (outputs or not self.noted))

    def moves_integers(self, node: ir.Node, main: ExecutedNode) -> bool:
        moves = any(c.output == "same" for c in self.target.find(node.op_type, "static"))
        source = self.by_output.get(main.node.input[0]) if main.node.input else None
        before = canonical.activation(node.inputs[0]) if node.inputs else None
        return moves and before is not None and (source is None or source.node.op_type != "DequantizeLinear")

    def conversions(self) -> list[Conversion]:
        found = []
        for r in self.traced:
            op = r.node.op_type
            ours = r.base is not None and r.base.op_type == op
            if op in CONVERSIONS or (op in LAYOUT and not ours) or (op == "Cast" and r.base is None):
                pair = self.neighbour(r.node, back=True), self.neighbour(r.node, back=False)
                found.append(Conversion(op, *pair, self.time(r)))
        return found

    def neighbour(self, node: onnx.NodeProto, *, back: bool) -> str:
        """The nearest site before or behind a conversion."""
        for _ in range(8):
            if back:
                near = self.by_output.get(node.input[0]) if node.input else None
            else:
                near = next((r for o in node.output for r in self.readers.get(o, [])), None)
            if near is None:
                return ""
            if near.base is not None and near.node.op_type not in CONVERSIONS | LAYOUT:
                return self.owner(near)
            node = near.node
        return ""


def _site(node: ir.Node) -> str:
    """The name of the site that a node belongs to."""
    return node.metadata_props.get(ORIGIN) or node.name or ""


def _is_site(node: ir.Node) -> bool:
    return node.op_type not in CONVERSIONS | CONTROL | {"Constant"} and _site(node) == node.name


def _rounded(node: ir.Node) -> str:
    """What becomes of the activations beside weights that are floats."""
    if any(map(canonical.by_step, node.inputs)):
        return "; activations are rounded by the step of each sample, and computed in float"
    small = any(scheme.floating for site, scheme in keys.schemes(node).items() if site.role is Role.ACTIVATION)
    return "; activations are rounded to 8-bit floats, and computed in float" if small else ""


def _on_integers(node: ir.Node) -> bool:
    """Whether it reads codes in our own graph already, where quantizers were moved past it."""
    value = node.inputs[0] if node.inputs else None
    return value is not None and Storage.of_codes(value.dtype) is not None
