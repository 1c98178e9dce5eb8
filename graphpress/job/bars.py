"""What the accuracy gate asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from graphpress.errors import BadRequest, nearest
from graphpress.job.natures import Kind


@dataclass(frozen=True)
class Gate:
    """What the rewritten model must reach on the held-out samples.

    Attributes:
        samples: How many samples are held out of the data (at most a fifth of it) and compared.
        min_sqnr: Signal to quantization noise of outputs that are values, in dB: 10 log10(sum a^2 / sum (a - b)^2).
        min_cosine: Cosine similarity of values and of embeddings.
        min_agreement: Share that stays: of choices among classes, of a detector's confident rows, of yes and no, of an
            embedding's neighbours.
        max_loss: Accuracy that may be lost, in points of 100: with labels what is measured, without them what the float
            model's own probabilities make of the changed choices.
        max_nats: Loss in nats that may be added at a position of a sequence.
        outputs: What outputs are, where they are to be judged as something else than what is found: ``classes``,
            ``flags``, ``boxes``, ``embedding`` or ``values`` by name.
    """

    samples: int = 64
    min_sqnr: float = 8.0
    min_cosine: float = 0.9
    min_agreement: float = 0.8
    max_loss: float = 5.0
    max_nats: float = 0.05
    outputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadRequest("at least one sample is needed", where="gate option 'samples'")
        for name in ("min_cosine", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadRequest("must lie between 0 and 1", where=f"gate option {name!r}")
        for name in ("max_loss", "max_nats"):
            if not getattr(self, name) >= 0:
                raise BadRequest("must be a number from 0 up", where=f"gate option {name!r}")
        if math.isnan(self.min_sqnr):
            raise BadRequest("must be a number of decibels", where="gate option 'min_sqnr'")
        for output, kind in self.outputs.items():
            if kind not in list(Kind):
                where = f"gate option 'outputs', {output!r}"
                raise BadRequest(
                    f"{kind!r} is nothing that an output can be", where=where, fix=nearest(kind, list(Kind))
                )
