"""MatMul and Gemm of 8-bit codes on both sides: one integer product, floats out. For activations quantized at run time,
for those whose one scale goes by a step, and for static ones where ONNX Runtime would not find the kernel by itself.

``x`` behind DynamicQuantizeLinear keeps that node, so that several readers of one ``x`` quantize it once; ONNX Runtime
merges it into DynamicQuantizeMatMul where it has one reader. Codes by token are made unsigned (zero point 128, the same
numbers): on x86 the signed product ran 11 times slower than the unsigned one at 256 x 1024 x 1024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Activation, Weight
from graphpress.backends.ort import emit, moved_codes
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit, quantized
from graphpress.graph.grid import is_quantize
from graphpress.graph.quantized import Expanded
from graphpress.graph.readers import plain_gemm
from graphpress.keys import SPARSITY
from graphpress.ops import dynamic_quantize_token
from graphpress.target import Target


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it is a MatMul or Gemm of a run-time quantized activation; whether it was."""
    x = canonical.activation(node.inputs[0]) or _of_one_step(node.inputs[0])
    if x is None or (x.kind == "static" and not _gives_floats_to_an_add(node)) or not plain_gemm(node):
        return False
    right = canonical.weight(node.inputs[1]) or quantized.expanded(node.inputs[1])
    if right is None and x.kind == "static":
        return False
    if right is not None:
        return _constant(node, x, right, target, shared)
    y = canonical.activation(node.inputs[1]) or _of_one_step(node.inputs[1])
    if y is None or not {x.kind, y.kind} <= {"dynamic", "step"} or node.op_type == "Gemm":
        return False
    emit.substitute(
        node, "MatMulIntegerToFloat", [x.codes, y.codes, x.scale, y.scale, x.zero, y.zero], domain=emit.CONTRIB
    )
    return True


def _of_one_step(value: ir.Value | None) -> Activation | None:
    """An activation whose one scale goes by the step of the model; none where samples have steps of their own."""
    x = canonical.by_step(value)
    return x if x is not None and x.scale.shape is not None and not len(x.scale.shape) else None


def _gives_floats_to_an_add(node: ir.Node) -> bool:
    """Whether something is added to a MatMul's floats: ONNX Runtime makes one float Gemm of the two before it looks for
    integer kernels, and dequantizes the weight in every run. Static products of other forms it finds by itself."""
    users = list(node.outputs[0].uses())
    if node.op_type != "MatMul" or len(users) != 1 or users[0].node.op_type != "Add" or users[0].node.domain != "":
        return False
    add = users[0].node
    quantized = any(is_quantize(u.node) for u in add.outputs[0].uses())
    return not (quantized and edit.is_constant(add.inputs[1 - users[0].idx]))  # that one becomes a QGemm


def bias_of(node: ir.Node, columns: int) -> tuple[ir.Value | None, ir.Value | None]:
    """(the bias that a kernel can take, what must be added after it)."""
    if node.op_type == "MatMul":
        return emit.absorb_bias(node, columns), None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias, fits = emit.one_dimensional(node, given, columns)
    return (bias, None) if fits else (None, bias)


def _constant(node: ir.Node, x: Activation, w: Weight, target: Target, shared: emit.Shared) -> bool:
    transposed = bool(edit.attribute(node, "transB", 0))
    m = None if w.block else canonical.matrix(w, transposed=transposed)
    if m is None:
        return False
    assert isinstance(node.graph, ir.Graph)
    if moved := moved_codes.overflows(w, target):
        moved_codes.note(node, target)
    codes = _codes(node, w, shared, transposed=transposed, moved=moved)
    key = (w.value.name, w.node.inputs[1].name if w.node.inputs[1] else "")
    scale = shared.const(node.graph, ("scale", *key), f"{w.value.name}_scale", lambda: _small(m.scale))
    zero = None
    if moved:
        zero = shared.const(
            node.graph, ("zero", *key), f"{w.value.name}_zero", lambda: moved_codes.moved(_small(m.zero))
        )
    elif not w.symmetric:
        storage = np.int8 if w.dtype.is_signed() else np.uint8
        zero = shared.const(node.graph, ("zero", *key), f"{w.value.name}_zero", lambda: _small(m.zero).astype(storage))
    bias, extra = bias_of(node, m.codes.shape[1])
    if x.kind == "token":
        _by_token(node, x, [codes, scale, zero], bias or extra, shared)
    else:
        inputs = [x.codes, codes, x.scale, scale, x.zero, zero, bias]
        emit.substitute(node, "MatMulIntegerToFloat", inputs, domain=emit.CONTRIB, plus=extra)
    return True


