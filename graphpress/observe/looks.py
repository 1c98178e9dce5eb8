"""What wrong data looks like: the likely mistake, in words, and the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

_TARGETS = ("y", "label", "target", "targets", "classes", "y_true", "gt")
_LOUD = 16.0  # a first layer on inputs near 1 answers with about 1, on raw pixels with 40 to 200
_PATCHES = 64


def labels(name: str, shape: Sequence[int], dtype: np.dtype) -> str:
    """The way out for an array that is no input and looks like labels; "" where it does not."""
    whole = dtype.kind in "biu" and len(shape) == 1
    if not whole and name.lower() not in _TARGETS:
        return ""
    return "It looks like labels: call it 'labels', or leave it out."


def renamed(inputs: Collection[str], arrays: Collection[str]) -> str:
    """The way out for an array that is no input where a single one has none; "" elsewhere."""
    without = [name for name in inputs if name not in arrays]
    return f"Call it {without[0]!r}, as the model does." if len(without) == 1 else ""


def shape(found: tuple[int, ...], wanted: Sequence[int | None]) -> str:
    """The way out for an array whose axes stand in another order, or that has no axis of samples; "" otherwise."""
    if _fits(found, wanted[1:]):
        return "It looks like one sample without the axis of samples: array[None]."
    rank = len(found)
    if rank < 3 or len(wanted) != rank:
        return ""
    last, first = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
    for order, has, takes in ((last, "last", "first"), (first, "first", "last")):
        if _fits(tuple(found[i] for i in order[1:]), wanted[1:]):
            known = {"last": " (NHWC)", "first": " (NCHW)"}[has] if rank == 4 else ""
            return f"It looks like channels {has}{known}, the model takes them {takes}: array.transpose{order}."
    return ""


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w is None or h == w for h, w in zip(found, wanted, strict=True))


def raw_pixels(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> str:
    """A sentence where an input is fed whole numbers from 0 to 255 and the first layer is made for smaller ones.

    That layer is known by what it gives: trained on inputs of size 1, it answers raw pixels with tens or hundreds; one
    that was trained on raw pixels, or that has a scaling in front, does not. "" where there is nothing to say.

    Args:
        model: Not run: only its first layer is computed, on a few patches.
        feeds: Some samples, as they are fed.
    """
    for value in model.graph.inputs:
        array = feeds.get(value.name or "")
        if array is None or array.dtype.kind != "f" or not array.size or not _raw(array):
            continue
        for node in value.consumers():
            answer = _answer(node, value, array)
            if answer > _LOUD:
                return (
                    f"input {value.name!r} is fed whole numbers from {array.min():g} to {array.max():g}, as raw pixels "
                    f"are, and the first layer {node.name!r} answers with {answer:.0f} (root mean square), where about "
                    "1 is usual: if the model was trained on scaled pixels, scale them likewise (Images: mean, std)"
                )
    return ""


def _raw(array: np.ndarray) -> bool:
    low, high = float(array.min()), float(array.max())
    return low >= 0 and 64 < high <= 255 and bool((array == np.rint(array)).all())


def _answer(node: ir.Node, value: ir.Value, array: np.ndarray) -> float:
    """Root mean square of what a layer gives on patches of its input; 0 where it is not one that is known."""
    weight = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.inputs[0] is not value or weight is None:
        return 0.0
    if node.op_type == "Conv" and weight.ndim == array.ndim == 4 and weight.shape[1] == array.shape[1]:
        rows, weight = _patches(array, weight.shape[2:]), weight.reshape(len(weight), -1).T
    elif node.op_type in ("Gemm", "MatMul") and weight.ndim == array.ndim == 2:
        rows, weight = array, weight.T if edit.attribute(node, "transB", 0) else weight
    else:
        return 0.0
    if rows.shape[1] != len(weight) or not rows.size:
        return 0.0
    given = rows.astype(np.float64) @ weight.astype(np.float64)
    bias = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return float(np.sqrt(np.mean((given + (0.0 if bias is None else bias)) ** 2)))


def _patches(array: np.ndarray, kernel: Sequence[int]) -> np.ndarray:
    """Windows at places that are spread over the samples, [windows, channels * height * width]."""
    high, wide = (size - k for size, k in zip(array.shape[2:], kernel, strict=True))
    if high < 0 or wide < 0:
        return np.zeros((0, 0), np.float32)
    places = np.random.default_rng(0).random((_PATCHES, 3))
    return np.stack([
        array[int(s * len(array)), :, int(r * (high + 1)) :, int(c * (wide + 1)) :][:, : kernel[0], : kernel[1]].ravel()
        for s, r, c in places
    ])  # fmt: skip
