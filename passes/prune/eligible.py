"""Which layers are pruned, and why the others are not."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit, selectors
from graphpress.keys import SPARSITY
from graphpress.passes.structure.layers.linear import Linear, linear

_OPS = ("MatMul", "Gemm", "Conv")


class PruneWish(Protocol):
    """The options that choose; see ``Prune``."""

    @property
    def n(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def keep(self) -> Collection[str]: ...
    @property
    def op_types(self) -> Collection[str]: ...
    @property
    def ignore(self) -> Collection[str]: ...
    @property
    def min_inputs(self) -> int: ...


def eligible_layers(model: ir.Model, wish: PruneWish, report: PassReport) -> list[Linear]:
    """The layers to prune, in order; each other one is a skip with its reason.

    Raises:
        BadRequest: A selector matches nothing, or m divides the input channels of no layer there is.
    """
    nodes = [n for n in edit.nodes(model) if n.domain == "" and n.op_type in (wish.op_types or _OPS)]
    ignored = {n for s in wish.ignore for n in selectors.match(s, nodes, "prune: option 'ignore'")}
    ends = _ends(model, wish.keep)
    found, uneven, fits = [], 0, 0
    for node in nodes:
        view = linear(node)
        if isinstance(view, str):
            report.skip(node, view)
            continue
        inputs = view.shape[1]
        if node in ignored:
            report.skip(node, "ignored on request")
        elif (why := ends.get(node)) is not None:
            report.skip(node, why)
        elif why := _unfit(view, wish, node.graph is model.graph):
            uneven += inputs > 1 and inputs % wish.m != 0
            report.skip(node, why)
        else:
            found.append(view)
        fits += inputs % wish.m == 0
    if uneven and not fits:
        raise BadRequest(
            f"no layer's input channels are a multiple of {wish.m}", where="prune: option 'm'",
            fix="Choose an m that divides them.",
        )  # fmt: skip
    return found


def _unfit(view: Linear, wish: PruneWish, in_main_graph: bool) -> str | None:
    inputs = view.shape[1]
    if view.groups > 1 and inputs == 1:
        return "a depthwise convolution sums over no channels"
    if inputs % wish.m:
        return f"its {inputs} input channels are no multiple of {wish.m}"
    if inputs < wish.min_inputs:
        return f"it has only {inputs} input channels"
    if SPARSITY in view.node.metadata_props:
        return f"it is pruned to {view.node.metadata_props[SPARSITY]} already"
    if not view.weight_value.is_initializer() or len(view.weight_value.uses()) > 1:
        return "others read its weight as well"
    if wish.method != "magnitude" and not in_main_graph:
        return "it is in a body of If, Loop or Scan, where no input can be observed"
    return None


def _ends(model: ir.Model, keep: Collection[str]) -> dict[ir.Node, str]:
    """Layers of the main graph to be kept: with nothing that holds weights before them, or behind them."""
    found = {}
    if "first" in keep:
        behind: set[ir.Value] = set()
        for node in model.graph:
            after = any(v in behind for v in node.inputs if v is not None)
            if _weighted(node) and not after and isinstance(linear(node), Linear):
                found[node] = "the first layer is kept dense"
            if after or _weighted(node):
                behind.update(node.outputs)
    if "last" in keep:
        before: set[ir.Node] = set()
        for node in reversed(list(model.graph)):
            after = any(u.node in before for v in node.outputs for u in v.uses())
            if _weighted(node) and not after:
                found.setdefault(node, "the last layer is kept dense")
            if after or _weighted(node):
                before.add(node)
    return found


def _weighted(node: ir.Node) -> bool:
    """Whether it holds weights: a layer, or a table of embeddings."""
    if node.domain == "" and node.op_type == "Gather":
        tensor = edit.constant_tensor(node.inputs[0])
        return tensor is not None and len(tensor.shape) > 1 and tensor.dtype.is_floating_point()
    return isinstance(linear(node), Linear)
