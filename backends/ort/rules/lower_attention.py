"""Causal Attention without the denormal numbers that make it slow.

ONNX Runtime adds the causal mask to the scores; what exp() makes of a masked score is a denormal number, with which
softmax and the product with V compute. Attention over 256 tokens runs 2 to 3 times as long as without a mask, and no
constant mask that is small enough to be fast is right for every score.

Here row i of the scores is shifted by one number, which softmax does not see: ``s'[i,j] = s[i,j] - s[i,i] + FLOOR``.
A token attends to itself, so the largest score of row i is FLOOR or more, and Trilu's zeros in place of the masked ones
weigh at most exp(-FLOOR) of it, whatever the scores are. The shift costs one more column in Q (its value) and K (ones).
Scores are then rounded as numbers of the size of FLOOR, ``s[i,j]`` or ``s[i,i]`` are, whichever is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.graph import edit
from graphpress.target import Fact, Target

# exp(-28) = 7e-13: 80 000 masked tokens together stay below a float's rounding, and scores up to 4 above the token's
# own are still rounded to 1e-6. Denormal numbers come back, slow but right, in rows whose best score is 59 above the
# token's own (19 at most in a trained code model).
FLOOR = 28.0
SHORTEST = 32  # tokens; from here on it was faster than the Attention kernel (16: equal, 1: 7 us slower)
_LARGEST_MASK = -1e30


@dataclass(frozen=True)
class _Sizes:
    """Heads of Q and of K and V, elements of a head of Q and K, and of V; ``flat``: [batch, tokens, heads * head]."""

    heads: int
    kv_heads: int
    head: int
    value: int
    flat: bool


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it is causal self-attention in float32 without a cache; whether it was."""
    if not _is_plain(node) or not _is_causal(node):
        return False
    sizes = _sizes(node)
    scale = float(edit.attribute(node, "scale", sizes.head**-0.5)) if sizes is not None else 0.0
    if sizes is None or scale == 0:
        return False
    q, k, v = (_split_heads(node, slot, sizes, shared) for slot in range(3))
    weights = _weights(node, q, k, sizes, scale, shared)
    if not sizes.flat and sizes.heads == sizes.kv_heads:
        emit.substitute(node, "MatMul", [weights, v], domain="")
        return True
    product = emit.helper_node("MatMul", [weights, v], node)
    _join_heads(node, product, sizes, shared)
    return True


def _is_plain(node: ir.Node) -> bool:
    """Whether there is no cache, no soft cap, no wanted score, no weight, and everything is float32."""
    return (
        len(node.outputs) == 1
        and not any(node.inputs[4:])
        and not edit.attribute(node, "softcap", 0.0)
        and edit.attribute(node, "softmax_precision", 0) in (0, ir.DataType.FLOAT)
        and all(v is not None and v.dtype == ir.DataType.FLOAT for v in node.inputs[:3])
        and all(canonical.weight(v) is None for v in node.inputs[:3])
    )


