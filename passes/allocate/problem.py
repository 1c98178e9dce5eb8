"""The decision as numbers: variables with choices, conversions between neighbours, and what an assignment costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OUTSIDE = -1  # in a Link: something that is always float


@dataclass(frozen=True)
class Candidate:
    """One format of one variable, all costs relative to float.

    Attributes:
        format: Its name.
        drop: Loss of accuracy.
        size: Bytes more than in float (fewer: negative).
        latency: Milliseconds more than in float, between neighbours of its own kind.
        reads: Whether it reads integers of calibrated range.
        gives: Whether it writes them.
        keeps: Whether it reads floats and weights with a scale for each output channel, so that folding stores its bias
            as integers too where its input happens to come quantized.
        joined: It is a format of the weights alone, on the integer kernel that the target has for it where its
            neighbours, quantized for their own sake, hand it codes and take codes; allowed nowhere else.
        soft: It is in codes only if others are, so the search lets nothing ``joined`` count on it.
    """

    format: str
    drop: float = 0.0
    size: float = 0.0
    latency: float = 0.0
    reads: bool = False
    gives: bool = False
    keeps: bool = False
    joined: bool = False
    soft: bool = False


@dataclass(frozen=True)
class Variable:
    """Operators that are decided together; ``free`` ones (no weights) follow their neighbours and are in no plan.

    ``size``: bytes in float.
    """

    name: str
    nodes: tuple[str, ...]
    choices: tuple[Candidate, ...]
    free: bool = False
    size: float = 0.0


@dataclass(frozen=True)
class Share:
    """Variables, by index, that together get a part of a budget of size: as large a one as of the bytes in float.

    ``size``: their bytes in float.
    """

    name: str
    members: tuple[int, ...]
    size: float


@dataclass(frozen=True)
class Link:
    """A value between variables, by index in the problem, or OUTSIDE.

    Attributes:
        source: Who writes it.
        readers: Who reads it.
        up: Milliseconds to quantize it once, where the source writes floats and a reader wants integers.
        down: Milliseconds to dequantize it once, where the source writes integers and a reader wants floats.
        kept: Milliseconds where the source writes integers and all readers want them, more than in float, where two
            neighbours may share a layout that each of them alone has to change.
        extra: Of each reader, bytes more where the source writes integers and it ``keeps``; empty: none.
    """

    source: int
    readers: tuple[int, ...]
    up: float
    down: float
    extra: tuple[float, ...] = ()
    kept: float = 0.0

    def bytes_of(self, reader: int) -> float:
        """``extra`` of one reader."""
        return sum(b for r, b in zip(self.readers, self.extra, strict=False) if r == reader)


@dataclass(frozen=True)
class Totals:
    """What an assignment costs in all. drop in the unit of the sensitivity, size in bytes, latency in ms."""

    drop: float
    size: float
    latency: float

    def get(self, what: str) -> float:
        value: float = getattr(self, what)
        return value


@dataclass(frozen=True)
class Problem:
    """Choose one of each variable's choices.

    Attributes:
        variables: In an order in which values flow, if there are links.
        links: Conversions between them.
        size: Bytes of the float model.
        latency: Milliseconds of the float model.
        added: Bytes around the tensors (nodes, names) that a plan adds to the file, whichever it is; 0 where tensors
            alone count.
        shares: Sets of variables none of which may take what a budget of size leaves to another.
    """

    variables: tuple[Variable, ...]
    links: tuple[Link, ...] = ()
    size: float = 0.0
    latency: float = 0.0
    added: float = 0.0
    shares: tuple[Share, ...] = ()

    def within(self, chosen: Sequence[int], budgets: Mapping[str, float]) -> bool:
        """Whether an assignment keeps largest totals, and each share its part of the size."""
        totals = self.totals(chosen)
        whole = all(totals.get(k) <= b for k, b in budgets.items())
        return whole and all(self.taken(s, chosen) <= room for s, room in self.rooms(budgets))

    def rooms(self, budgets: Mapping[str, float]) -> list[tuple[Share, float]]:
        """Bytes that each share may take, where size is limited: what lies in none is there anyway."""
        if "size" not in budgets:
            return []
        whole = sum(s.size for s in self.shares)
        left = budgets["size"] - (self.size + self.added - whole)
        return [(s, left * s.size / whole) for s in self.shares if whole > 0]

    def taken(self, share: Share, chosen: Sequence[int]) -> float:
        """Bytes of a share's variables."""
        return share.size + sum(self.variables[i].choices[chosen[i]].size for i in share.members)

    def totals(self, chosen: Sequence[int]) -> Totals:
        """The costs of the ``chosen[i]``-th choice of each variable i."""
        picked = [v.choices[c] for v, c in zip(self.variables, chosen, strict=True)]
        latency = self.latency + sum(c.latency for c in picked) + sum(self.conversion(x, picked) for x in self.links)
        size = self.size + self.added + sum(c.size for c in picked) + sum(self.biases(x, picked) for x in self.links)
        return Totals(sum(c.drop for c in picked), size, latency)

    def biases(self, link: Link, picked: Sequence[Candidate]) -> float:
        """Bytes that a link takes."""
        if link.source == OUTSIDE or not picked[link.source].gives:
            return 0.0
        return sum(b for r, b in zip(link.readers, link.extra, strict=False) if r != OUTSIDE and picked[r].keeps)

    def conversion(self, link: Link, picked: Sequence[Candidate]) -> float:
        """Milliseconds that a link takes; infinite where a ``joined`` choice stands beside floats."""
        source = picked[link.source] if link.source != OUTSIDE else _FLOAT
        readers = [picked[r] if r != OUTSIDE else _FLOAT for r in link.readers]
        codes = source.gives and not source.joined
        wants = all(r.reads and not r.joined for r in readers)
        if (any(r.joined for r in readers) and not codes) or (source.joined and source.gives and not wants):
            return math.inf
        if source.gives:
            return link.kept if all(r.reads for r in readers) else link.down
        return link.up if any(r.reads for r in readers) else 0.0

    def formats(self, chosen: Sequence[int]) -> dict[str, str]:
        """Operator -> format of an assignment."""
        pairs = zip(self.variables, chosen, strict=True)
        return {n: v.choices[c].format for v, c in pairs if not v.free for n in v.nodes}

    def chosen(self, formats: dict[str, str], joined: Sequence[str] | set[str]) -> list[int]:
        """The assignment of formats by operator, free variables being in integers if they are in ``joined``.

        Formats of weights alone are on integer kernels wherever their neighbours make it so.
        """
        found = []
        for v in self.variables:
            names = [c.format for c in v.choices]
            if v.free:
                found.append(int(v.nodes[0] in joined))
            else:
                found.append(names.index(formats.get(v.nodes[0], names[0])))
        picked = [v.choices[c] for v, c in zip(self.variables, found, strict=True)]
        for i, v in enumerate(self.variables):
            mine = [x for x in self.links if i in (x.source, *x.readers)]
            for k, choice in enumerate(v.choices):
                if choice.joined and choice.format == picked[i].format:
                    beside = [*picked[:i], choice, *picked[i + 1 :]]
                    if all(self.conversion(x, beside) < math.inf for x in mine):
                        found[i], picked = k, beside
        return found


_FLOAT = Candidate("float")  # what OUTSIDE is
