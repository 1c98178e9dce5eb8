"""Consecutive samples: what is known of them before they are read, and how they are cut and joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphpress.errors import CalibrationError, nearest
from graphpress.observe.npy import Header


@dataclass(frozen=True)
class Part:
    """Some consecutive samples: their headers, and how to get them."""

    where: str
    headers: Mapping[str, Header]
    load: Callable[[], Mapping[str, np.ndarray]]

    @property
    def samples(self) -> int:
        return next((h.shape[0] for h in self.headers.values() if h.shape), 1)


def consistent(part: Part, first: Part) -> None:
    """Refuse a part whose arrays disagree, or are others than those of the first.

    Raises:
        CalibrationError: It is one.
    """
    counts = {k: h.shape[0] for k, h in part.headers.items() if h.shape}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{k} {n}" for k, n in counts.items())
        raise CalibrationError(f"the arrays disagree on the number of samples ({said})", where=part.where)
    if odd := sorted(part.headers.keys() ^ first.headers.keys()):
        raise CalibrationError(
            f"the arrays are not those of {first.where}", where=f"{part.where}, array {odd[0]!r}",
            fix=nearest(odd[0], first.headers),
        )  # fmt: skip


def samples_in(rows: Mapping[str, np.ndarray]) -> int:
    """How many samples some arrays hold, samples first; 1 where none has an axis."""
    return next((len(a) for a in rows.values() if a.ndim), 1)


def fill(pieces: Iterable[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Join neighbours of one shape and type up to ``size`` samples."""
    held: list[dict[str, np.ndarray]] = []
    for piece in pieces:
        if held and _form(held[0]) != _form(piece):
            yield _join(held)
            held = []
        room = size - sum(map(samples_in, held))
        held.append(_cut(piece, slice(room)))
        if samples_in(piece) >= room:
            yield _join(held)
            held = [_cut(piece, slice(room, None))] if samples_in(piece) > room else []
    if held:
        yield _join(held)


def _form(rows: Mapping[str, np.ndarray]) -> list[tuple[str, object, object]]:
    return [(k, a.dtype, a.shape[1:]) for k, a in rows.items()]


def _cut(rows: Mapping[str, np.ndarray], where: slice) -> dict[str, np.ndarray]:
    return {k: a[where] if a.ndim else a for k, a in rows.items()}


def _join(held: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(held) == 1:
        return held[0]
    return {k: np.concatenate([h[k] for h in held]) if a.ndim else a for k, a in held[0].items()}