def _is_causal(node: ir.Node) -> bool:
    """Whether each token sees itself and those before it: by attribute, or by a constant mask."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return edit.attribute(node, "is_causal", 0) == 1
    array = edit.constant(mask)
    if array is None or array.ndim < 2 or array.size != array.shape[-1] * array.shape[-2]:
        return False
    array = array.reshape(array.shape[-2:])
    seen = np.tril(np.ones(array.shape, bool))
    if array.dtype == np.bool_:
        return bool((array == seen).all())
    return bool((array[seen] == 0).all() and (array[~seen] <= _LARGEST_MASK).all())


def _sizes(node: ir.Node) -> _Sizes | None:
    """None unless Q and K are as long as each other, and not known to be short."""
    shapes = [v.shape for v in node.inputs[:3] if v is not None]
    q, k, v = ([] if s is None else list(s) for s in shapes)
    if {len(q), len(k), len(v)} not in ({3}, {4}):
        return None
    flat = len(q) == 3
    heads, kv_heads = (
        (edit.attribute(node, "q_num_heads", 0), edit.attribute(node, "kv_num_heads", 0)) if flat else (q[1], k[1])
    )
    numbers = [n for n in (heads, kv_heads, q[-1], v[-1]) if isinstance(n, int) and n > 0]
    if len(numbers) < 4 or numbers[0] % numbers[1] or not _as_long(q[-2], k[-2]):
        return None
    many, few, width, value = numbers
    return _Sizes(many, few, width // many, value // few, flat) if flat else _Sizes(many, few, width, value, flat)


def _as_long(queries: int | ir.SymbolicDim, keys: int | ir.SymbolicDim) -> bool:
    if isinstance(queries, int):
        return queries == keys and queries >= SHORTEST
    return queries.value is not None and queries == keys


def _split_heads(node: ir.Node, slot: int, sizes: _Sizes, shared: emit.Shared) -> ir.Value:
    """Q, K or V as [batch, heads, tokens, head]; as [batch, kv_heads, q_heads per kv_head (K, V: 1), tokens, head]
    where queries share keys."""
    value = node.inputs[slot]
    assert value is not None
    groups = sizes.heads // sizes.kv_heads
    if sizes.flat:
        shape = [0, 0, sizes.kv_heads if slot else sizes.heads, sizes.value if slot == 2 else sizes.head]
        value = emit.helper_node("Reshape", [value, _shape(node, shape, shared)], node)
        value = emit.helper_node("Transpose", [value], node, {"perm": [0, 2, 1, 3]})
    if sizes.heads == sizes.kv_heads:
        return value
    if slot > 0:
        return emit.helper_node("Unsqueeze", [value, _shape(node, [2], shared)], node)
    return emit.helper_node("Reshape", [value, _shape(node, [0, sizes.kv_heads, groups, -1, sizes.head], shared)], node)


def _join_heads(node: ir.Node, product: ir.Value, sizes: _Sizes, shared: emit.Shared) -> None:
    """Put ``product`` in the place of ``node``, in the layout that Q had."""
    if sizes.heads != sizes.kv_heads:
        shape = _shape(node, [0, sizes.heads, -1, sizes.value], shared)
        if not sizes.flat:
            emit.substitute(node, "Reshape", [product, shape], domain="")
            return
        product = emit.helper_node("Reshape", [product, shape], node)
    rows = emit.helper_node("Transpose", [product], node, {"perm": [0, 2, 1, 3]})
    emit.substitute(node, "Reshape", [rows, _shape(node, [0, 0, sizes.heads * sizes.value], shared)], domain="")


def _weights(node: ir.Node, q: ir.Value, k: ir.Value, sizes: _Sizes, scale: float, shared: emit.Shared) -> ir.Value:
    """softmax(mask(scale * q @ k^T)) over the last axis."""
    last = _shape(node, [-1], shared)
    own = emit.helper_node("ReduceSum", [emit.helper_node("Mul", [q, k], node), last], node, {"keepdims": 0})
    assert isinstance(node.graph, ir.Graph)
    floor = shared.const(node.graph, ("floor", scale), "floor", lambda: np.array(FLOOR / scale, np.float32))
    one = shared.const(node.graph, ("one",), "one", lambda: np.array(1, np.float32))
    shift = emit.helper_node("Unsqueeze", [emit.helper_node("Sub", [floor, own], node), last], node)
    left = emit.helper_node("Concat", [q, shift], node, {"axis": -1})
    right = emit.helper_node("Pad", [k, _shape(node, [0, 1], shared), one, last], node)
    product = {"alpha": scale, "transB": 1}
    scores = _square(node, sizes, emit.helper_node("FusedMatMul", [left, right], node, product, domain=emit.CONTRIB))
    masked = _square(node, sizes, emit.helper_node("Trilu", [scores], node, {"upper": 0}))
    return _square(node, sizes, emit.helper_node("Softmax", [masked], node, {"axis": -1}))


def _square(node: ir.Node, sizes: _Sizes, value: ir.Value) -> ir.Value:
    """``value`` with the shape of the scores: Trilu works in place, in a quarter of the time, if it is known."""
    q = node.inputs[0]
    assert q is not None and q.shape is not None
    groups = sizes.heads // sizes.kv_heads
    heads = [sizes.heads] if groups == 1 else [sizes.kv_heads, groups]
    value.shape = ir.Shape([q.shape[0], *heads, q.shape[-2], q.shape[-2]])
    value.type = q.type
    return value


def _shape(node: ir.Node, numbers: Sequence[int], shared: emit.Shared) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return shared.const(node.graph, ("int64", *numbers), "sizes", lambda: np.array(numbers, np.int64))


RULE = LoweringRule(
    "causal-attention", 60, _apply, ops=("Attention",), kernels=("FusedMatMul",), fact=Fact.SLOW_CAUSAL_MASK
)
