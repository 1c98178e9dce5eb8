"""``dfq-boxes``: calibration pictures for a detector, made to show boxes that it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.student import Excerpt, Module, build
from graphpress.passes.recover.inputs.box_labels import Found, Labels, overlaps
from graphpress.passes.recover.inputs.distilled_inputs import Distilled, Pixels, Search, StatisticsSource
from graphpress.passes.recover.inputs.learned import Learned
from graphpress.passes.recover.inputs.synthesis import Synthesis

if TYPE_CHECKING:
    import torch

_DETECT, _STATISTICS, _FIRST, _SMOOTH = 0.5, 0.01, 2.0, 5e-4  # weights of the loss
_SETTLED, _LOOKS = 0.32, 50  # share of the steps before labels change, and how often they may
_POSITIVE, _NEGATIVES = 0.5, 3  # IoU of a candidate that shows a target, and candidates that show none for each


@dataclass(frozen=True)
class DfqBoxes(Synthesis):
    """Make calibration pictures of which a detector says that they hold boxes (dfq-toolkit, stage 1: task-specific
    zero-shot quantization); the graph stays as it is.

    Each picture begins as noise with one random box as its label. Adam moves it until the detector finds the label and
    the values that BatchNormalization reads have the mean and the variance that training saw. From a third of the steps
    on the labels follow the detector: what it finds besides is added, what it does not find is dropped. What
    ``Synthesis`` says holds.

    Attributes:
        scores: The output with the scores of candidates, [samples, candidates, classes], from 0 to 1; "": found by
            its shape.
        boxes: The output with their corners (x1, y1, x2, y2) in shares of the picture, [samples, candidates, 4].
        background: The class that means nothing is there; -1: none does.
    """

    name: ClassVar[str] = "dfq-boxes"
    iterations: int = 2500
    rate: float = 0.2
    scores: str = ""
    boxes: str = ""
    background: int = 0

    def distil(
        self, model: ir.Model, ctx: Context, report: PassReport, known: list[Learned],
        sources: list[StatisticsSource], batches: int,
    ) -> Distilled:  # fmt: skip
        heads = self._heads(model)
        module = build(model, ctx, Excerpt([*dict.fromkeys(k.value for k in known), *heads]))
        search = Search(self.iterations, self.rate, self.patience, False, self.seconds or math.inf)
        made = _Made(module, heads, self.background, known, search, self.where)
        steps = iter(ctx.progress(range(batches * self.iterations), "distilling inputs", batches * self.iterations))
        for i in range(batches):
            made.batch(sources, ctx.seed + i, steps)
        report.metrics["boxes"] = float(made.boxes)
        arrays = {s.name: np.concatenate([a[s.name] for a in made.arrays]) for s in sources}
        first, last = (float(np.mean(part)) for part in zip(*made.losses, strict=True))
        return Distilled(arrays, first, last, batches * self.iterations)

    def _heads(self, model: ir.Model) -> tuple[str, str]:
        """(scores, boxes)."""
        outputs = {v.name or "": list(v.shape or ()) for v in model.graph.outputs}
        found = [
            (s, b)
            for b, box in outputs.items()
            for s, score in outputs.items()
            if s != b and len(box) == len(score) == 3 and box[2] == 4 and box[1] == score[1]
            if self.scores in ("", s) and self.boxes in ("", b)
        ]
        if len(found) != 1:
            what = "two outputs with scores [samples, candidates, classes] and corners [samples, candidates, 4]"
            fix = "Name them in options scores and boxes, or use zeroq."
            raise BadRequest(f"it needs {what}, and finds {len(found)} such pairs", where=self.where, fix=fix)
        return found[0]


@dataclass
class _Made:
    """Pictures, batch after batch."""

    module: Module
    heads: tuple[str, str]
    background: int
    known: Sequence[Learned]
    search: Search
    where: str
    arrays: list[dict[str, np.ndarray]] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    boxes: int = 0

    def batch(self, sources: Sequence[StatisticsSource], seed: int, steps: Iterator[int]) -> None:
        """Make one."""
        import torch

        rng = np.random.default_rng(seed)
        painter = Pixels(self.module, sources, self.search, torch.Generator().manual_seed(seed))
        count, every = self.search.iterations, max(self.search.iterations // _LOOKS, 1)
        labels: list[Labels] = []
        losses = []
        for i in range(count):
            painter.zero_grad()
            given = painter.inputs()
            values = self.module(given)
            scores, corners = self._candidates(values)
            if not labels:
                labels = [Labels.drawn(rng, scores.shape[-1]) for _ in scores]
            elif i >= _SETTLED * count and i % every == 0:
                seen = [t.detach().numpy() for t in (scores, corners)]
                labels = [t.adapted(Found.of(s, c)) for t, s, c in zip(labels, *seen, strict=True)]
            loss = _DETECT * detection(scores, corners, labels) + self._statistics(values) + _smooth(given)
            if not math.isfinite(loss.item()):
                raise BadRequest(f"the loss is {loss.item()} at iteration {i}", where=self.where, fix="Lower the rate.")
            loss.backward()
            painter.step(loss.item())
            losses.append(loss.item())
            next(steps, None)
        self.arrays.append(painter.arrays())
        self.losses.append((losses[0], losses[-1]))
        self.boxes += sum(len(t.classes) for t in labels)

    def _candidates(self, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of classes that are something, and corners."""
        scores, corners = (values[name] for name in self.heads)
        low, high = scores.min().item(), scores.max().item()
        if low < 0 or high > 1:
            what = f"scores go from {low:.3g} to {high:.3g}, not from 0 to 1"
            raise BadRequest(what, where=f"{self.where}, output {self.heads[0]!r}", fix="Use zeroq.")
        if corners.abs().median().item() > 2:
            what = "corners are no shares of the picture"
            raise BadRequest(what, where=f"{self.where}, output {self.heads[1]!r}", fix="Use zeroq.")
        if not -1 <= self.background < scores.shape[-1]:
            what = f"there are {scores.shape[-1]} classes, none of which is {self.background}"
            raise BadRequest(what, where=f"{self.where}, option 'background'")
        keep = [i for i in range(scores.shape[-1]) if i != self.background]
        return scores[..., keep], corners

    def _statistics(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
        """Distances of mean and variance, not squared; those of the first layer count for more."""
        import torch

        total: torch.Tensor | float = 0.0
        for i, k in enumerate(self.known):
            x = values[k.value]
            var, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
            wanted = [torch.tensor(a).float() for a in (k.mean, k.std**2)]
            apart = torch.linalg.vector_norm(mean - wanted[0]) + torch.linalg.vector_norm(var - wanted[1])
            total = total + (_STATISTICS + _FIRST * (i == 0)) * apart
        return total


def detection(scores: torch.Tensor, corners: torch.Tensor, labels: Sequence[Labels]) -> torch.Tensor:
    """What a detector misses of labels, a mean over pictures: log likelihood of classes, and 1 - IoU of the boxes.

    A candidate shows the target that it overlaps most, from half; of each target the best one does in any case. Of the
    others the three times as many that are most sure of something count (as in SSD, arXiv:1512.02325).

    Args:
        scores: [pictures, candidates, classes], from 0 to 1, without the background.
        corners: [pictures, candidates, 4], shares of the picture.
        labels: One for each picture.
    """
    import torch

    terms = []
    for score, box, label in zip(scores, corners, labels, strict=True):
        shares = overlaps(box.detach().numpy().astype(np.float64), label.corners)
        target = np.where(shares.max(1) >= _POSITIVE, shares.argmax(1), -1)
        target[shares.argmax(0)] = np.arange(shares.shape[1])
        (shown,) = np.nonzero(target >= 0)
        which = target[shown]
        clamped = score.clamp(1e-6, 1 - 1e-6)
        hit = -clamped[shown, label.classes[which]].log().mean()
        rest = torch.from_numpy(np.flatnonzero(target < 0))
        misses = -(1 - clamped[rest].amax(1)).log()
        wrong = misses.topk(min(_NEGATIVES * len(shown), len(rest))).values.sum() / max(len(shown), 1)
        wanted = torch.from_numpy(label.corners[which]).to(box.dtype)
        terms.append(hit + wrong + (1 - _overlap(box[shown], wanted)).mean())
    return torch.stack(terms).mean()


def _overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union, pair by pair."""
    import torch

    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp_min(0).prod(1)
    sizes = [(x[:, 2:] - x[:, :2]).clamp_min(0).prod(1) for x in (a, b)]
    return both / (sizes[0] + sizes[1] - both).clamp_min(1e-9)


def _smooth(given: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
    """How unlike neighbours are: the root of the squared differences, of pictures."""
    import torch

    pictures = [x for x in given.values() if x.ndim == 4]
    norms = (torch.linalg.vector_norm(torch.diff(x, dim=axis)) for x in pictures for axis in (2, 3))
    return _SMOOTH * sum(norms, start=torch.zeros(()))
