"""Weights that no low-bit kernel reads as they are stored. The file keeps their packed codes in every form.

- In front of a static integer kernel, codes of 4 or 2 bits are widened to int8: Cast, and Sub of the zero points where
  there are any, folded once by ONNX Runtime, at load, then DequantizeLinear. QLinearConv, QLinearMatMul and QGemm then
  run on the widened codes.
- Everywhere else they are restored, folded once at load: Cast to float, Sub the zero points (cast likewise), Mul scale.
  A DequantizeLinear there would be computed in every run, or become a MatMulNBits that rounds activations. Small floats
  always are restored.
- Between static codes, but with scales that the kernel does not take (groups, another axis), or where there is no
  kernel, the restored ones are set apart by a Clip: ONNX Runtime 1.32 rounds a float weight between DequantizeLinear
  and QuantizeLinear to int8 by itself, with one scale for all channels.
- Codes of other formats that stand for 8-bit integers are looked up in front of a static integer kernel (Gather); else,
  the body of what decodes them is left, and folded at load.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Weight
from graphpress.backends.ort import emit, moved_codes
from graphpress.backends.ort.groups import matching, quantizers
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit, quantized
from graphpress.graph.grid import is_dequantize
from graphpress.graph.quantized import Expanded
from graphpress.keys import SPARSITY
from graphpress.target import Fact, Target


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower the weights that ``node`` reads; whether there were any to lower."""
    if quantized.encodes(node) or quantized.decodes(node):
        return False
    return sum(_slot(node, i, target, shared) for i in range(len(node.inputs))) > 0  # all of them


def _slot(node: ir.Node, slot: int, target: Target, shared: emit.Shared) -> bool:
    """Lower the weight in one input; whether there was one to lower."""
    value = node.inputs[slot]
    w = canonical.weight(value) or quantized.expanded(value) or quantized.small_floats(value)
    apart = _between_static(node, target) and Fact.ROUNDS_FLOAT_WEIGHTS in target.facts
    if w is None:
        if apart and quantized.stored(value):
            _set_apart(node)
        return False
    make = _form(node, slot, w, target)
    if make is None:
        return False
    if make is _restored and apart:
        _set_apart(node)
    if make is _restored and isinstance(w, Expanded):
        return False  # the body of what decodes it is folded at load
    if make in (_unsigned_weight, _narrowed_weight):
        moved_codes.note(node, target)
    edit.set_input(node, slot, make(node, w, shared))
    edit.remove_unused([value])
    return True


def _form(node: ir.Node, slot: int, w: Weight, target: Target) -> Callable[..., ir.Value] | None:
    """What makes of a weight what the target runs best; None where it may stay."""
    if w.dtype.is_floating_point() or not (_between_static(node, target) and _fits(node, slot, w, target)):
        return _restored if Fact.DEQUANTIZES_IN_EVERY_RUN in target.facts else None
    if moved_codes.overflows(w, target) and not _depthwise(node, w):
        return _unsigned_weight if Fact.MULTIPLIES_UNSIGNED_EXACTLY in target.facts else _narrowed_weight
    return None if w.bits == 8 and not isinstance(w, Expanded) else _widened_weight


def _between_static(node: ir.Node, target: Target) -> bool:
    """Whether a static activation goes in and a quantized one comes out, where the kernel cannot do without."""
    x = canonical.activation(node.inputs[0])
    if x is None or x.kind != "static":
        return False
    optional = any(c.output == "optional" for c in target.find(node.op_type, "static"))
    return optional or any(quantizers(v) for v in node.outputs)


def _fits(node: ir.Node, slot: int, w: Weight, target: Target) -> bool:
    """Whether a static kernel takes the scales of this weight."""
    axes = {c.weight_axis for c in matching(node, target) if slot in c.weight_slots}
    rank = len(w.value.shape or ())
    return bool(axes) and not w.block and (w.axis is None or w.axis in {a % rank for a in axes if a is not None})


def _depthwise(site: ir.Node, w: Weight) -> bool:
    """Whether each channel has a kernel of its own: ONNX Runtime adds those products in 32 bits, always."""
    return (
        site.op_type == "Conv" and int(edit.attribute(site, "group", 1)) == w.codes.shape[0] and w.codes.shape[1] == 1
    )


def _set_apart(site: ir.Node) -> None:
    """Put a Clip without bounds, which nothing removes, between the codes and what computes with them in float."""
    x = site.inputs[0]
    if x is not None and is_dequantize(x.producer()):
        edit.set_input(site, 0, edit.like(emit.helper_node("Clip", [x], site), x))


def _unsigned_weight(site: ir.Node, w: Weight, shared: emit.Shared) -> ir.Value:
    graph, name = site.graph, w.value.name
    assert isinstance(graph, ir.Graph)
    if SPARSITY in site.metadata_props and w.value.is_initializer():
        codes = emit.moved_at_load(site, w.value)
    else:
        codes = shared.const(graph, ("unsigned", name), f"{name}_unsigned", lambda: moved_codes.moved(w.codes))
    zero = edit.add_const(graph, moved_codes.moved(w.zero), f"{name}_middle")
    attributes = {} if w.axis is None else {"axis": w.axis}
    scale = edit.add_const(graph, w.scale, f"{name}_scale") if isinstance(w, Expanded) else w.node.inputs[1]
    out = emit.helper_node("DequantizeLinear", [codes, scale, zero], site, attributes)
    return edit.like(out, w.node.outputs[0])


