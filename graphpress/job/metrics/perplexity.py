"""Perplexity of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from graphpress.errors import CalibrationError
from graphpress.job.metrics.base import NamedMetric
from graphpress.observe.binding import LABELS
from graphpress.runner import Runner

_AT_ONCE = 8  # sequences: the scores of all tokens at all positions are large


@dataclass
class Perplexity(NamedMetric):
    """Minus exp of the mean negative logarithm of the probability of the right token: minus, for less is better.

    Labels, [samples, length], are the right token at each position of the first output, [samples, length, tokens], of
    which negative ones do not count. Without labels it is the next token of the only whole-number input of two axes.
    """

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "minus perplexity"

    def __call__(self, runner: Runner) -> float:
        total = count = 0.0
        for scores, right in self._batches(runner):
            if scores.ndim != 3 or right.shape != scores.shape[:2]:
                raise CalibrationError(
                    f"tokens have shape {right.shape}, the first output {scores.shape}",
                    where="metric 'perplexity'", fix="It is for outputs [samples, length, tokens].",
                )  # fmt: skip
            if right.max(initial=0) >= scores.shape[2]:
                what = f"holds token {right.max()}, the first output has {scores.shape[2]}"
                raise CalibrationError(what, where="metric 'perplexity'", fix="Give the labels of this model.")
            counts = right >= 0
            chosen = np.take_along_axis(scores, np.maximum(right, 0)[..., None], 2)[..., 0]
            total += float((logsumexp(scores, axis=2) - chosen)[counts].sum())
            count += int(counts.sum())
        return -float(np.exp(total / max(count, 1)))

    def _batches(self, runner: Runner) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(scores, right tokens), float64 and whole numbers."""
        for rows in self.data.batches(_AT_ONCE, beside=True):
            feeds = {k: v for k, v in rows.items() if k != LABELS}
            scores = np.asarray(next(iter(runner(feeds).values())), np.float64)
            if LABELS in rows:
                yield scores, np.asarray(rows[LABELS])
                continue
            ids = [v for k, v in feeds.items() if v.dtype.kind in "iu" and v.ndim == 2]
            ids = ids if len(ids) == 1 else [v for k, v in feeds.items() if k in ("input_ids", "ids", "tokens")]
            if len(ids) != 1:
                what = f"metric {self.name!r} needs labels: it is not known which input holds the tokens"
                fix = f"Add an array {LABELS!r}: the right token at each position."
                raise CalibrationError(what, where="data", fix=fix)
            yield scores[:, :-1], ids[0][:, 1:]


METRIC = Perplexity
