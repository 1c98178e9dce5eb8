"""The elements that share a scale (by tensor, channel, group) as rows, and parameters back in their places."""

from __future__ import annotations

from typing import Any, TypeAlias

from graphpress.arrays import array_namespace, device
from graphpress.errors import BadRequest
from graphpress.types import Kind, Scheme

Array: TypeAlias = Any


def granules(x: Array, scheme: Scheme) -> Array:
    """The elements that share a scale along the last axis; a short last group is filled up with zeros.

    Raises:
        BadRequest: The tensor lacks the axis, or the scales are found at run time.
    """
    xp, size = array_namespace(x), scheme.granularity.group_size
    if scheme.granularity.kind is Kind.TENSOR:
        return xp.reshape(x, (1, -1))
    axis = _axis(x.shape, scheme)
    if size is None:
        count = x.shape[axis]
        rest = 1
        for d in x.shape[:axis] + x.shape[axis + 1 :]:
            rest *= d
        return xp.reshape(xp.moveaxis(x, axis, 0), (count, rest if count else 0))
    last = xp.moveaxis(x, axis, -1)
    if fill := -last.shape[-1] % size:
        zeros = xp.zeros((*last.shape[:-1], fill), dtype=last.dtype, device=device(x))
        last = xp.concat([last, zeros], axis=-1)
    return xp.reshape(last, (*last.shape[:-1], last.shape[-1] // size, size))


def arranged(parameter: Array, shape: tuple[int, ...], scheme: Scheme) -> Array:
    """One parameter for each row of ``granules``, whose shape is given, as ONNX wants it."""
    xp, kind, axis = array_namespace(parameter), scheme.granularity.kind, scheme.granularity.axis
    if kind is Kind.TENSOR:
        return xp.reshape(parameter, ())
    if kind is Kind.CHANNEL:
        return parameter
    assert axis is not None
    return contiguous(xp.moveaxis(xp.reshape(parameter, shape[:-1]), -1, axis))


def spread(parameter: Array, shape: tuple[int, ...], scheme: Scheme) -> Array:
    """The parameter in a form that broadcasts against a tensor of a shape.

    Raises:
        BadRequest: As for ``granules``.
    """
    xp, kind, size = array_namespace(parameter), scheme.granularity.kind, scheme.granularity.group_size
    if kind is Kind.TENSOR:
        return xp.reshape(parameter, ())
    axis = _axis(shape, scheme)
    if size is None:
        return xp.reshape(parameter, tuple(-1 if i == axis else 1 for i in range(len(shape))))
    return xp.repeat(parameter, size, axis=axis)[(slice(None),) * axis + (slice(shape[axis]),)]


def contiguous(x: Array) -> Array:
    """The same array, its elements in order of memory."""
    xp = array_namespace(x)
    return xp.reshape(xp.reshape(x, (-1,)), x.shape)


def _axis(shape: tuple[int, ...], scheme: Scheme) -> int:
    axis = scheme.granularity.axis
    if scheme.granularity.kind is Kind.TOKEN or axis is None:
        raise BadRequest(f"{scheme.granularity} scales are computed at run time", where="granularity")
    if not -len(shape) <= axis < len(shape):
        raise BadRequest(f"axis {axis} of a tensor of shape {tuple(shape)}", where="granularity")
    return axis % len(shape)
