"""MatMul and Gemm with weights of 2, 4 or 8 bits in blocks of K: com.microsoft::MatMulNBits.

``accuracy_level`` is always written. It is 4 (activations rounded to int8 by block inside the kernel) where the graph
asked for 8-bit activations, and the target's ``weight_only_accuracy_level`` where it left them float.

Measured on 2 cores with AVX512-VNNI, ONNX Runtime 1.32, K = N = 1024: speed against fp32 MatMul at 1 / 16 / 256 rows.

=====  ==========  ==================  ===================
bits   block size  level 0             level 4
=====  ==========  ==================  ===================
4      32          1.9 / 1.1 / 0.9     2.4 / 1.4 / 0.7
4      128         1.9 / 1.1 / 0.9     2.8 / 1.8 / 1.0
8      128         0.26 / 0.31 / 0.7   1.7 / 1.5 / 1.1
2      64          0.19 / 0.25 / 0.6   2.2 / 1.2 / 0.7
2      128         0.20 / 0.26 / 0.65  2.2 / 1.6 / 1.0
2      16, 256     0.15 to 0.65        the same: no kernel
=====  ==========  ==================  ===================

So in float only 4 bits have a kernel worth using; 8 and 2 bits are left to ``lower_weights``, which restores them to
float once, at load: then they run exactly like fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.backends import canonical
from graphpress.backends.canonical import Matrix, Weight
from graphpress.backends.ort import emit
from graphpress.backends.ort.lowering import LoweringRule
from graphpress.backends.ort.rules.lower_matmul import bias_of
from graphpress.graph import edit
from graphpress.graph.readers import plain_gemm
from graphpress.target import Target

ROUNDS_ACTIVATIONS = 4


@dataclass(frozen=True)
class BlockedCodes:
    """MatMulNBits' layout: uint8 [N, blocks, block * bits / 8], float32 [N, blocks], uint8 [N, blocks * bits / 8].

    ``zero`` is None where every zero point is the default 2 ** (bits - 1).
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None


def _apply(node: ir.Node, target: Target, shared: emit.Shared) -> bool:
    """Lower ``node`` if it is a MatMul or Gemm of a weight with a fitting kernel; whether it was."""
    w, x = canonical.weight(node.inputs[1]), canonical.activation(node.inputs[0])
    if w is None or not plain_gemm(node) or (x is not None and x.kind == "static" and not w.block):
        return False
    rounded = x is not None and x.bits == 8  # codes of fewer bits are not what the kernel rounds to: it gets floats
    level = ROUNDS_ACTIVATIONS if rounded else target.weight_only_accuracy_level
    if w.bits != 4 and level != ROUNDS_ACTIVATIONS:
        return False
    m = canonical.matrix(w, transposed=bool(edit.attribute(node, "transB", 0)))
    block = m and block_size(m, w.bits, level)
    if m is None or not block:
        return False
    source = x.source if x is not None and rounded and x.kind != "static" else node.inputs[0]
    _emit(node, source, w, m, block, level, shared)
    return True


def block_size(m: Matrix, bits: int, level: int) -> int:
    """The largest block with a fast kernel that no scale boundary cuts; 0 where there is none."""
    largest, smallest = (128, 32) if bits == 2 and level == ROUNDS_ACTIVATIONS else (256, 16)
    whole = m.scale.shape[0] == 1  # one scale a column: blocks may run over the end of K, which is padded
    sizes = [s for s in (256, 128, 64, 32, 16) if smallest <= s <= largest and (whole or m.group % s == 0)]
    fitting = [s for s in sizes if m.codes.shape[0] % s == 0]
    return next(iter(fitting or sizes[-1:]), 0) if whole else next(iter(sizes), 0)


def pack(m: Matrix, bits: int, signed: bool, block: int) -> BlockedCodes:
    """Codes in MatMulNBits' layout; signed ones move up by 2 ** (bits - 1). Scales are repeated for smaller blocks."""
    k, n = m.codes.shape
    blocks, middle = -(-k // block), 1 << (bits - 1)
    shift = middle if signed else 0
    codes = np.full((n, blocks * block), shift if signed else 0, np.uint8)
    codes[:, :k] = (m.codes.T.astype(np.int16) + shift).astype(np.uint8)
    repeat = -(-m.group // block)
    scale = np.repeat(m.scale.T, repeat, axis=1)[:, :blocks].astype(np.float32)
    zero = np.repeat(m.zero.T + shift, repeat, axis=1)[:, :blocks].astype(np.uint8)
    packed = pack_bits(codes, bits).reshape(n, blocks, block * bits // 8)
    return BlockedCodes(packed, np.ascontiguousarray(scale), None if (zero == middle).all() else pack_bits(zero, bits))


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """The last axis of uint8 codes packed into whole bytes, low bits first; the end is padded with zeros."""
    per_byte = 8 // bits
    pad = -codes.shape[-1] % per_byte
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, pad)])
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(parts.shape[:-1], np.uint8)
    for i in range(per_byte):
        packed |= parts[..., i] << np.uint8(i * bits)
    return packed


def _emit(
    node: ir.Node, source: ir.Value | None, w: Weight, m: Matrix, block: int, level: int, shared: emit.Shared
) -> None:
    graph, (k, n) = node.graph, m.codes.shape
    assert isinstance(graph, ir.Graph)
    key = (
        "nbits",
        w.value.name,
        w.node.inputs[1].name if w.node.inputs[1] else "",
        block,
        edit.attribute(node, "transB", 0),
    )
    made: list[BlockedCodes] = []

    def packed() -> BlockedCodes:
        if not made:
            made.append(pack(m, w.bits, w.dtype.is_signed(), block))
        return made[0]

    codes = shared.const(graph, (*key, "codes"), f"{w.value.name}_packed", lambda: packed().codes)
    scale = shared.const(graph, (*key, "scale"), f"{w.value.name}_scales", lambda: packed().scale)
    zero = None
    if not _default_zero(w):
        zero = shared.const(graph, (*key, "zero"), f"{w.value.name}_zeros", lambda: _given(packed().zero))
    bias, extra = bias_of(node, n)
    attributes = {"K": k, "N": n, "bits": w.bits, "block_size": block, "accuracy_level": level}
    inputs = [source, codes, scale, zero, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    emit.substitute(node, "MatMulNBits", inputs, attributes, plus=extra)


def _default_zero(w: Weight) -> bool:
    middle = 0 if w.dtype.is_signed() else 1 << (w.bits - 1)
    return bool((w.zero == middle).all())


def _given(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


RULE = LoweringRule(
    "blocked-weights", 30, _apply, ops=("MatMul", "Gemm"), kernels=("MatMulNBits",), modes=("weight", "dynamic")
)
