"""Ranges found at run time that pass gradients on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.quantized import Activation, activation
from graphpress.ops import dynamic_quantize_token


def pass_on(model: ir.Model) -> int:
    """Let the rounding error of each token grow with its step; how many values there are.

    ``y = x + (q - x) s / s`` of the value q that x is rounded to: the function stays, but where rounding passes
    gradients straight and holds its own step s fixed, dy becomes dx + (q - x) / s ds. A smaller range is worth
    something then, as for learned steps (arXiv:1902.08153).
    """
    found = [a for node in model.graph if (a := activation(node.outputs[0])) is not None and a.kind == "token"]
    found = [a for a in found if a.source.dtype is ir.DataType.FLOAT]
    for one in found:
        _grow(one)
    return len(found)


def _grow(one: Activation) -> None:
    maker, x = one.codes.producer(), one.source
    last = next(u.node for u in one.scale.uses() if u.node.op_type == "Mul")
    rounded, graph = last.outputs[0], last.graph
    assert maker is not None and isinstance(graph, ir.Graph)

    def made(op: str, *inputs: ir.Value | np.ndarray, shaped: ir.Value = x) -> ir.Value:
        nonlocal last
        held = [v if isinstance(v, ir.Value) else edit.add_const(graph, v, "range") for v in inputs]
        last = edit.new_node(op, held, after=last)
        return edit.like(last.outputs[0], shaped)

    steps = dynamic_quantize_token.steps(dynamic_quantize_token.bits_of(maker))
    most = made("ReduceMax", made("Abs", x), np.array([-1], np.int64), shaped=one.scale)
    step = made("Div", most, np.array(steps, np.float32), shaped=one.scale)
    step = made("Max", step, np.array(np.finfo(np.float32).tiny), shaped=one.scale)
    ratio = made("Div", step, one.scale, shaped=one.scale)
    wrong = made("Sub", rounded, x)
    result = made("Add", x, made("Mul", wrong, ratio))
    for node, slot in [(u.node, u.idx) for u in rounded.uses() if u.node is not wrong.producer()]:
        edit.set_input(node, slot, result)
