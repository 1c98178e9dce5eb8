"""What is measured of an output, by its nature, while batches go by: one figure a sample each, and their intervals.

Labels are not needed. Where an output holds scores of classes the float model's own probabilities stand for the truth:
what a changed choice costs is how much less probable it is (regret), what a changed distribution costs is the
divergence, in nats, which is what a language model loses where the float model is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphpress.job import chance
from graphpress.job.bars import Gate
from graphpress.job.chance import Verdict
from graphpress.job.natures import Form, Kind, Nature, confidence, objectness
from graphpress.runner import Arrays

DOUBT = 0.1  # probability by which the float model prefers its choice so little that another one is no loss
CONFIDENT = 0.5  # score from which a detector means a row
OVERLAP = 0.5  # intersection over union from which a box is the same
NEIGHBOURS = 5  # nearest others of an embedding that are to stay
MEMORY = 4096  # rows that are kept: embeddings to look for neighbours, values to know how they spread
FEW = 8  # samples from which it is known how they spread
_CODE = 1 / 256  # the least probability above 0 that 8 bits write
_SAME = 1e-9  # share of the power that is rounding: values that never change


@dataclass(frozen=True)
class Figure:
    """One number that an output is judged by.

    Attributes:
        what: In words.
        value: Of the samples seen.
        low, high: Where it lies for all samples, in 95 of 100 cases.
        asked: The bar.
        verdict: Of it.
    """

    what: str
    value: float
    low: float
    high: float
    asked: float
    verdict: Verdict


class Measure(ABC):
    """Gathers what outputs of one kind say, sample by sample."""

    kind: ClassVar[Kind]

    def __init__(self, name: str, nature: Nature) -> None:
        self.name, self.nature = name, nature

    @abstractmethod
    def add(self, left: Arrays, right: Arrays) -> None:
        """Take in the outputs of the float model and of the other for a batch, by name; shapes are equal."""

    @abstractmethod
    def figures(self, gate: Gate) -> Iterator[Figure]:
        """What is judged. The bars are the gate's."""


@dataclass
class _Shares:
    """A share of trials a sample; samples without trials are left out."""

    shares: list[float] = field(default_factory=list)
    trials: int = 0

    def add(self, right: float, of: float) -> None:
        if of:
            self.shares.append(right / of)
            self.trials += int(of)

    def figure(self, what: str, asked: float) -> Iterator[Figure]:
        if self.shares:
            found = np.array(self.shares)
            low, high = chance.share_of_many(found, self.trials)
            yield Figure(
                what, float(found.mean()), low, high, asked, chance.at_least(float(found.mean()), low, high, asked)
            )


def _mean(what: str, values: list[float], asked: float) -> Iterator[Figure]:
    if values:
        found = np.array(values)
        low, high = chance.mean(found)
        yield Figure(what, float(found.mean()), low, high, asked, chance.at_most(float(found.mean()), low, high, asked))


class Classes(Measure):
    """Whether the choice stays, what the other one costs, and, along a sequence, how far the distribution moves."""

    kind = Kind.CLASSES

    def __init__(self, name: str, nature: Nature) -> None:
        super().__init__(name, nature)
        self.agreed, self.regret, self.nats = _Shares(), list[float](), list[float]()
        self.sequence, self.same, self.choices = False, 0, 0
        self.turned: float | None = None

    @property
    def agreement(self) -> float | None:
        """Share of choices that are exactly the same."""
        return self.same / self.choices if self.choices else None

    @property
    def change(self) -> float:
        """What one choice more that changes would cost a sample at most, at the largest noise that was measured."""
        positions = self.choices / max(len(self.regret), 1)
        return (1.0 if self.turned is None else self.turned) / max(positions, 1)

    def add(self, left: Arrays, right: Arrays) -> None:
        self.sequence |= left[self.name].ndim == 3 and self.nature.axis == 2
        for a, b in zip(left[self.name], right[self.name], strict=True):  # one sample at a time: vocabularies are long
            p, q = (np.moveaxis(_logarithms(x, self.nature), self.nature.axis - 1, -1) for x in (a, b))
            p, q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
            mine, its = p.argmax(-1, keepdims=True), q.argmax(-1, keepdims=True)
            given_up = np.exp(np.take_along_axis(p, mine, -1)) - np.exp(np.take_along_axis(p, its, -1))
            self.agreed.add(float((given_up <= DOUBT).sum()), len(p))
            self.same, self.choices = self.same + int((mine == its).sum()), self.choices + len(p)
            self.regret.append(float(given_up.mean()))
            self.nats.append(float((np.exp(p) * (p - q)).sum(-1).mean()))
            if (found := _turned(p, q, self.nature.form)) is not None:
                self.turned = max(self.turned or 0.0, found)

    def figures(self, gate: Gate) -> Iterator[Figure]:
        yield from self.agreed.figure("agreement of the choice", gate.min_agreement)
        if self.regret:
            found = 100 * np.array(self.regret)
            low, high = chance.mean_loss(found, 100 * self.change)
            verdict = chance.at_most(float(found.mean()), low, high, gate.max_loss)
            yield Figure("expected loss of accuracy", float(found.mean()), max(low, 0.0), high, gate.max_loss, verdict)
        if self.sequence:
            yield from _mean("divergence in nats", self.nats, gate.max_nats)


