"""A row for each method and model, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WORSE = {"language": 0.005, "classifier": 0.3}  # nats, points: by how much ours may be worse than a peer


@dataclass(frozen=True)
class PeerRow:
    """What came of one method on one model.

    Attributes:
        model: Name of the task.
        kind: Of the task.
        whole: The float model's score: nats per token or byte (lower is better), or top-1 in per cent.
        score: The compressed model's, on ONNX Runtime; None where there is none, for ``why``.
        apart: Mean divergence of its predictions from the float model's, in nats; None where there is none.
        size: Bytes of its file.
        seconds: Of the compression alone, imports not counted.
        peak: Bytes of memory of the process, at most.
        why: One line: the error, or what is not installed.
    """

    model: str
    kind: str
    method: str
    scheme: str
    ours: bool
    whole: float
    score: float | None = None
    apart: float | None = None
    size: int | None = None
    seconds: float | None = None
    peak: int | None = None
    why: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PeerRow:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def lost(self) -> float:
        """Nats above the float model, or points below it."""
        assert self.score is not None
        return self.score - self.whole if self.kind == "language" else self.whole - self.score


def render(rows: Sequence[PeerRow]) -> str:
    """A table for each model and scheme, best first, with a verdict on ours."""
    parts = []
    for model, scheme in dict.fromkeys((r.model, r.scheme) for r in rows):
        group = [r for r in rows if (r.model, r.scheme) == (model, scheme)]
        unit = "nats over float" if group[0].kind == "language" else "points below float"
        head = f"| method | {unit} | divergence | MB | seconds | peak MB | |\n|---|---|---|---|---|---|---|"
        ran = sorted((r for r in group if r.score is not None), key=lambda r: r.lost)
        lines = [_line(r) for r in ran]
        lines += [f"| {r.method} | - | - | - | - | - | {r.why} |" for r in group if r.score is None]
        said = " ".join(verdict(group))
        parts.append("\n".join([f"**{model}, {scheme}** (float {group[0].whole:.4f})", "", head, *lines, "", said]))
    return "\n\n".join(parts) + "\n"


def _line(row: PeerRow) -> str:
    assert row.size is not None
    assert row.seconds is not None
    assert row.peak is not None
    name = f"**{row.method}**" if row.ours else row.method
    apart = "" if row.apart is None else f"{row.apart:.4f}"
    return f"| {name} | {row.lost:+.4f} | {apart} | {row.size / 1e6:.2f} | {row.seconds:.1f} | {row.peak / 1e6:.0f} | |"


def verdict(group: Sequence[PeerRow]) -> Iterator[str]:
    """Sentences: whether our best is worse than a peer's best by more than may be, and what both cost."""
    best = [min((r for r in group if r.ours is o and r.score is not None), key=lambda r: r.lost, default=None)
            for o in (True, False)]  # fmt: skip
    ours, theirs = best
    if ours is None or theirs is None:
        yield "Nothing to compare."
        return
    assert ours.seconds is not None
    assert theirs.seconds is not None
    assert ours.peak is not None
    assert theirs.peak is not None
    worse = ours.lost - theirs.lost
    holds = "holds" if worse <= WORSE[ours.kind] else "does NOT hold"
    yield f"Ours ({ours.method}) against the best peer ({theirs.method}): {worse:+.4f}, which {holds};"
    yield f"{ours.seconds / theirs.seconds:.2f}x of its time, {ours.peak / theirs.peak:.2f}x of its memory."
    nearest = min((r for r in group if r.apart is not None), key=lambda r: r.apart or 0.0, default=None)
    if nearest is not None:
        yield f"Nearest to the float model: {nearest.method}."
