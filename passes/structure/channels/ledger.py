"""Changes of constants, collected first and then applied together: float64 throughout, rounded once at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SPARSITY, STATISTICS
from graphpress.passes.structure.channels.lanes import Lanes, appearance, told_apart, varying
from graphpress.passes.structure.channels.moves import WRITER, Holder
from graphpress.passes.structure.channels.survey import Survey

_LARGE = 1 << 24  # elements; more than that are not held in float64 at once where they can be taken in parts
Change: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of an array [..., places] and the channel at each place: what the array becomes."""


@dataclass(frozen=True, eq=False)
class _Entry:
    lanes: Lanes
    change: Change
    rows: bool = False  # it changes the rows of a layer's weight
    mixes: bool = False

    def like(self, other: _Entry) -> bool:
        return self.change is other.change and np.array_equal(self.lanes, other.lanes)


@dataclass(eq=False)
class Ledger:
    """What is to become of which constants.

    Attributes:
        entries: By node and input, in the order of application.
        untied: Constants that were copied because others read them unchanged.
    """

    entries: dict[tuple[ir.Node, int], list[_Entry]] = field(default_factory=dict)
    untied: int = 0

    def add(self, holder: Holder, change: Change, *, mixes: bool = False) -> None:
        """Apply ``change`` to the channels of a constant; the same object for those that change in the same way.

        Args:
            holder: The constant.
            change: What is done.
            mixes: Whether it mixes channels, which destroys a pattern of zeros.

        Raises:
            BadRequest: The weight is pruned, and the change would fill its zeros.
        """
        node = holder.node
        if mixes and SPARSITY in node.metadata_props:
            raise BadRequest(
                f"its weight is pruned {node.metadata_props[SPARSITY]}, and a change of basis would fill the zeros",
                where=f"node {node.name!r}", fix="Rotate first and prune then.",
            )  # fmt: skip
        self.entries.setdefault((node, holder.slot), []).append(
            _Entry(holder.lanes, change, rows=holder.side == WRITER and holder.slot == 1, mixes=mixes)
        )

    def write(self, *, equal: bool = True) -> int:
        """Apply everything; returns how many constants were written. The ledger is empty then.

        What training saw of a layer's outputs, where that is noted, changes along.

        Args:
            equal: Whether to write what comes out as it was.
        """
        done: set[tuple[ir.Node, int]] = set()
        count = 0
        for (node, slot), entries in self.entries.items():
            value = node.inputs[slot]
            assert value is not None
            _note(node, entries)
            uses = [(u.node, u.idx) for u in value.uses()]
            if (node, slot) in done:
                continue
            together = value.is_initializer() and all(_alike(self.entries.get(use, []), entries) for use in uses)
            old, new = edit.constant(value), _applied(value, entries)
            if together:
                done.update(uses)
            if not equal and np.array_equal(np.asarray(old), new):
                continue
            if together:
                edit.overwrite(value, new)
            else:
                self.untied += len(uses) > 1
                edit.set_constant(node, slot, new, "changed")
            count += 1
        self.entries.clear()
        return count


def _note(node: ir.Node, entries: list[_Entry]) -> None:
    """Mean and deviation of the outputs of a layer, after its rows have changed; none after they were mixed."""
    for entry in entries:
        told, rows = STATISTICS.get(node), entry.lanes.reshape(-1)
        if told is None or not entry.rows or len(told["mean"]) != len(rows):
            continue
        if entry.mixes:
            del node.metadata_props[STATISTICS]
        else:
            STATISTICS.set(node, {n: entry.change(np.asarray(a), rows).tolist() for n, a in told.items()})


def _alike(a: list[_Entry], b: list[_Entry]) -> bool:
    return len(a) == len(b) and all(x.like(y) for x, y in zip(a, b, strict=True))


