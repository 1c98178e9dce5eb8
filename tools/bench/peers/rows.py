"""A row for each method and model, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WORSE = {"language": 0.005, "classifier": 0.3}  # nats, points: by how much ours may be worse than a peer
FAMILIES = {"gptq": "GPTQ", "awq": "AWQ", "autoround": "AutoRound", "smooth": "SmoothQuant"}  # by what names say


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

    @property
    def off(self) -> float:
        """What tells methods apart best: the divergence where there is one."""
        return self.lost if self.apart is None else self.apart


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
    """Sentences: whether our best is worse than theirs by more than may be, and what both cost; then by method."""
    ran = [r for r in group if r.score is not None]
    ours, theirs = _sides(ran, lambda r: r.lost)
    if ours is None or theirs is None:
        yield "Nothing to compare."
        return
    worse = ours.lost - theirs.lost
    holds = "holds" if worse <= WORSE[ours.kind] else "does NOT hold"
    yield f"Ours ({ours.method}) against the best peer ({theirs.method}): {worse:+.4f}, which {holds};"
    yield f"{_cost(ours, theirs)}."
    if nearest := min((r for r in ran if r.apart is not None), key=lambda r: r.off, default=None):
        yield f"Nearest to the float model: {nearest.method}."
    for word, family in FAMILIES.items():
        ours, theirs = _sides([r for r in ran if word in r.method.lower()], lambda r: r.off)
        if ours is not None and theirs is not None:
            yield f"By {family}: {ours.off:.4f} ({ours.method}) against {theirs.off:.4f} ({theirs.method}),"
            yield f"{_cost(ours, theirs)}."


def _sides(rows: Sequence[PeerRow], by: Callable[[PeerRow], float]) -> list[PeerRow | None]:
    """The best of ours and of theirs."""
    return [min((r for r in rows if r.ours is side), key=by, default=None) for side in (True, False)]


def _cost(ours: PeerRow, theirs: PeerRow) -> str:
    assert ours.seconds is not None
    assert theirs.seconds is not None
    assert ours.peak is not None
    assert theirs.peak is not None
    return f"{ours.seconds / theirs.seconds:.2f}x of its time, {ours.peak / theirs.peak:.2f}x of its memory"
