"""scaled_dot_product_attention for torch's exporter: every form that torch takes, at every opset.

Left to itself, the exporter refuses heads that broadcast, grouped heads of one number and ranks other than 4, and below
opset 23 it averages all values where a mask leaves a query nothing to see; torch gives 0 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

FUSED = 23  # the first opset with an Attention operator
_LEAST = 18  # the exporter's least; it converts what it wrote to an older one


def table(torch: Any, opset: int) -> dict[Any, Callable[..., Any]]:
    """What the exporter is to write for the operator: its ``custom_translation_table``."""
    from onnxscript.function_libs.torch_lib.ops import nn
    from onnxscript.values import Opset

    op = Opset("", max(opset, _LEAST))

    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        q, k, v = query, key, value
        positive = scale is None or scale > 0  # the kernels refuse another
        grouped = enable_gqa and q.shape[-3] != k.shape[-3]
        if opset >= FUSED and positive and max(len(x.shape) for x in (q, k, v)) <= 4:
            return _fused(op, (q, k, v), attn_mask, is_causal, scale, grouped)
        if attn_mask is None and positive and {len(x.shape) for x in (q, k, v)} == {4}:
            return nn.aten_scaled_dot_product_attention(q, k, v, None, 0.0, is_causal, scale, grouped)
        if grouped:
            k, v = (_repeated(op, x, q.shape[-3]) for x in (k, v))
        return _plain(op, q, k, v, attn_mask, is_causal, scale)

    return {torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention}


def _fused(op: Any, qkv: Sequence[Any], mask: Any, causal: bool, scale: float | None, grouped: bool) -> Any:
    """One Attention; axes that are missing come in front, so that a batch without heads becomes heads."""
    rank = max(len(x.shape) for x in qkv)
    sizes = [[1] * (4 - len(x.shape)) + list(x.shape) for x in qkv]
    made = [_unsqueezed(op, x, 4 - len(x.shape)) for x in qkv]
    q, k, v = _spread(op, made, sizes, grouped)
    if mask is not None and mask.shape[-1] == 1 and sizes[1][2] != 1:  # a shorter mask would end before the last key
        mask = op.Expand(mask, op.Concat(op.Constant(value_ints=[1]), _length(op, k, sizes[1][2]), axis=0))
    y, *_ = op.Attention(q, k, v, attn_mask=mask, scale=scale, is_causal=causal)
    return y if rank == 4 else op.Squeeze(y, op.Constant(value_ints=list(range(4 - rank))))


def _unsqueezed(op: Any, x: Any, axes: int) -> Any:
    return op.Unsqueeze(x, op.Constant(value_ints=list(range(axes)))) if axes else x


def _spread(op: Any, made: Sequence[Any], sizes: Sequence[list[Any]], grouped: bool) -> list[Any]:
    """Queries, keys and values of one batch size and number of heads; Attention itself shares a key and value head."""
    batch = next((s[0] for s in sizes if s[0] != 1), 1)
    heads = next((s[1] for s in sizes if s[1] != 1), 1)
    shared = grouped or sizes[1][1] == sizes[2][1] == 1
    found = []
    for x, own in zip(made, sizes, strict=True):
        wanted = [batch, own[1] if shared else heads]
        if own[:2] != wanted:
            parts = [_size(op, made, sizes, axis, wanted[axis]) for axis in (0, 1)]
            x = op.Expand(x, op.Concat(*parts, op.Constant(value_ints=[1, 1]), axis=0))
        found.append(x)
    return found


def _size(op: Any, made: Sequence[Any], sizes: Sequence[list[Any]], axis: int, wanted: Any) -> Any:
    """A size as a tensor [1], read from one that has it where it is not a number."""
    if isinstance(wanted, int):
        return op.Constant(value_ints=[wanted])
    return op.Shape(next(x for x, s in zip(made, sizes, strict=True) if s[axis] == wanted), start=axis, end=axis + 1)


def _length(op: Any, x: Any, known: Any) -> Any:
    return op.Constant(value_ints=[known]) if isinstance(known, int) else op.Shape(x, start=-2, end=-1)


def _repeated(op: Any, x: Any, heads: int) -> Any:
    """Each head of keys or values as often as there are heads of queries for it."""
    rank, own = len(x.shape), x.shape[-3]
    wide = op.Expand(op.Unsqueeze(x, op.Constant(value_ints=[-3])), op.Constant(value_ints=[heads // own, 1, 1]))
    result = op.Reshape(wide, op.Constant(value_ints=[*[0] * (rank - 3), heads, -1, x.shape[-1]]))
    result.shape = ir.Shape([*x.shape[:-3], heads, *x.shape[-2:]])
    return result


def _plain(op: Any, q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float | None) -> Any:
    """The products and the softmax of any rank. What is masked altogether weighs nothing."""

    def number(x: float) -> Any:
        return op.Constant(value=ir.tensor(x, dtype=q.dtype))

    axes = list(range(len(k.shape)))
    turned = op.Transpose(k, perm=[*axes[:-2], axes[-1], axes[-2]])
    scores = op.MatMul(op.Mul(q, number(q.shape[-1] ** -0.5 if scale is None else scale)), turned)
    if causal:
        mask = _causal(op, q, k)
    if mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), v)
    if causal or mask.dtype == ir.DataType.BOOL:
        seen = op.Where(mask, scores, number(float(q.dtype.min)))
        weights = op.Where(mask, op.Softmax(seen, axis=-1), number(0.0))
    else:
        weights = op.Softmax(op.Add(scores, mask), axis=-1)
        weights = op.Where(op.IsNaN(weights), number(0.0), weights)  # of a row of infinities
    return op.MatMul(weights, v)


def _causal(op: Any, q: Any, k: Any) -> Any:
    """Which keys each query sees: as many as queries came before it, and one."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    rows, columns = (op.Squeeze(_length(op, x, x.shape[-2])) for x in (q, k))
    return op.LessOrEqual(
        op.Range(zero, columns, one), op.Unsqueeze(op.Range(zero, rows, one), op.Constant(value_ints=[1]))
    )
