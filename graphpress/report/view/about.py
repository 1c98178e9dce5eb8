"""What is said of one operator: its schemes, its constants, histograms of weights, ranges around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress import keys
from graphpress.errors import BadRequest
from graphpress.graph import edit, quantized, text
from graphpress.graph.grid import grid_of, is_dequantize, is_quantize
from graphpress.report import tables

_BINS = 48
_MOST = 1 << 16  # elements that a histogram is made of; of larger weights every n-th


def node(of: ir.Node) -> dict[str, Any]:
    """Keys of the page's data; what there is nothing to say of is left out."""
    weights = list(_weights(of))
    notes = of.metadata_props
    numbers = {slot: histogram(_floats(of, slot)) for slot, _ in weights}
    said = {
        "scheme": tables.scheme(notes[keys.SCHEME]) if keys.SCHEME in notes else "",
        "bits": _bits(of, weights),
        "by": notes.get(keys.BY, ""),
        "origin": notes.get(keys.ORIGIN, ""),
        "gives": [text.value(v) for v in of.outputs if v.name],
        "constants": list(_constants(of)),
        "ranges": list(_ranges(of)),
        "histograms": [{"slot": slot, **h} for slot, h in numbers.items() if h is not None],
    }
    return {k: v for k, v in said.items() if v or v == 0}


def histogram(array: np.ndarray | None) -> dict[str, Any] | None:
    """Counts between the smallest and the largest number; None where there is nothing finite to count.

    ``every`` is 1 where all elements were counted, n where every n-th was.
    """
    if array is None or not array.size:
        return None
    every = math.ceil(array.size / _MOST)
    part = array.ravel()[::every].astype(np.float32)
    part = part[np.isfinite(part)]
    if not part.size:
        return None
    counts, edges = np.histogram(part, bins=_BINS)
    return {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1]), "every": every}


def _weights(of: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """(slot, value) of the constants of rank 2 and above that are floats, or stand for some; not of scales."""
    for slot, value in enumerate(of.inputs):
        stored = _stored(value)
        tensor = edit.constant_tensor(stored)
        if value is None or tensor is None or len(tensor.shape) < 2 or not tensor.size:
            continue
        floats = tensor.dtype.is_floating_point() or stored is not value
        if slot == 1 if _packed(of) else floats:
            yield slot, value


def _packed(of: ir.Node) -> bool:
    """Whether its weights stand as ONNX Runtime's kernel for blocks of few bits takes them."""
    return of.domain == "com.microsoft" and of.op_type == "MatMulNBits"


def _floats(of: ir.Node, slot: int) -> np.ndarray | None:
    """The weights in one slot, decoded; None where that is not known."""
    if not _packed(of):
        return quantized.floats(of.inputs[slot])
    packed, scale = (edit.constant(v) for v in of.inputs[1:3])
    bits = int(edit.attribute(of, "bits", 4))
    if packed is None or scale is None or packed.ndim != 3 or 8 % bits:
        return None
    codes, zero = _unpacked(packed, bits), np.asarray(1 << (bits - 1), np.float32)
    given = edit.constant(of.inputs[3]) if len(of.inputs) > 3 else None
    if given is not None:
        rows = given.reshape(packed.shape[0], -1)
        zero = (_unpacked(rows, bits) if given.dtype == np.uint8 else rows)[:, : packed.shape[1], None]
    return (codes.astype(np.float32) - zero) * scale.reshape(*packed.shape[:2], 1)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of bytes that hold several along the last axis, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The constant that a value is, or that it is decoded from."""
    if value is None or edit.is_constant(value):
        return value
    for kind in (quantized.decodes, quantized.encodes):
        made = value.producer() if value is not None else None
        value = made.inputs[0] if kind(made) else value
    return value


def _bits(of: ir.Node, weights: list[tuple[int, ir.Value]]) -> int | None:
    """The lowest width that its schemes name, else that its weights are stored in; None where it has neither."""
    try:
        named = [s.bits for s in keys.schemes(of).values()]
    except BadRequest:
        named = []  # somebody else's
    stored = [t.dtype.bitwidth for _, v in weights if (t := edit.constant_tensor(_stored(v))) is not None]
    stored = [int(edit.attribute(of, "bits", 4))] if _packed(of) else stored
    return min(named or stored, default=None)


def _constants(of: ir.Node) -> Iterator[str]:
    for slot, value in enumerate(of.inputs):
        stored = _stored(value)
        tensor = edit.constant_tensor(stored)
        if tensor is None or stored is None or value is None:
            continue
        made = value.producer()
        decoded = f", decoded by {made.op_type}" if stored is not value and made is not None else ""
        yield f"[{slot}] {text.value(stored)}, {tables.size(tensor.nbytes)}{decoded}"


def _ranges(of: ir.Node) -> Iterator[str]:
    """Of the activations that are quantized around it: what a scale lets through."""
    for slot, value in enumerate(of.inputs):
        made = value.producer() if value is not None else None
        if is_dequantize(made) and not edit.is_constant(made.inputs[0]) and (grid := grid_of(made)) is not None:
            yield f"input {slot}: {grid}"
    if is_quantize(of) and (grid := grid_of(of)) is not None:
        yield f"rounds to {grid}"
    for slot, value in enumerate(of.outputs):
        for reader, _ in value.uses():
            if is_quantize(reader) and not is_quantize(of) and (grid := grid_of(reader)) is not None:
                yield f"output {slot}: {grid}"
                break