def _applied(value: ir.Value, entries: list[_Entry]) -> np.ndarray:
    stored = edit.constant(value)
    assert stored is not None
    axes = [varying(e.lanes) for e in entries]
    plain = all(
        a == axes[0] and len(a) == 1 and e.lanes.ndim == stored.ndim for a, e in zip(axes, entries, strict=True)
    )
    if stored.size <= _LARGE or not plain or stored.ndim < 2 or stored.dtype.kind in "biu":
        return np.ascontiguousarray(_changed(stored, entries)).astype(stored.dtype)
    parts, across = [], int(axes[0] == [0])  # a table of embeddings: some rows at a time
    step = max(_LARGE * stored.shape[across] // stored.size, 1)
    for start in range(0, stored.shape[across], step):
        part = stored[(slice(None),) * across + (slice(start, start + step),)]
        parts.append(_changed(part, entries).astype(stored.dtype))
    return np.concatenate(parts, across)


def _changed(stored: np.ndarray, entries: list[_Entry]) -> np.ndarray:
    """Channels last, one axis of them; a constant is written out along axes that it lacks."""
    wide = stored if stored.dtype.kind in "biu" else stored.astype(np.float64)
    for entry in entries:
        lanes = entry.lanes
        wide = wide.reshape((1,) * max(lanes.ndim - wide.ndim, 0) + wide.shape)
        axes = [a - lanes.ndim for a in varying(lanes)]
        for a in axes:
            wide = np.repeat(wide, lanes.shape[a], a) if wide.shape[a] == 1 else wide
        last = np.moveaxis(wide, axes, range(-len(axes), 0))
        flat = last if len(axes) == 1 else last.reshape(*last.shape[: last.ndim - len(axes)], -1)
        made = entry.change(flat, lanes.reshape(-1))
        whole = made if len(axes) == 1 else made.reshape(*made.shape[:-1], *(lanes.shape[a] for a in axes))
        wide = np.moveaxis(whole, range(-len(axes), 0), axes)
    return wide


def factor(by_channel: np.ndarray, of: np.ufunc = np.multiply) -> Change:
    """Each channel times a number of its own, or (``of`` np.divide) divided by it."""
    return lambda array, lanes: np.asarray(of(array, np.where(lanes < 0, 1.0, by_channel[lanes])))


def on_runs(matrix: Callable[[np.ndarray], np.ndarray], extent: int) -> Change:
    """What ``matrix`` makes of each run, of an array [runs, extent]."""

    def change(array: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        places = runs(lanes, extent)
        first, flat = int(places[0]), np.arange(len(places))
        if np.array_equal(places - first, flat):  # one piece
            part = array[..., first : first + len(places)]
            made = matrix(part.reshape(-1, extent)).reshape(part.shape)
            return np.concatenate([array[..., :first], made, array[..., first + len(places) :]], -1)
        found, part = array.copy(), array[..., places]
        found[..., places] = matrix(part.reshape(-1, extent)).reshape(part.shape)
        return found

    return change


def turn(matrix: np.ndarray) -> Change:
    """``x M`` for each run ``x``."""
    return on_runs(lambda x: np.asarray(x @ matrix), len(matrix))


def runs(lanes: np.ndarray, extent: int) -> np.ndarray:
    """The places of runs, one after another, each in the order of its channels: their k-th appearances are one run."""
    places = np.flatnonzero(lanes >= 0)
    run, member = np.divmod(told_apart(lanes[places], extent), extent)
    _, first, which = np.unique(run, return_index=True, return_inverse=True)
    return np.asarray(places[np.lexsort((member, first[which]))])


def sources(flat: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each place the place whose element moves there, when channel ``a`` gives way to ``new[a]``.

    Args:
        flat: Channels, [places]; one may stand several times, then its k-th place goes to the other's k-th.
        new: For each channel the one that takes its places; a permutation of those that stand equally often.
    """
    order = np.argsort(flat, kind="stable")
    start = np.searchsorted(flat[order], np.arange(len(new)))
    return np.asarray(order[start[new[flat]] + appearance(flat)])


def reorder(new: np.ndarray) -> Change:
    """Channels change places; see ``sources``."""
    return lambda array, lanes: array[..., sources(lanes, new)]


def keep(kept: np.ndarray) -> Change:
    """Channels that are marked stay, the others go."""
    return lambda array, lanes: array[..., kept[lanes]]


def permute(found: Survey, new: np.ndarray) -> int:
    """Let every constant follow ``new``: for each root the one that takes its places. Returns how many changed."""
    return _write(found, reorder(new), new != np.arange(len(new)), equal=False)


def narrow(found: Survey, kept: np.ndarray) -> int:
    """Keep the channels that are marked (of each root), and forget the sizes of values that lose some.

    Args:
        found: Made for ``Move.SLICE``.
        kept: Booleans by channel; only members of ``groups`` may go.
    """
    for value, lanes in found.lanes.items():
        if not kept[found.roots[lanes]].all() and value.shape is not None:
            value.shape = ir.Shape([None if a in varying(lanes) else d for a, d in enumerate(value.shape)])
    return _write(found, keep(kept), ~kept, equal=True)


def _write(found: Survey, change: Change, touched: np.ndarray, *, equal: bool) -> int:
    ledger = Ledger()
    for holder in found.holders.values():
        lanes = found.roots[holder.lanes]
        if touched[lanes].any():
            ledger.add(replace(holder, lanes=lanes), change)
    return ledger.write(equal=equal)