def _logarithms(scores: np.ndarray, nature: Nature) -> np.ndarray:
    """Logarithms of probabilities, in float64, of one sample."""
    wide = np.nan_to_num(scores.astype(np.float64), nan=-1e30, posinf=1e30, neginf=-1e30)
    if nature.form is Form.PROBABILITIES:
        wide = np.log(np.maximum(wide, 1e-12))
    elif nature.form is Form.LOGARITHMS:
        wide = np.maximum(wide, -60.0)
    axis = nature.axis - 1
    wide = wide - wide.max(axis, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis, keepdims=True)))


def _turned(p: np.ndarray, q: np.ndarray, form: Form) -> float | None:
    """The largest loss of probability that noise as between the two best classes can bring about, of one sample.

    A choice of probability a gives way to one of b where the noise d between their logarithms is log(a / b) or more, so
    that with a + b <= 1 it costs a - b <= (1 - e^-d) / (1 + e^-d) = tanh(d / 2).

    Args:
        p, q: Logarithms of probabilities, [positions, classes].
        form: Of what the output holds. Probabilities of less than what 8 bits can write show no noise.

    Returns:
        None where there is none to see.
    """
    if p.shape[-1] < 2:
        return 0.0
    best = np.argpartition(-p, 1, axis=-1)[:, :2] if p.shape[-1] > 2 else np.tile([0, 1], (len(p), 1))
    mine, its = np.take_along_axis(p, best, -1), np.take_along_axis(q, best, -1)
    if form is Form.PROBABILITIES:
        seen = mine.min(-1) >= np.log(_CODE)
        mine, its = mine[seen], np.maximum(its[seen], np.log(_CODE / 2))
    noise = np.abs((its - mine) @ [1.0, -1.0])
    return float(np.tanh(noise / 2).max()) if len(noise) else None


class Flags(Measure):
    """Whether each yes or no stays; where few are yes, those count."""

    kind = Kind.FLAGS

    def __init__(self, name: str, nature: Nature) -> None:
        super().__init__(name, nature)
        self.agreed, self.found = _Shares(), _Shares()

    def add(self, left: Arrays, right: Arrays) -> None:
        for a, b in zip(left[self.name], right[self.name], strict=True):
            p, q = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            sure = np.abs(p - 0.5) > DOUBT / 2
            same = ((p > 0.5) == (q > 0.5)) | (~sure & (np.abs(p - q) <= DOUBT))
            self.agreed.add(float(same.sum()), p.size)
            yes = (p > 0.5) | (q > 0.5)
            if p.size > 1:
                self.found.add(float((same & yes).sum()), int(yes.sum()))

    def figures(self, gate: Gate) -> Iterator[Figure]:
        yield from self.agreed.figure("agreement of yes and no", gate.min_agreement)
        yield from self.found.figure("overlap of what is yes", gate.min_agreement)


