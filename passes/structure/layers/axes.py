"""Which axes of a graph's inputs an axis of a value is made of: what reshapes, transposes and layers make of them.

An axis is a row of parts, outermost first. A reshape that cuts an axis gives both pieces a key of their own; one that
joins axes puts their parts in a row. What has another size behind a layer (a convolution, a slice, a token put to
others) is one part that descends from all that stood there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import Way, movement, moves
from graphpress.passes.structure.channels.lanes import dims, factors, number

Key: TypeAlias = tuple[int, ...]
"""Number of an input, axis of it, and for each cut 0 (the outer piece) or 1; in order as the elements lie."""


@dataclass(frozen=True)
class Factor:
    """A factor of an axis: what it descends from, and how many there are."""

    keys: frozenset[Key]
    size: int


Axis: TypeAlias = tuple[Factor, ...]
Axes: TypeAlias = tuple[Axis, ...]


def axes(graph: ir.Graph) -> dict[ir.Value, Axes]:
    """The axes of the values of a graph, as far as they can be told; sizes that have a name are large primes."""
    numbers = _Numbers()
    inputs = [v for v in graph.inputs if not v.is_initializer()]
    found: dict[ir.Value, Axes] = {}
    for i, value in enumerate(inputs):
        sizes = numbers.of(value)
        if sizes is not None and None not in sizes:
            found[value] = tuple(_axis({(i, a)}, n or 1) for a, n in enumerate(sizes))
    for node in graph:
        for value in node.outputs:
            sizes = numbers.of(value)
            made = _made(node, sizes, found) if sizes is not None else None
            if made is not None:
                found[value] = made
    return found


def keys(axis: Axis) -> frozenset[Key]:
    """All that an axis descends from."""
    return frozenset[Key]().union(*(part.keys for part in axis))


class _Numbers:
    """Sizes as numbers; each name has one of its own, a prime that no size has as a factor."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.primes = _primes(10_007)

    def of(self, value: ir.Value) -> list[int | None] | None:
        """The sizes; None for those that are not known, and where even the rank is not."""
        shape = dims(value)
        for name in (f for d in shape or () if d is not None for f in factors(d) if not f.isdigit()):
            if name not in self.known:
                self.known[name] = next(self.primes)
        return None if shape is None else [number(d, self.known) for d in shape]


def _primes(start: int) -> Iterator[int]:
    return (n for n in itertools.count(start) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def _axis(found: Iterable[Key], size: int) -> Axis:
    return (Factor(frozenset(found), size),) if size > 1 else ()


def _made(node: ir.Node, sizes: Sequence[int | None], found: Mapping[ir.Value, Axes]) -> Axes | None:
    first = found.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if moves(node, Way.VIEW):
        return None if first is None else reshaped(first, sizes)
    if node.domain == "" and node.op_type == "Transpose":
        return None if first is None else tuple(first[a] for a in edit.attribute(node, "perm", range(len(first))[::-1]))
    if node.domain == "" and node.op_type in ("Einsum", "Gather", "GatherND", "Gemm"):
        return None
    moved = movement(node)
    slots = range(len(node.inputs)) if moved is None else moved.data
    operands = [found[v] for s in slots if (v := node.inputs[s]) is not None and v in found]
    if node.domain == "" and node.op_type == "MatMul":
        operands = _product(node, found)
    if node.domain == "" and node.op_type in ("Conv", "ConvTranspose"):  # its channels are new ones
        operands = [(batch, (), *places) for batch, _, *places in operands]
    if not operands or max(len(o) for o in operands) != len(sizes):
        return None
    return tuple(_joined([o[a] for o in operands if len(o) >= -a], sizes[a]) for a in range(-len(sizes), 0))


def _product(node: ir.Node, found: Mapping[ir.Value, Axes]) -> list[Axes]:
    """Rows are those of the left operand, columns those of the right one."""
    left, right = (found.get(v) if v is not None else None for v in node.inputs)
    if left is None or len(left) < 2 or (right is not None and len(right) < 2):
        return []
    return [(*left[:-1], ()), *([] if right is None else [(*right[:-2], (), right[-1])])]


def _joined(operands: Sequence[Axis], size: int | None) -> Axis:
    """Of an axis of what comes out: that of an operand of its size, else a part that descends from all of them."""
    whole = [o for o in operands if o]
    same = [o for o in whole if math.prod(part.size for part in o) == size]
    if same or (size is None and len(whole) == 1):
        return (same or whole)[0]
    return _axis(frozenset[Key]().union(*map(keys, whole)), size or 1)


def reshaped(before: Axes, after: Sequence[int | None]) -> Axes | None:
    """The axes after a reshape; None where it does not cut or join whole factors."""
    left = [part for axis in before for part in axis]
    total = math.prod(part.size for part in left)
    after = [n if n is not None and n and total % n == 0 else None for n in after]  # inference gives some a new name
    known = math.prod(n for n in after if n is not None)
    if total % known or sum(n is None for n in after) > 1:
        return None
    result = []
    for size in (total // known if n is None else n for n in after):
        axis = list[Factor]()
        while size > 1:
            if not left:
                return None
            part = left.pop(0)
            if part.size % size == 0 and part.size > size:
                outer, inner = ({(*k, i) for k in part.keys} for i in (0, 1))
                left.insert(0, Factor(frozenset(inner), part.size // size))
                part = Factor(frozenset(outer), size)
            elif size % part.size:
                return None
            axis.append(part)
            size //= part.size
        result.append(tuple(axis))
    return None if left else tuple(result)