def _narrowed_weight(site: ir.Node, w: Weight, shared: emit.Shared) -> ir.Value:
    graph, name = site.graph, w.value.name
    assert isinstance(graph, ir.Graph)
    made = shared.once(
        ("narrow", id(graph), w.node.name), lambda: moved_codes.narrowed(w.codes, w.zero, w.scale, w.axis)
    )
    codes, scale = (edit.add_const(graph, a, f"{name}_narrow") for a in made)
    attributes = {} if w.axis is None else {"axis": w.axis}
    return edit.like(emit.helper_node("DequantizeLinear", [codes, scale], site, attributes), w.node.outputs[0])


def _widened_weight(site: ir.Node, w: Weight, shared: emit.Shared) -> ir.Value:
    graph = site.graph
    assert isinstance(graph, ir.Graph)
    scale = w.node.inputs[1]
    if isinstance(w, Expanded):
        codes, scale = emit.looked_up(site, w, shared), edit.add_const(graph, w.scale, f"{w.value.name}_scale")
    else:
        codes = emit.widened(site, w.value) if w.symmetric else _centred(site, w)
    assert codes.dtype is not None
    none = edit.add_const(graph, np.zeros(w.zero.shape, codes.dtype.numpy()), f"{w.value.name}_none")
    attributes = {} if w.axis is None else {"axis": w.axis}
    out = emit.helper_node("DequantizeLinear", [codes, scale, none], site, attributes)
    return edit.like(out, w.node.outputs[0])


def _centred(site: ir.Node, w: Weight) -> ir.Value:
    """Codes less their zero points: int8 below 8 bits, which kernels read much faster than codes beside zero points."""
    wide = [emit.helper_node("Cast", [v], site, {"to": ir.DataType.INT32}) for v in (w.value, _zero(site, w))]
    codes = emit.helper_node("Cast", [emit.helper_node("Sub", wide, site)], site, {"to": ir.DataType.INT8})
    return edit.like(codes, w.value, ir.DataType.INT8)


def _zero(site: ir.Node, w: Weight) -> ir.Value:
    """The zero points, stored as narrow as the codes, in a shape that broadcasts over them."""
    graph = site.graph
    assert isinstance(graph, ir.Graph)
    return edit.add_const(graph, w.zero.astype(w.codes.dtype).reshape(_shapes(w)[0]), f"{w.value.name}_zero")


def _restored(site: ir.Node, w: Weight, shared: emit.Shared) -> ir.Value:
    graph = site.graph
    assert isinstance(graph, ir.Graph)
    shape, grouped = _shapes(w)
    codes = w.value
    if w.block:
        codes = shared.const(
            graph, ("grouped", codes.name), f"{codes.name}_grouped", lambda: _filled(w).reshape(grouped)
        )
    value = emit.helper_node("Cast", [codes], site, {"to": ir.DataType.FLOAT})
    if not w.symmetric:
        zero = emit.helper_node("Cast", [_zero(site, w)], site, {"to": ir.DataType.FLOAT})
        value = emit.helper_node("Sub", [value, zero], site)
    scale = edit.add_const(graph, w.scale.reshape(shape), f"{w.value.name}_scale")
    value = emit.helper_node("Mul", [value, scale], site)
    if w.block:
        value = _ungrouped(site, value, w)
    value.shape, value.type = ir.Shape(w.codes.shape), ir.TensorType(ir.DataType.FLOAT)
    return value


def _filled(w: Weight) -> np.ndarray:
    """The codes, their last group filled up."""
    assert w.axis is not None
    missing = w.scale.shape[w.axis] * w.block - w.codes.shape[w.axis]
    fill = (*w.codes.shape[: w.axis], missing, *w.codes.shape[w.axis + 1 :])
    return np.concatenate([w.codes, np.zeros(fill, w.codes.dtype)], axis=w.axis) if missing else w.codes


def _ungrouped(site: ir.Node, value: ir.Value, w: Weight) -> ir.Value:
    """Groups joined again, and what filled up the last one cut off."""
    graph, axis = site.graph, w.axis
    assert isinstance(graph, ir.Graph) and axis is not None
    size = w.scale.shape[axis] * w.block
    filled = (*w.codes.shape[:axis], size, *w.codes.shape[axis + 1 :])
    value = emit.helper_node("Reshape", [value, edit.add_const(graph, np.array(filled, np.int64), "shape")], site)
    if size == w.codes.shape[axis]:
        return value
    bounds = [edit.add_const(graph, np.array([n], np.int64), "bound") for n in (0, w.codes.shape[axis], axis)]
    return emit.helper_node("Slice", [value, *bounds], site)


def _shapes(w: Weight) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape of the scale that broadcasts over the codes, shape of the codes with an axis for the groups)."""
    full, axis = w.codes.shape, w.axis
    if axis is None:
        return (), full
    if not w.block:
        return tuple(d if i == axis else 1 for i, d in enumerate(full)), full
    groups = w.scale.shape[axis]
    scale = (*w.scale.shape[: axis + 1], 1, *w.scale.shape[axis + 1 :])
    return scale, (*full[:axis], groups, w.block, *full[axis + 1 :])


RULE = LoweringRule("stored-weights", 80, _apply)  # standard ONNX