class Rows(Measure):
    """Whether the rows that a detector means stay, and no others come up: in class, score and box.

    Of the thousands of candidates nearly all are background, so that decibels over all of them see no lost box.
    """

    kind = Kind.BOXES

    def __init__(self, name: str, nature: Nature) -> None:
        super().__init__(name, nature)
        self.matched = _Shares()
        self.columns: np.ndarray | None = None  # those with scores
        self.there: int | None = None  # which of them says whether there is anything

    def add(self, left: Arrays, right: Arrays) -> None:
        if not self.nature.boxes:  # the corners, which are looked at beside their scores
            return
        for (scores, corners), (its_scores, its_corners) in zip(self._rows(left), self._rows(right), strict=True):
            mine, its = scores.max(-1), its_scores.max(-1)
            same = (scores.argmax(-1) == its_scores.argmax(-1)) & _near(corners, its_corners, mine > CONFIDENT)
            kept = same & (np.minimum(mine, its) > CONFIDENT - DOUBT)
            meant = np.maximum(mine, its) > CONFIDENT
            certain = meant & (kept | (np.maximum(mine, its) > CONFIDENT + DOUBT))
            self.matched.add(float((kept & certain).sum()), int(certain.sum()))

    def _rows(self, outputs: Arrays) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(scores of what is no background [rows, classes], corners [rows, 4]) of each sample."""
        table = np.moveaxis(outputs[self.name].astype(np.float64), self.nature.axis, -1)
        table = table.reshape(len(table), -1, table.shape[-1])
        both = self.nature.boxes == self.name
        flat = table.reshape(-1, table.shape[-1])
        if self.columns is None:
            self.columns = np.flatnonzero((flat.min(0) >= 0) & (flat.max(0) <= 1)) if both else _foreground(flat)
        if self.there is None and both and len(self.columns):
            self.there = objectness(flat[:, self.columns], bool(self.columns[0] == 4))
        others = np.setdiff1d(np.arange(table.shape[-1]), self.columns)
        boxes = table[..., others] if both else outputs[self.nature.boxes].astype(np.float64)
        yield from zip(confidence(table[..., self.columns], self.there), boxes, strict=True)

    def figures(self, gate: Gate) -> Iterator[Figure]:
        yield from self.matched.figure("confident rows that stay", max(gate.min_agreement, 1 - 2 * gate.max_loss / 100))


def _foreground(rows: np.ndarray) -> np.ndarray:
    """The columns but for that of the background: where rows add up to 1, the one that most of them choose."""
    if rows.shape[1] < 2 or np.abs(rows.sum(1) - 1).max() > 1e-3:
        return np.arange(rows.shape[1])
    return np.delete(np.arange(rows.shape[1]), np.bincount(rows.argmax(1), minlength=rows.shape[1]).argmax())


def _near(a: np.ndarray, b: np.ndarray, meant: np.ndarray) -> np.ndarray:
    """Which boxes [rows, 4] are the same: by their overlap where they are corners, or a middle and sizes.

    Offsets that a detector still has to decode are near where they differ by less than half of what they spread.
    """
    if not meant.any():
        return np.ones(len(a), bool)
    if (a[meant, 2:] > a[meant, :2]).all():
        return _overlap(a, b) >= OVERLAP
    if (a[meant, 2:] > 0).all():
        return _overlap(_corners(a), _corners(b)) >= OVERLAP
    return np.asarray((np.abs(a - b) <= a.std(0) / 2).all(-1))


def _corners(a: np.ndarray) -> np.ndarray:
    return np.concatenate([a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2], -1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes in the same row, [rows]."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    either = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(-1) + np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


class Embeddings(Measure):
    """Direction, sample by sample, and which of the other samples are nearest."""

    kind = Kind.EMBEDDING

    def __init__(self, name: str, nature: Nature) -> None:
        super().__init__(name, nature)
        self.mine, self.its = list[np.ndarray](), list[np.ndarray]()

    def add(self, left: Arrays, right: Arrays) -> None:
        for kept, rows in ((self.mine, left[self.name]), (self.its, right[self.name])):
            wide = rows.astype(np.float64)
            wide = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
            kept.extend(wide[: MEMORY - len(kept)])

    def figures(self, gate: Gate) -> Iterator[Figure]:
        if not self.mine:
            return
        mine, its = np.stack(self.mine), np.stack(self.its)
        cosines = (mine * its).sum(1)
        low, high = chance.mean(cosines)
        verdict = chance.at_least(float(cosines.mean()), low, high, gate.min_cosine)
        yield Figure("cosine of a sample", float(cosines.mean()), low, high, gate.min_cosine, verdict)
        if len(mine) > 2 * NEIGHBOURS:
            yield from _neighbours(mine, its).figure("neighbours that stay", gate.min_agreement)


def _neighbours(mine: np.ndarray, its: np.ndarray) -> _Shares:
    """Of the nearest others of each sample those that are nearly as near in truth as the last of its own nearest."""
    found, near = _Shares(), mine @ mine.T
    np.fill_diagonal(near, -np.inf)
    after = its @ its.T
    np.fill_diagonal(after, -np.inf)
    bar = np.sort(near, 1)[:, -NEIGHBOURS]
    doubt = DOUBT * near[np.isfinite(near)].std()
    for row, chosen in enumerate(np.argsort(after, 1)[:, -NEIGHBOURS:]):
        found.add(float((near[row, chosen] >= bar[row] - doubt).sum()), NEIGHBOURS)
    return found


class Values(Measure):
    """Numbers that mean themselves: the error against how much they differ from sample to sample.

    A large part that is the same for all samples makes any error look small; what is left of it is what was predicted.
    """

    kind = Kind.VALUES

    def __init__(self, name: str, nature: Nature) -> None:
        super().__init__(name, nature)
        self.rows, self.errors = list[np.ndarray](), list[np.ndarray]()

    def add(self, left: Arrays, right: Arrays) -> None:
        a, b = left[self.name], right[self.name]
        if a.ndim in (1, 2) and len(self.rows) < MEMORY and a.size <= MEMORY * max(len(a), 1):
            wide = a.astype(np.float64).reshape(len(a), -1)
            self.rows.extend(wide)
            self.errors.extend(wide - b.astype(np.float64).reshape(len(a), -1))

    def figures(self, gate: Gate) -> Iterator[Figure]:
        if len(self.rows) < FEW:
            return
        rows, errors = np.stack(self.rows), np.stack(self.errors)
        spread, power = ((rows - rows.mean(0)) ** 2).sum(1), (rows**2).sum(1)
        if not spread.sum() > _SAME * power.sum():
            return
        low, high = chance.mean((errors**2).sum(1) / spread.mean())
        least = 10 ** (-gate.min_sqnr / 10)
        said = [float(-10 * np.log10(max(x, 1e-30))) for x in (high, float((errors**2).sum() / spread.sum()), low)]
        verdict = chance.at_most(float((errors**2).sum() / spread.sum()), low, high, least)
        yield Figure("decibels over what differs between samples", said[1], said[0], said[2], gate.min_sqnr, verdict)


MEASURES: dict[Kind, type[Measure]] = {m.kind: m for m in (Classes, Flags, Rows, Embeddings, Values)}
