"""Float weights behind Q -> DQ again where integers are stored: what training needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit, quantized
from graphpress.graph.grid import QUANTIZE, Grid, grid_of, is_dequantize
from graphpress.graph.movement import rearranges
from graphpress.keys import QUANTIZER, SCOPE, STORED, note_scaled
from graphpress.ops import dense_packing
from graphpress.passes.quantizers.named import named
from graphpress.types import AFFINE, Numerics, Stage

_BIAS = ir.DataType.INT32
_CENTRE = 128  # the zero point of int8 codes that are stored as uint8


@dataclass(frozen=True)
class UnfoldWeights(Pass):
    """Undo fold-weights and fold-bias: codes become the floats that they stand for, behind Q -> DQ on the same grid.

    Quantizing these gives the stored codes back, so nothing changes but what can be trained: a weight behind its Q, and
    a bias, which is a plain float again (its step follows from the scales of input and weight when it is folded the
    next time). uint8 codes around 128 become int8 around 0. A weight is called ``<module path>.weight``, or after the
    node that reads it.
    """

    name = "unfold-weights"
    numerics = Numerics.EXACT
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        unfold(model, report)


def unfold(model: ir.Model, report: PassReport) -> None:
    """What the pass does; what stays as codes is skipped with the reason."""
    edit.index(model)
    dense_packing.unpack(model)
    for scope in list(edit.graphs(model)):
        for codes in list(scope.initializers.values()) if isinstance(scope, ir.Graph) else ():
            decoders = _decoders(codes)
            if not decoders or not isinstance(scope, ir.Graph):
                continue
            why = _bias(scope, codes, decoders) if codes.dtype == _BIAS else _weight(scope, codes, decoders)
            if why:
                report.skip(decoders[0], why)
            else:
                report.changed += 1


def _decoders(codes: ir.Value) -> list[ir.Node]:
    """What gives numbers of stored codes in the end: behind a move or a lookup too; nothing where others read them."""
    found, pending = [], [codes] if codes.dtype is not None and edit.is_constant(codes) else []
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return []
        for node, slot in value.uses():
            if slot == 0 and quantized.decodes(node):
                found.append(node)
            elif slot == 0 and (rearranges(node) or (node.op_type == "Gather" and not node.domain)):
                pending += node.outputs
            else:
                return []
    return found


def _bias(scope: ir.Graph, codes: ir.Value, decoders: list[ir.Node]) -> str | None:
    """None when done, else why not."""
    arrays = [quantized.decoded(node) for node in decoders]
    if any(array is None for array in arrays):
        return "the scale of its codes is computed at run time"
    for node, array in zip(decoders, arrays, strict=True):
        assert array is not None
        value = _named(scope, array, node, "bias")
        _retire(node, value)
    edit.remove_unused([codes])
    return None


def _retire(node: ir.Node, by: ir.Value) -> None:
    edit.replace(node.outputs[0], by)
    edit.remove_unused(node.outputs)


def _weight(scope: ir.Graph, codes: ir.Value, decoders: list[ir.Node]) -> str | None:
    """None when done, else why not."""
    grids = [grid_of(node) if is_dequantize(node) else None for node in decoders]
    first = grids[0]
    if first is None or any(grid != first for grid in grids) or not _by_q(decoders[0]):
        return "its codes are of no even steps, or several grids read them"
    moved = any(node.inputs[0] is not codes for node in decoders)
    if moved and first.axis is not None:
        return "its codes are moved before they are decoded, and have a scale for each channel"
    stored = edit.constant(codes)
    assert stored is not None
    floats = first.dequantize(stored).astype(first.scale.dtype)
    if not np.array_equal(first.quantize(floats), stored):
        return "its scale is too small or too coarse: rounding would not give the same codes"
    source = _named(scope, floats, decoders[0], "weight")
    encode = _encode(scope, source, decoders, first, centred=not moved)
    encode.outputs[0].shape = codes.shape
    for user, slot in list(codes.uses()):
        user.replace_input_with(slot, encode.outputs[0])
    edit.remove_unused([codes])
    return None


def _by_q(decoder: ir.Node) -> bool:
    """Whether QuantizeLinear gives the codes that a node decodes."""
    return named(decoder.metadata_props.get(QUANTIZER, AFFINE)).encode.op is None


def _encode(scope: ir.Graph, source: ir.Value, decoders: list[ir.Node], grid: Grid, *, centred: bool) -> ir.Node:
    """A Q of the decoders' parameters: they get a zero point if they had none, if ``centred`` one of int8 for 128."""
    zero, dtype = grid.zero, grid.dtype
    given = grid.values[1]
    if centred and dtype == ir.DataType.UINT8 and np.all(zero == _CENTRE):
        zero, dtype, given = np.zeros(zero.shape, np.int8), ir.DataType.INT8, None
        for node in decoders:
            for reader, _ in quantized.readers(node.outputs[0]):
                reader.metadata_props.pop(STORED, None)
    if given is None:
        given = edit.add_const(scope, ir.Tensor(zero, dtype=dtype), f"{source.name}_zero_point")
        for node in decoders:
            old = node.inputs[2] if len(node.inputs) > 2 else None
            node.resize_inputs(3)
            node.replace_input_with(2, given)
            edit.remove_unused([old])
    attributes = {n: decoders[0].attributes[n].value for n in ("axis", "block_size") if n in decoders[0].attributes}
    inputs = [source, decoders[0].inputs[quantized.SCALE], given]
    node = edit.new_node(QUANTIZE, inputs, attributes, before=scope[0], origin=decoders[0])
    node.outputs[0].type = ir.TensorType(dtype)
    return node


def _named(scope: ir.Graph, array: np.ndarray, decoder: ir.Node, part: str) -> ir.Value:
    """An initializer, noted as not the source's parameter of its name: it is rounded, and lies as the graph has it."""
    reader = next((node for node, _ in quantized.readers(decoder.outputs[0])), decoder)
    value = edit.add_const(scope, ir.Tensor(array), f"{reader.metadata_props.get(SCOPE) or reader.name}.{part}")
    note_scaled(value)
    return value
