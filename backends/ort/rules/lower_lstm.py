"""LSTM with int8 weights and an input quantized at run time: com.microsoft::DynamicQuantizeLSTM.

Its weights lie transposed, [directions, input, 4 * hidden]; it quantizes input and hidden state in every step. GRU and
RNN have no such kernel, and an LSTM whose input was left float keeps it: their weights are restored.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Weight
from graphpress.backends.ort import emit, moved_codes
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.target import Target

_OPTIONAL = range(3, 8)  # B, sequence_lens, initial_h, initial_c, P: the same slots in both operators


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it is an LSTM whose input and both weights are quantized; whether it was."""
    x, w, r = canonical.activation(node.inputs[0]), canonical.weight(node.inputs[1]), canonical.weight(node.inputs[2])
    if x is None or x.kind != "dynamic" or not _fits(w) or not _fits(r) or edit.attribute(node, "layout", 0):
        return False
    assert w is not None and r is not None
    inputs: list[ir.Value | None] = [x.source]
    constants = [_constants(node, v, target, shared) for v in (w, r)]
    inputs += [c[0] for c in constants]
    inputs += [node.inputs[i] if i < len(node.inputs) else None for i in _OPTIONAL]
    inputs += [v for c in constants for v in c[1:]]
    kept = {k: a.value for k, a in node.attributes.items() if k != "layout"}
    emit.substitute(node, "DynamicQuantizeLSTM", inputs, kept)
    return True


def _fits(w: Weight | None) -> bool:
    return w is not None and w.bits == 8 and not w.block and w.axis in (None, 1)


def _constants(node: ir.Node, w: Weight, target: Target, shared: emit.Shared) -> list[ir.Value]:
    graph, name = node.graph, w.value.name
    assert isinstance(graph, ir.Graph)
    directions, gates, _ = w.codes.shape
    wide = (directions,) if w.axis is None else (directions, gates)

    def spread(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array.reshape(-1), wide).copy()

    codes, zero = w.codes, w.zero.astype(w.codes.dtype)
    if moved_codes.overflows(w, target):
        codes, zero = moved_codes.moved(codes), moved_codes.moved(zero)
        moved_codes.note(node, target)
    return [
        shared.const(graph, ("lstm", name), f"{name}_T", lambda: np.ascontiguousarray(codes.transpose(0, 2, 1))),
        shared.const(graph, ("lstm scale", name), f"{name}_scale", lambda: spread(w.scale)),
        shared.const(graph, ("lstm zero", name), f"{name}_zero", lambda: spread(zero)),
    ]


RULE = LoweringRule("integer-lstm", 40, _apply, ops=("LSTM",), kernels=("DynamicQuantizeLSTM",), modes=("dynamic",))
