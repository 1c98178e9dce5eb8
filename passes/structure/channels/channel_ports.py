"""Let the constants of a graph follow an order of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.passes.structure.channels.channels import Port


def sources(flat: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each place the place whose element moves there, when atom ``a`` gives way to ``new[a]``.

    Args:
        flat: Root atoms, [places]; an atom may stand several times, then its k-th place goes to the other's k-th.
        new: For each atom the one that takes its places; a permutation of those that stand equally often.
    """
    order = np.argsort(flat, kind="stable")
    atoms, starts = np.unique(flat[order], return_index=True)
    rank = np.empty(len(flat), np.int64)
    rank[order] = np.arange(len(flat)) - np.repeat(starts, np.diff(np.append(starts, len(flat))))
    start = np.zeros(len(new), np.int64)
    start[atoms] = starts
    found: np.ndarray = order[start[new[flat]] + rank]
    return found


def permute(model_ports: Sequence[Port], roots: np.ndarray, new: np.ndarray) -> int:
    """Let every port follow ``new`` (see ``sources``); a constant that several share moves once where they agree.

    Returns:
        How many constants changed.
    """
    changed = 0
    for ports in _by_constant(model_ports):
        by_use: dict[tuple[ir.Node, int], list[Port]] = {}
        for port in ports:
            by_use.setdefault((port.node, port.slot), []).append(port)
        value = ports[0].node.inputs[ports[0].slot]
        array = edit.constant(value)
        assert value is not None and array is not None
        made = {use: _moved(array, mine, roots, new) for use, mine in by_use.items()}
        first, *rest = made.values()
        if len(by_use) == len(value.uses()) and value.is_initializer() and all(np.array_equal(first, r) for r in rest):
            changed += _overwrite(value, array, first)
            continue
        for (node, slot), moved in made.items():
            if not np.array_equal(moved, array):
                edit.set_constant(node, slot, moved, "permuted")
                changed += 1
    return changed


def _overwrite(value: ir.Value, old: np.ndarray, new: np.ndarray) -> int:
    if np.array_equal(old, new):
        return 0
    edit.overwrite(value, new)
    return 1


def _by_constant(ports: Sequence[Port]) -> Iterator[list[Port]]:
    found: dict[ir.Value, list[Port]] = {}
    for port in ports:
        value = port.node.inputs[port.slot]
        assert value is not None
        found.setdefault(value, []).append(port)
    yield from found.values()


def _moved(array: np.ndarray, ports: Sequence[Port], roots: np.ndarray, new: np.ndarray) -> np.ndarray:
    for port in ports:
        axes = [a for a, n in enumerate(port.atoms.shape) if n > 1]
        flat = roots[port.atoms.ravel()]
        if np.array_equal(new[flat], flat):
            continue
        last = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))
        moved = last.reshape(*last.shape[: array.ndim - len(axes)], -1)[..., sources(flat, new)]
        array = np.moveaxis(moved.reshape(last.shape), range(array.ndim - len(axes), array.ndim), axes)
    return np.ascontiguousarray(array)
