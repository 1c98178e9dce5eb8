"""Static quantization as a flow: which operators between quantized ones join, and which outputs are quantized.

Operators with weights are given. Forwards, a value is *hard* if it comes quantized anyway (the kernel of its producer
writes integers only, such as Conv) and *soft* if it could (MatMul and Gemm write floats as well, at no extra cost). A
light operator is a candidate if all its inputs are soft or one is hard; its result is hard if one input is. A product
is none where one factor could not: states of a recurrence go through many products with steps that are floats, and
each would round both, as it spreads over more decades than its factors. Backwards,
a value is wanted if a quantized operator reads it, directly or behind data movement. Hard candidates whose result is
wanted join; soft ones only where a hard one wants them: among MatMuls, floats between are cheaper and more accurate
than integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import CLAMPS, interval
from graphpress.passes.quantize.operators import LIGHT, computed, moved, settled
from graphpress.types import Role, Scheme, Site


class Want(IntFlag):
    """Who wants a value quantized."""

    NOBODY = 0
    HEAVY = 1
    LIGHT = 2


@dataclass
class Joining:
    """The result: sites of the light operators, of data movement, and of optional outputs; ties along data movement."""

    scheme: Scheme
    heavy: Mapping[ir.Node, bool]  # statically quantized operators with weights -> whether their output must be
    joins: Callable[[ir.Node, Mapping[Site, Scheme]], bool]  # whether the user and the target let it
    sites: dict[Site, Scheme] = field(default_factory=dict)
    ties: list[frozenset[Site]] = field(default_factory=list)
    _hard: dict[ir.Value, bool] = field(default_factory=dict)  # values that can come quantized -> hard or soft
    _candidates: dict[ir.Node, bool] = field(default_factory=dict)
    _wanted: dict[ir.Value, Want] = field(default_factory=dict)

    def run(self, nodes: Sequence[ir.Node]) -> Joining:
        """Fill ``sites`` and ``ties``; ``nodes`` in order, outer graphs first."""
        for node in nodes:
            self._forward(node)
        for node in reversed(nodes):
            self._backward(node)
        return self

    def _forward(self, node: ir.Node) -> None:
        if node in self.heavy:
            self._hard[settled(node, self.scheme)] = self.heavy[node]
        elif moved(node) or interval(node) is not None:
            hard = self._hard.get(node.inputs[0]) if node.inputs[0] is not None else None
            if hard is not None and node.outputs[0] not in self._hard and self.joins(node, {}):
                self._candidates[node] = hard
                self._hard.update(dict.fromkeys(node.outputs, hard))
        elif node.op_type in LIGHT and self.joins(node, light_sites(node, self.scheme)):
            known = [self._hard.get(v) for _, v in computed(node) if not edit.is_constant(v)]
            if known and (None not in known or (True in known and node.op_type != "Mul")):
                self._candidates[node] = True in known
                self._hard[settled(node, self.scheme)] = True in known

    def _backward(self, node: ir.Node) -> None:
        if node in self.heavy:
            if not self.heavy[node] and self._wanted.get(settled(node, self.scheme)):
                self.sites[Site(node.name or "", 0, Role.OUTPUT)] = self.scheme
            for value in node.inputs:
                self._want(value, Want.HEAVY)
        elif node in self._candidates:
            if node.op_type in CLAMPS or moved(node):
                self._pass_on(node)
            else:
                self._join(node)

    def _pass_on(self, node: ir.Node) -> None:
        want = Want.NOBODY
        for out in node.outputs:
            want |= self._wanted.get(out, Want.NOBODY)
        if want:
            self._want(node.inputs[0], want)
            source = Site(node.name or "", 0, Role.ACTIVATION)
            read = [i for i, out in enumerate(node.outputs) if out.uses() or out.is_graph_output()]
            outs = [Site(node.name or "", i, Role.OUTPUT) for i in read]
            self.sites.update(dict.fromkeys([source, *outs], self.scheme))
            if node.op_type not in CLAMPS:
                self.ties.append(frozenset([source, *outs]))

    def _join(self, node: ir.Node) -> None:
        want = self._wanted.get(settled(node, self.scheme), Want.NOBODY)
        if Want.LIGHT in want or (want and self._candidates[node]):
            mine = light_sites(node, self.scheme)
            self.sites.update(mine)
            for _, value in computed(node):
                self._want(value, Want.LIGHT)
            if node.op_type == "Concat":
                self._tie_inputs(node)

    def _tie_inputs(self, node: ir.Node) -> None:
        """Inputs that nobody else reads, fresh from an operator, are best written with the scale of the result."""
        alone = [
            Site(node.name or "", slot, Role.ACTIVATION)
            for slot, value in computed(node)
            if len(value.uses()) == 1 and value in self._hard and (p := value.producer()) is not None and not moved(p)
        ]
        if alone:
            self.ties.append(frozenset([*alone, Site(node.name or "", 0, Role.OUTPUT)]))

    def _want(self, value: ir.Value | None, want: Want) -> None:
        if value is not None and not edit.is_constant(value):
            self._wanted[value] = self._wanted.get(value, Want.NOBODY) | want


def light_sites(node: ir.Node, scheme: Scheme) -> dict[Site, Scheme]:
    """The sites of an operator without weights; its constants are stored like activations."""
    name, sites = node.name or "", {}
    for slot, value in computed(node):
        if edit.is_constant(value):
            sites[Site(name, slot, Role.WEIGHT)] = of_constant(scheme)
        else:
            sites[Site(name, slot, Role.ACTIVATION)] = scheme
    return {**sites, Site(name, 0, Role.OUTPUT): scheme}


def of_constant(scheme: Scheme) -> Scheme:
    """How a constant among activations is stored: as they are, its range known."""
    return replace(scheme, observer="minmax")
