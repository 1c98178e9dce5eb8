"""Word error rate of a speech recogniser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from graphpress.errors import BadRequest, CalibrationError
from graphpress.job.metrics.base import NamedMetric
from graphpress.runner import Runner

_AT_ONCE = 8
_SPACES = ("|", "▁", " ")  # what tokens write for the end or the beginning of a word


@dataclass
class WordErrors(NamedMetric):
    """100 minus the word error rate in percent, which counts words inserted, left out and mistaken, over all samples.

    The first output, [samples, frames, tokens], holds scores of tokens as CTC has them (Graves et al., ICML 2006): the
    best one of each frame is taken, what repeats is one, blanks are dropped. Labels are the transcripts, one a sample.

    Attributes:
        vocabulary: A JSON file: token -> number, as vocab.json of transformers.
        blank: Number of the blank token; None: that of <pad>, [PAD], <blank> or <s>.
    """

    vocabulary: str = ""
    blank: int | None = None

    name: ClassVar[str] = "wer"
    title: ClassVar[str] = "100 - word error rate %"

    def __call__(self, runner: Runner) -> float:
        said = [str(t) for t in self.labels("the transcripts, texts")]
        heard: list[str] = []
        for feeds in self.data.batches(_AT_ONCE):
            scores = next(iter(runner(feeds).values()))
            if scores.ndim != 3 or scores.shape[2] != len(self.tokens):
                what = f"the first output has shape {scores.shape}, the vocabulary {len(self.tokens)} tokens"
                raise CalibrationError(what, where="metric 'wer'", fix="It is for outputs [samples, frames, tokens].")
            heard += [self._text(row) for row in scores.argmax(2)]
        wrong = sum(distance(a.split(), b.split()) for a, b in zip(said, heard, strict=False))
        words = sum(len(a.split()) for a in said[: len(heard)])
        return 100.0 - 100.0 * wrong / max(words, 1)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Text of each token.

        Raises:
            BadRequest: The vocabulary is not given, or is none.
        """
        if not self.vocabulary:
            raise BadRequest("needs the tokens", where="metric 'wer'", fix="Write wer{vocabulary=vocab.json}.")
        try:
            told = json.loads(Path(self.vocabulary).read_text(encoding="utf-8"))
            return {int(n): str(t) for t, n in told.items()}
        except (OSError, ValueError, AttributeError, TypeError) as e:
            raise BadRequest("is no JSON of tokens and numbers", where=self.vocabulary) from e

    def _text(self, best: np.ndarray) -> str:
        blank = self.blank
        if blank is None:
            numbers = {t: n for n, t in self.tokens.items()}
            blank = next((numbers[t] for t in ("<pad>", "[PAD]", "<blank>", "<s>") if t in numbers), 0)
        kept = [int(t) for t, before in zip(best, [None, *best[:-1]], strict=True) if t != before and t != blank]
        text = "".join(self.tokens[t] for t in kept)
        for mark in _SPACES:
            text = text.replace(mark, " ")
        return text


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words must be inserted, left out or replaced to make one of the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


METRIC = WordErrors
