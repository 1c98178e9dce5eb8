"""Backward through an operator without a derivative: an error that names it, instead of torch's that does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from graphpress.errors import Unsupported


class Guard:
    """A hook after each call: an output that no gradient can reach says so when backward comes to it."""

    def __init__(self, model: ir.Model) -> None:
        found = {v.name or "": stop for v in model.graph.outputs if (stop := _stopper(v)) is not None}
        self.where: Mapping[str, str] = found

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.where or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return output
        given = (*pytree.tree_leaves(args), *module.parameters())
        anchor = next((t for t in given if isinstance(t, torch.Tensor) and t.requires_grad), None)
        if anchor is None:
            return output
        where = ", ".join(dict.fromkeys(self.where.values()))
        return pytree.tree_map(lambda y: _Stop.apply(y, anchor, where) if _unreached(y) else y, output)


def _unreached(y: Any) -> bool:
    return isinstance(y, torch.Tensor) and y.is_floating_point() and not y.requires_grad


class _Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, anchor: torch.Tensor, where: str) -> torch.Tensor:
        ctx.where = where
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        fix = "Leave this output out of the loss; through QuantizeLinear, build with quantizers='straight-through'."
        raise Unsupported("the operator has no derivative", where=ctx.where, fix=fix)


def _stopper(output: ir.Value) -> str | None:
    """The nearest node before an output that makes something else than floats of floats."""
    return next((f"node {n.name!r} ({n.op_type})" for n in _before(output) if _stops(n)), None)


def _before(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that a value is computed from, nearest first."""
    pending, seen = [value], set()
    while pending:
        node = pending.pop(0).producer()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += [v for v in node.inputs if v is not None]


def _stops(node: ir.Node) -> bool:
    reads = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
    makes = [v.dtype for v in node.outputs if v.dtype is not None]
    return any(d.is_floating_point() for d in reads) and bool(makes) and not any(d.is_floating_point() for d in makes)
