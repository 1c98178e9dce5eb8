"""``graphpress::ACM``: a layer cut into N learners, of which each token takes as many as its gate says.

``ACM(x, gate, gate_bias, price, w1, b1, w2, b2) -> (y, learners)`` with, for one token,

    scores = x gate + gate_bias                      over min_learners..N
    k      = argmax_k (scores_k - price k)           the fewest of equals
    y      = b2 + sum_{j < k} act(x w1_j + b1_j) w2_j

``price`` is what one learner must be worth: k never grows with it, so a model that is given one has a whole curve of
accuracy against work. (Adaptive Computation Modules, Wójcik et al., arXiv:2312.10193; the price is ours.)
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, no_type_check

import onnx_ir as ir

from graphpress.ops import acm_torch
from graphpress.ops.base import DOMAIN, VERSION, Op, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACTIVATIONS = (
    "identity", "relu", "silu", "gelu", "gelu-tanh", "quick-gelu", "relu-squared", "tanh", "sigmoid", "hard-swish",
)  # fmt: skip
INPUTS = ("x", "gate", "gate_bias", "price", "w1", "b1", "w2", "b2")
_RANKS = {"gate": 2, "gate_bias": 1, "price": 0, "w1": 3, "b1": 2, "w2": 3, "b2": 1}


@cache
def _body() -> Any:  # noqa: C901 (a case an activation: functions of a body cannot call others)
    from onnxscript import opset20 as op
    from onnxscript import script
    from onnxscript.values import Opset

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    @no_type_check  # the script is no Python: mypy takes its attributes for tensors
    def ACM(  # noqa: N802, C901
        x, gate, gate_bias, price, w1, b1, w2, b2, activation: str, gated: int, min_learners: int, int8: int
    ):
        """All learners for all tokens, those not taken left out of the sum: the meaning, not the way to compute it."""
        scores = op.Add(op.MatMul(x, gate), gate_bias)
        levels = op.Cast(op.Range(0, op.Squeeze(op.Shape(gate, start=1)), 1), to=1)
        first = op.Constant(value_int=min_learners)
        learners = op.Add(op.ArgMax(op.Sub(scores, op.Mul(levels, price)), axis=-1, keepdims=0), first)
        taken = op.Unsqueeze(learners, [-1])
        kind = op.Constant(value_string=activation)
        x1 = x
        if op.Cast(op.Constant(value_int=int8), to=9):
            x1 = op.Cast(x, to=1)
            s1 = op.Max(op.Div(op.ReduceMax(op.Abs(x1), [-1], keepdims=1), 127.0), 1.1754944e-38)
            x1 = op.Mul(op.Round(op.Div(x1, s1)), s1)
        y = op.Expand(b2, op.Concat(op.Shape(x, end=-1), op.Shape(b2), axis=0))
        for i in range(op.Squeeze(op.Shape(w1, end=1))):
            h = op.Add(op.MatMul(x1, op.Gather(w1, i)), op.Gather(b1, i))
            left = h
            right = h
            if op.Cast(op.Constant(value_int=gated), to=9):  # one result each: onnxscript gives several in any order
                left, _ = op.Split(h, num_outputs=2, axis=-1)
            if op.Cast(op.Constant(value_int=gated), to=9):
                _, right = op.Split(h, num_outputs=2, axis=-1)
            a = left
            if op.Equal(kind, op.Constant(value_string="relu")):
                a = op.Relu(left)
            if op.Equal(kind, op.Constant(value_string="silu")):
                a = op.Mul(left, op.Sigmoid(left))
            if op.Equal(kind, op.Constant(value_string="gelu")):
                a = op.Gelu(left)
            if op.Equal(kind, op.Constant(value_string="gelu-tanh")):
                a = op.Gelu(left, approximate="tanh")
            if op.Equal(kind, op.Constant(value_string="quick-gelu")):
                a = op.Mul(left, op.Sigmoid(op.Mul(left, 1.702)))
            if op.Equal(kind, op.Constant(value_string="relu-squared")):
                a = op.Mul(op.Relu(left), left)
            if op.Equal(kind, op.Constant(value_string="tanh")):
                a = op.Tanh(left)
            if op.Equal(kind, op.Constant(value_string="sigmoid")):
                a = op.Sigmoid(left)
            if op.Equal(kind, op.Constant(value_string="hard-swish")):
                a = op.HardSwish(left)
            if op.Cast(op.Constant(value_int=gated), to=9):
                a = op.Mul(a, right)
            if op.Cast(op.Constant(value_int=int8), to=9):
                s2 = op.Max(op.Div(op.ReduceMax(op.Abs(a), [-1], keepdims=1), 127.0), 1.1754944e-38)
                a = op.Mul(op.Round(op.Div(a, s2)), s2)
            part = op.MatMul(a, op.Gather(w2, i))
            y = op.Add(y, op.Where(op.Less(i, taken), part, 0.0))
        return y, learners

    return ACM.to_function_proto()


def _function() -> ir.Function:
    function = ir.serde.deserialize_function(_body())
    for i, node in enumerate(function.all_nodes()):
        node.name = f"n{i}"  # the script counts anew in each body
    return function


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 8 and None not in node.inputs, f"takes eight inputs: {', '.join(INPUTS)}")
    expect(node, len(node.outputs) == 2, "gives two outputs, y and the learners of each token")
    shapes = {}
    for name, value in zip(INPUTS, node.inputs, strict=True):
        assert value is not None
        expect(node, value.dtype in (None, ir.DataType.FLOAT), f"{name} is float32, not {value.dtype}")
        shape = value.shape
        if name in _RANKS and shape is not None:
            expect(node, shape.rank() == _RANKS[name], f"{name} has {_RANKS[name]} axes, not {shape.rank()}")
            if shape.is_static():
                shapes[name] = tuple(shape.numpy())
    known = {name: attr.value for name, attr in node.attributes.items() if not attr.is_ref()}
    expect(node, set(known) == {"activation", "gated", "min_learners", "int8"}, "takes four attributes")
    expect(node, known["activation"] in ACTIVATIONS, f"activation is one of {', '.join(ACTIVATIONS)}")
    expect(node, known["gated"] in (0, 1) and known["int8"] in (0, 1), "gated and int8 are 0 or 1")
    if len(shapes) == len(_RANKS):
        _verify_shapes(node, shapes, int(known["gated"]), int(known["min_learners"]))


def _verify_shapes(node: ir.Node, shapes: dict[str, tuple[int, ...]], gated: int, least: int) -> None:
    (count, width, inner), (_, hidden, out) = shapes["w1"], shapes["w2"]
    expect(node, count > 0 and 0 <= least <= count, f"min_learners is between 0 and {count}")
    expect(node, inner == hidden * (1 + gated), f"w1 has {hidden * (1 + gated)} columns for a learner, not {inner}")
    wanted = {
        "gate": (width, count + 1 - least), "gate_bias": (count + 1 - least,), "price": (), "w1": (count, width, inner),
        "b1": (count, inner), "w2": (count, hidden, out), "b2": (out,),
    }  # fmt: skip
    for name, shape in wanted.items():
        expect(node, shapes[name] == shape, f"{name} is {list(shape)}, not {list(shapes[name])}")


def _kernel() -> Callable[..., Any]:
    acm_torch.register()
    return acm_torch.acm


def learner_macs(w1: Sequence[int], w2: Sequence[int]) -> int:
    """Multiply-adds of one learner for one token, of weights [learners, in, out]."""
    return math.prod(w1[1:]) + math.prod(w2[1:])


def gate_macs(gate: Sequence[int]) -> int:
    """Multiply-adds of the gate for one token: paid by every token, whatever it takes."""
    return math.prod(gate)


def _macs(node: ir.Node, x: Sequence[int]) -> int:
    """Of a run in which every token takes every learner."""
    shapes = (node.inputs[INPUTS.index(name)] for name in ("gate", "w1", "w2"))
    gate, w1, w2 = (v.shape.numpy() if v is not None and v.shape is not None else (0,) for v in shapes)
    return math.prod(x[:-1]) * (gate_macs(gate) + w1[0] * learner_macs(w1, w2))


OP = Op("ACM", _function, 20, _verify, _kernel, macs=_macs)
