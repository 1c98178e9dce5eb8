"""Every reader of int8 weights with codes of its own, for a session.

Where ONNX Runtime 1.32 keeps sums of u8 x s8 from saturating (``session.x64quantprecision``) it moves weights to uint8,
and refuses a model in which two products read one weight.
"""

from __future__ import annotations

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.grid import is_dequantize

REFUSED = "Attempt to replace the existing tensor"


def apart(model: ir.Model) -> ir.Model:
    """A copy in which no two nodes of the main graph read one int8 constant; ``model`` where none do. Numbers stay."""
    if not any(_readers(v) > 1 for v in _codes(model)):
        return model
    copy = model.clone()
    for value in list(_codes(copy)):
        for node in [n for n, slot in value.uses() if slot == 0 and is_dequantize(n)]:
            for reader, slot in list(node.outputs[0].uses())[1:]:
                same = {name: a.value for name, a in node.attributes.items()}
                again = edit.new_node(node.op_type, list(node.inputs), same, before=node)
                edit.like(again.outputs[0], node.outputs[0])
                edit.set_input(reader, slot, again.outputs[0])
        for reader, slot in list(value.uses())[1:]:
            graph, held = reader.graph, value.const_value
            assert isinstance(graph, ir.Graph) and held is not None
            edit.set_input(reader, slot, edit.add_const(graph, held.numpy(), f"{value.name}_own"))
    return copy


def _codes(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]


def _readers(value: ir.Value) -> int:
    """Nodes that read it, at once or dequantized."""
    return sum(len(n.outputs[0].uses()) if slot == 0 and is_dequantize(n) else 1 for n, slot in value.uses())