def _small(per_column: np.ndarray) -> np.ndarray:
    """[1, N] as [N], or as a scalar where all columns agree."""
    row = per_column.reshape(-1)
    return row[0].reshape(()) if (row == row[0]).all() else row


def _codes(node: ir.Node, w: Weight, shared: emit.Shared, *, transposed: bool, moved: bool) -> ir.Value:
    """The codes as [K, N]; below 8 bits they stay packed in the file and ONNX Runtime widens them once, at load."""
    assert isinstance(node.graph, ir.Graph)
    value = w.value
    if moved and SPARSITY in node.metadata_props:
        return emit.moved_at_load(node, _codes(node, w, shared, transposed=transposed, moved=False))
    if moved:
        key = ("unsigned", transposed, w.value.name)
        right = w.codes.T if transposed else w.codes
        return shared.const(node.graph, key, f"{w.value.name}_unsigned", lambda: moved_codes.moved(right))
    if isinstance(w, Expanded):
        value = emit.looked_up(node, w, shared)
        return emit.helper_node("Transpose", [value], node, {"perm": [1, 0]}) if transposed else value
    if transposed:
        value = shared.const(
            node.graph, ("transposed", w.value.name), f"{w.value.name}_T", lambda: np.ascontiguousarray(w.codes.T)
        )
    elif not value.is_initializer():
        value = shared.const(node.graph, ("lifted", w.value.name), f"{w.value.name}_codes", lambda: w.codes)
    return value if w.bits == 8 else emit.widened(node, value)


def _by_token(
    node: ir.Node, x: Activation, right: list[ir.Value | None], bias: ir.Value | None, shared: emit.Shared
) -> None:
    b, scale, zero = right
    op = x.scale.producer()
    assert op is not None
    t = shared.once(("token", op.name), lambda: _unsigned_token(op, x))
    product = emit.helper_node(
        "MatMulIntegerToFloat", [t.codes, b, t.one, scale, t.middle, zero], node, domain=emit.CONTRIB
    )
    emit.substitute(node, "Mul", [product, t.scale], domain="", plus=bias)


@dataclass(frozen=True)
class _Token:
    codes: ir.Value
    scale: ir.Value
    one: ir.Value
    middle: ir.Value


def _unsigned_token(op: ir.Node, x: Activation) -> _Token:
    """What the body of the dialect op computes, with 128 added to its codes; the op goes when nobody reads it more."""
    graph = op.graph
    assert isinstance(graph, ir.Graph)
    steps, top = np.float32(dynamic_quantize_token.steps(x.bits)), np.float32(2 ** (x.bits - 1) - 1)
    numbers = _NUMBERS | {"largest_code": steps}
    one, middle, smallest, rows, largest_code = (edit.add_const(graph, np.array(v), n) for n, v in numbers.items())
    magnitude = emit.helper_node("Abs", [x.source], op)
    largest = emit.helper_node("ReduceMax", [magnitude, rows], op, {"keepdims": 1})
    raw = emit.helper_node("Div", [largest, largest_code], op)
    scale = edit.like(emit.helper_node("Max", [raw, smallest], op), x.scale)
    ratio = emit.helper_node("Div", [x.source, scale], op)
    if x.bits < 8:
        ratio = emit.helper_node("Min", [ratio, edit.add_const(graph, np.array(top), "top")], op)
    codes = emit.helper_node("QuantizeLinear", [ratio, one, middle], op)
    return _Token(edit.like(codes, x.source, ir.DataType.UINT8), scale, one, middle)


_NUMBERS = {
    "one": np.float32(1),
    "middle": np.uint8(128),
    "smallest_scale": np.finfo(np.float32).tiny,
    "rows": np.array([-1]),
}


RULE = LoweringRule(
    "integer-product", 20, _apply, ops=("MatMul", "Gemm"), kernels=("MatMulIntegerToFloat",), modes=("dynamic",)
)
