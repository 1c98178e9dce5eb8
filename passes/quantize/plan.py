"""Decide what is stored how: options and a target's rules give a Plan, and a reason for every operator left out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.graph import edit, selectors
from graphpress.keys import ADAPTED, SCHEME, TURNS
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.joining import Joining, of_constant
from graphpress.passes.quantize.kernels import refusal
from graphpress.passes.quantize.overrides import overridden
from graphpress.passes.quantize.quantize_options import Mode, QuantizeOptions
from graphpress.passes.quantize.wide_range import Wide
from graphpress.passes.structure.layers.outermost import first_layers, last_layers
from graphpress.target import Fact, Target
from graphpress.types import PER_TENSOR, Kind, Plan, Role, Scheme, Site

NATIVE = "uint8"  # activations where there is no target to say better
NOT_BY_DEFAULT = frozenset({"Softmax"})


def make_plan(
    model: ir.Model,
    target: Target | None,
    options: QuantizeOptions,
    unseen: Mapping[str, str] | None = None,
    wide: Mapping[str, Wide] = {},
) -> tuple[Plan, list[Skip]]:
    """What ``options`` ask for, as far as ``target`` (None: anything goes) runs it on low-bit kernels.

    Args:
        model: Not changed.
        target: Whose kernels count.
        options: What is asked.
        unseen: Nodes that read or give what no calibration sees, with the reason; None: all those of Loop and Scan.
        wide: Nodes that do not read their input in 8 bits, by name.

    Returns:
        The plan, and one Skip for each operator with weights that stays float or gets less than was asked.

    Raises:
        BadRequest: A selector that matches nothing, or a scheme that cannot be read.
    """
    nodes = operators.body(model)
    where = "quantize: option 'ignore'"
    ignored = {n.name or "" for s in options.ignore for n in selectors.match(s, nodes, where)}
    if unseen is None:
        unseen = dict.fromkeys(operators.repeated(nodes), "it is in a body that repeats")
    return _Planner(target, options, ignored, unseen, wide).run(nodes)


@dataclass
class _Planner:
    target: Target | None
    options: QuantizeOptions
    ignored: set[str]
    unseen: Mapping[str, str]
    wide: Mapping[str, Wide] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)

    def run(self, nodes: list[ir.Node]) -> tuple[Plan, list[Skip]]:
        schemes: dict[Site, Scheme] = {}
        static: dict[ir.Node, bool] = {}
        at_ends, wider = self._ends(nodes), replace(self, options=self.options.wider)
        for node in nodes:
            if node.domain == "" and node.op_type in operators.WEIGHTS and self._asked(node):
                if node in at_ends and self.options.ends == "float":
                    self._skip(node, "it stands at an end of the model, which stay float (ends: float)")
                    continue
                sites = (wider if node in at_ends else self)._heavy(node)
                schemes.update(sites)
                if any(s.role is not Role.WEIGHT and not v.dynamic for s, v in sites.items()):
                    static[node] = Site(node.name or "", 0, Role.OUTPUT) in sites
            elif node.domain == "" and node.op_type == "Einsum" and any(map(edit.is_constant, node.inputs)):
                self._skip(node, "it has weights, and is no product of matrices that a kernel computes")
        plan = Plan(schemes)
        if static and not self._activation("static").floating:  # no kernel adds or moves small floats
            flow = Joining(self._activation("static"), static, self._joins).run(nodes)
            plan = plan.merge(Plan(flow.sites, tuple(flow.ties)))
        return overridden(plan, self.options, self._activation("static"), nodes), self.skips

    def _ends(self, nodes: list[ir.Node]) -> set[ir.Node]:
        """Layers at the ends of the model, where they get more bits or stay float."""
        graph = nodes[0].graph if nodes and self.options.ends != "same" else None
        return {*first_layers(graph), *last_layers(graph)} if isinstance(graph, ir.Graph) else set()

    def _skip(self, node: ir.Node, why: str) -> None:
        self.skips.append(Skip(node.name or "", why))

    def _activation(self, mode: Mode, node: ir.Node | None = None) -> Scheme:
        native = self.target.activation_dtype if self.target else NATIVE
        recurrent = node is not None and node.op_type in operators.RECURRENT
        return self.options.activation_scheme(mode, native, recurrent)

    def _asked(self, node: ir.Node) -> bool:
        """Whether the options want the operator at all."""
        if node.op_type == "Gather" and not (self.options.embeddings and operators.is_table(node)):
            return False
        if self.options.op_types and node.op_type not in self.options.op_types:
            return False
        if node.name in self.ignored:
            self._skip(node, "ignored on request")
        elif SCHEME in node.metadata_props:
            self._skip(node, "it is quantized already")
        elif ADAPTED in node.metadata_props:
            self._skip(node, "it is a branch beside a layer, which is there for what rounding loses")
        elif TURNS in node.metadata_props:
            self._skip(node, "it changes the basis of a residual stream: rounded, it would cost more than all layers")
        else:
            return True
        return False

    def _heavy(self, node: ir.Node) -> Mapping[Site, Scheme]:
        """The sites of an operator with weights in the first mode that works; none, with a Skip, where no mode does."""
        roles = operators.operands(node)
        if isinstance(roles, str):
            self._skip(node, roles)
            return {}
        modes = self._modes(node)
        if isinstance(modes, str):
            self._skip(node, modes)
            return {}
        wide = self.wide.get(node.name or "")
        why = wide.why if wide is not None and self.options.mode not in dict(modes) else ""
        for mode, options in modes:
            found = replace(self, options=options)._in_mode(node, mode, roles)
            if not isinstance(found, str):
                if why:
                    got = (
                        "8 bits by tensor instead of by token"
                        if options is not self.options and mode == self.options.mode
                        else f"{mode} instead of {self.options.mode}"
                    )
                    self._skip(node, f"{got}: {why}")
                return found
            why = why or found
        self._skip(node, why)
        return {}

    def _modes(self, node: ir.Node) -> list[tuple[Mode, QuantizeOptions]] | str:
        """Those to try in turn, with what is asked of each, or why there is none."""
        wide = self.wide.get(node.name or "") if self.options.mode != "weight" else None
        if wide is not None and wide.whole:
            return wide.why
        if wide is not None or node.op_type == "Gather":
            return [("weight", self.options)]
        whole = self.options.whole
        return [(self.options.mode, self.options)] + [
            (m, whole if m == "dynamic" else self.options) for m in self.options.fallback
        ]

    def _in_mode(self, node: ir.Node, mode: Mode, roles: Mapping[int, Role]) -> Mapping[Site, Scheme] | str:
        slots = [s for s in operators.WEIGHTS[node.op_type] if roles[s] is Role.WEIGHT]
        if why := self._impossible(node, mode, roles):
            return why
        fixed = {} if mode == "weight" else self._activation_sites(node, mode, roles)
        kind, size = Kind(self.options.weight_granularity), self.options.group_size
        choices = [operators.granularities(node, slot, kind, size) for slot in slots]
        first = ""
        for combination in itertools.zip_longest(*choices, fillvalue=PER_TENSOR) if choices else [()]:
            weights = {
                Site(node.name or "", slot, Role.WEIGHT): self.options.weight_scheme(g)
                for slot, g in zip(slots, combination, strict=True)
            }
            why = self._refused(node, mode, {**fixed, **weights})
            if why is not None and self.options.kernels == "preferred":
                self._skip(node, f"quantized, but for size or accuracy only: {why}")
                return {**fixed, **weights}
            if why is None:
                if first:
                    self.skips.append(Skip(str(next(iter(weights))), f"{combination[0]} instead: {first}"))
                return {**fixed, **weights}
            first = first or why
        return first

    def _refused(self, node: ir.Node, mode: Mode, sites: Mapping[Site, Scheme]) -> str | None:
        """Why these schemes will not run on low-bit kernels."""
        whole = all(v.granularity == PER_TENSOR for s, v in sites.items() if s.role is Role.WEIGHT)
        if self.target is None:
            return None
        if mode == "dynamic" and (operators.batched_weights(node) or operators.vector_weights(node)):
            what = "a vector" if operators.vector_weights(node) else "a batch of matrices"
            return f"no integer kernel multiplies what is quantized at run time by {what}"
        fails = Fact.FAILS_ON_BATCHED_WEIGHTS in self.target.facts
        if fails and mode != "weight" and not whole and operators.batched_weights(node):
            return f"the integer kernels of {self.target.name} take column scales of a matrix, not of a batch of them"
        return refusal(self.target, node, sites)

    def _impossible(self, node: ir.Node, mode: Mode, roles: Mapping[int, Role]) -> str | None:
        """Why the operator cannot be quantized in this mode on any target."""
        if mode == "static" and (why := self.unseen.get(node.name or "")):
            return f"{why}: no range can be observed"
        if mode == "dynamic" and (why := self._undynamic(node, roles)):
            return why
        if any(roles[s] is Role.WEIGHT for s in operators.WEIGHTS[node.op_type]):
            return None
        attention = mode == "static" if self.options.attention is None else self.options.attention
        if mode == "weight" or (mode == "dynamic" and Role.WEIGHT in roles.values()):
            first = Role.WEIGHT in roles.values()
            return "its weights are the first operand, where no kernel takes them" if first else "it has no weights"
        return None if attention else "both operands are computed, and attention was not asked for"

    def _undynamic(self, node: ir.Node, roles: Mapping[int, Role]) -> str | None:
        computed = [node.inputs[s] for s, role in roles.items() if role is Role.ACTIVATION]
        if any(v is not None and v.dtype not in (None, ir.DataType.FLOAT) for v in computed):
            return "quantization at run time takes float32 only: put widen-half before it"
        if self.options.activation_granularity != "per_token":
            return None
        if self.target is not None and node.op_type not in ("MatMul", "Gemm", *operators.RECURRENT):
            return "it does not sum along the last axis, so a scale for each row cannot leave the sum"
        if len(computed) > 1:
            return "both operands are computed, and scales by row of the second cannot leave the sum"
        return "its tokens stand in columns (transA)" if edit.attribute(node, "transA", 0) else None

    def _activation_sites(self, node: ir.Node, mode: Mode, roles: Mapping[int, Role]) -> dict[Site, Scheme]:
        scheme, name = self._activation(mode, node), node.name or ""
        slots = operators.WEIGHTS[node.op_type]
        sites = {Site(name, s, r): scheme for s, r in roles.items() if r is Role.ACTIVATION}
        sites |= {
            Site(name, s, r): of_constant(scheme) for s, r in roles.items() if r is Role.WEIGHT and s not in slots
        }
        if mode == "static" and self._must_quantize_output(node):
            sites[Site(name, 0, Role.OUTPUT)] = scheme
        return sites

    def _must_quantize_output(self, node: ir.Node) -> bool:
        if self._activation("static").floating:  # floats lose more by one more rounding than they save
            return False
        if self.target is None:
            return node.op_type not in ("MatMul", "Gemm")
        return all(c.output == "required" for c in self.target.find(node.op_type, "static"))

    def _joins(self, node: ir.Node, sites: Mapping[Site, Scheme]) -> bool:
        """Whether an operator without weights may be quantized; data movement is exact, whatever runs it."""
        if node.name in self.ignored or node.name in self.wide or SCHEME in node.metadata_props or node.domain != "":
            return False
        if node.op_type not in operators.LIGHT:
            return True
        if node.op_type not in (self.options.op_types or operators.LIGHT - NOT_BY_DEFAULT):
            return False
        if any(v.dtype not in (None, *operators.FLOATS) for _, v in operators.computed(node)):
            return False
        return self.target is None or refusal(self.target, node, sites) is None
