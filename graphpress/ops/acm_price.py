"""``graphpress::ACMPrice(budget, knots, prices) -> price``: what a learner must be worth so that the budget holds.

A table measured on data, read between its entries along straight lines: ``prices`` fall while ``knots``, shares of all
learners, rise to 1. A budget below the first knot counts as that one, and so does one that is no number; from 1 on,
every token takes every learner.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, no_type_check

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = -1e9  # the price at which every learner is taken


def price_at(budget: float, knots: np.ndarray, prices: np.ndarray) -> float:
    """The same in numpy."""
    return EVERY if budget >= 1 else float(np.interp(budget if budget > 0 else 0.0, knots, prices))


@cache
def _body() -> Any:
    """As a protobuf; onnxscript is slow to load."""
    from onnxscript import opset18 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    @no_type_check  # the script is no Python: mypy takes its attributes for tensors
    def ACMPrice(budget, knots, prices):  # noqa: N802
        """Each price by its weight: what lies of the budget between its knot and the next, of which all but two are 0."""  # noqa: E501
        wanted = op.Where(op.Greater(budget, 0.0), budget, op.CastLike(0.0, budget))  # 0 for NaN
        low, high = knots[:-1], knots[1:]
        passed = op.Div(op.Sub(op.Min(op.Max(wanted, low), high), low), op.Sub(high, low))
        every = op.CastLike(op.Constant(value_floats=[1.0]), prices)
        none = op.CastLike(op.Constant(value_floats=[0.0]), prices)
        weight = op.Sub(op.Concat(every, passed, axis=0), op.Concat(passed, none, axis=0))
        price = op.ReduceSum(op.Mul(prices, weight), keepdims=0)
        return op.Where(op.GreaterOrEqual(budget, 1.0), op.CastLike(-1e9, price), price)

    return ACMPrice.to_function_proto()


def _function() -> ir.Function:
    function = ir.serde.deserialize_function(_body())
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
        wanted = torch.where(budget > 0, budget, torch.zeros_like(budget))
        passed = (torch.minimum(torch.maximum(wanted, low), high) - low) / (high - low)
        every, none = torch.ones_like(prices[:1]), torch.zeros_like(prices[:1])
        price = (prices * (torch.cat([every, passed]) - torch.cat([passed, none]))).sum()
        return torch.where(budget >= 1, torch.full_like(price, EVERY), price)

    return acm_price


OP = Op("ACMPrice", _function, 18, _verify, _kernel)
