"""``graphpress::ACMPrice(budget, knots, prices) -> price``: what a learner must be worth so that the budget holds.

A table measured on data, read between its entries along straight lines: ``prices`` fall while ``knots``, shares of all
learners, rise to 1. A budget below the first knot counts as that one; from 1 on, every token takes every learner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, no_type_check

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Opset

from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = -1e9  # the price at which every learner is taken
_dialect = Opset(DOMAIN, VERSION)


@script(_dialect, default_opset=op)
@no_type_check  # the script is no Python: mypy takes its attributes for tensors
def ACMPrice(budget, knots, prices):  # noqa: N802
    """The first price, and along each piece below the budget its slope times the part of it that is below."""
    low, high = knots[:-1], knots[1:]
    slope = op.Div(op.Sub(prices[1:], prices[:-1]), op.Sub(high, low))
    below = op.Sub(op.Min(op.Max(budget, low), high), low)
    price = op.Add(op.Squeeze(prices[0:1], [0]), op.ReduceSum(op.Mul(slope, below), keepdims=0))
    return op.Where(op.Less(budget, 1.0), price, op.CastLike(-1e9, price))


def price_at(budget: float, knots: np.ndarray, prices: np.ndarray) -> float:
    """The same in numpy."""
    return EVERY if budget >= 1 else float(np.interp(budget, knots, prices))


def _function() -> ir.Function:
    function = ir.serde.deserialize_function(ACMPrice.to_function_proto())
    for i, node in enumerate(function.all_nodes()):
        node.name = f"n{i}"
    return function


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 3 and None not in node.inputs, "takes three inputs: budget, knots, prices")
    expect(node, len(node.outputs) == 1, "gives one output")
    expect(node, not node.attributes, "takes no attributes")
    for name, value in zip(("budget", "knots", "prices"), node.inputs, strict=True):
        assert value is not None
        expect(node, value.dtype in (None, ir.DataType.FLOAT), f"{name} is float32, not {value.dtype}")
    assert node.inputs[0] is not None
    expect(node, node.inputs[0].shape is None or node.inputs[0].shape.rank() == 0, "budget has no axes")
    knots, prices = (edit.constant(v) for v in node.inputs[1:])
    if knots is not None and prices is not None:
        expect(node, knots.ndim == 1 and knots.shape == prices.shape and len(knots) > 1, "knots and prices are a table")
        expect(node, bool((np.diff(knots) > 0).all()) and float(knots[-1]) == 1.0, "knots rise to 1")
        expect(node, bool(np.isfinite(prices).all() and (np.diff(prices) <= 0).all()), "prices do not rise")


def _kernel() -> Callable[..., Any]:
    import torch

    def acm_price(budget: torch.Tensor, knots: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:
        low, high = knots[:-1], knots[1:]
        slope = (prices[1:] - prices[:-1]) / (high - low)
        price = prices[0] + (slope * (torch.minimum(torch.maximum(budget, low), high) - low)).sum()
        return torch.where(budget < 1, price, torch.full_like(price, EVERY))

    return acm_price


OP = Op("ACMPrice", _function, 18, _verify, _kernel)
