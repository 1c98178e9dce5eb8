"""Weights on levels spaced by a power that is learned with them (NUPES, arXiv:2308.05600)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphpress.passes.quantizers import power
from graphpress.passes.quantizers.codebook import tables_of
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.learned import LearnedRounding
from graphpress.types import Storage

if TYPE_CHECKING:
    import torch

_FLOOR = 1e-6  # of the range: below that nothing is raised to a power, so that no gradient is infinite
_APART = 1e-6  # from 1/2, whose levels are squares, the lowest of them too
_NEAR = 1e-3  # likewise of codes that are not whole


class PoweredRounding(LearnedRounding):
    """``sign(w) (|w| / reach)^a`` in steps, plus an offset of each element, rounded; then back by ``1 / a``.

    The offset is not held to one step, so a code may become any other. One exponent a layer, a reach for each scale.
    Rounding passes gradients on, as steep as the levels half a step to both sides are apart. Powers are exponentials
    of logarithms that never begin at 0, where they have no slope. The lowest code, which has no positive one beside
    it, is not used.
    """

    def __init__(self, layer: QuantizedLayer, observer: str, device: str) -> None:
        import torch

        super().__init__(layer, observer, device)
        book, low = self.start.tables["book"], Storage.of(self.scheme.storage).low
        self.low = low
        first = _exponent(book.cpu().numpy()[-low:], self.scheme.qmax)
        if observer != "keep":  # anew, without the lowest code
            how = replace(self.scheme, observer=observer)
            self.start = self.quantizer.fit(self.weight, how, tables=self._tables(first + _APART))
            book = self.start.tables["book"]
        self.largest = self.start.scale * book[self.scheme.qmax - low]
        self.span = torch.nn.Parameter(torch.zeros_like(self.largest))
        self.logarithm = torch.nn.Parameter(torch.tensor(math.log(first), device=self.weight.device))
        self.offset = torch.nn.Parameter(torch.zeros_like(self.weight))

    @property
    def exponent(self) -> torch.Tensor:
        """Of the layer."""
        return self.logarithm.exp()

    @property
    def reach(self) -> torch.Tensor:
        """What the highest code stands for, of each element."""
        largest = replace(self.start, scale=self.largest * self.span.exp())
        found: torch.Tensor = self.quantizer.spread(largest, tuple(self.weight.shape), self.scheme).scale
        return found

    def places(self) -> torch.Tensor:
        """Codes before they are rounded."""
        size = (self.weight.abs() / self.reach).clamp_min(_FLOOR).log()
        raised = self.weight.sign() * (self.exponent * size).exp() * self.scheme.qmax
        return (raised + self.offset).clamp(-self.scheme.qmax, self.scheme.qmax)

    def tensor(self, hard: bool) -> torch.Tensor:
        if hard:
            return self._values(*self.exported())
        places = self.places()
        codes = places.detach().round()
        above, below = (self._level((codes + half).clamp(-self.scheme.qmax, self.scheme.qmax)) for half in (0.5, -0.5))
        moved = (above - below).detach() * (places - places.detach())
        found: torch.Tensor = (self._level(codes) + moved) * self.reach
        return found if self.kept is None else found * self.kept

    def _level(self, codes: torch.Tensor) -> torch.Tensor:
        """The share of the range that codes, whole or not, stand for."""
        share = (codes.abs() / self.scheme.qmax).clamp_min(_NEAR)
        found: torch.Tensor = codes.sign() * (share.log() / self.exponent).exp()
        return found

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return {"offset": self.offset, "exponent": self.logarithm, "span": self.span}

    def exported(self) -> tuple[torch.Tensor, QParams]:
        codes = self.places().detach().round().int()
        tables = self._tables(self._rounded_exponent())
        scale = self.largest * self.span.detach().exp() / tables["book"][self.scheme.qmax - self.low]
        return codes, replace(self.start, scale=scale, tables=tables)

    def _tables(self, exponent: float) -> dict[str, torch.Tensor]:
        return tables_of(*power.levels(min(exponent, power.RANGE[1]), self.scheme), self.scheme, self.weight)

    @property
    def tables(self) -> Mapping[str, np.ndarray]:
        return {n: t.cpu().numpy() for n, t in self.exported()[1].tables.items()}

    def _rounded_exponent(self) -> float:
        low, high = power.RANGE
        return min(max(round(float(self.exponent.detach()), 6), low), high)


def _exponent(levels: Any, qmax: int) -> float:
    """What spaces the levels of the codes from 0 to ``qmax``, as well as they say."""
    codes = np.arange(1, qmax)
    if not len(codes):
        return 1.0
    found = float(np.mean(np.log(codes / qmax) / np.log(np.minimum(levels[1:qmax] / levels[qmax], 1 - 1e-6))))
    low, high = power.RANGE
    return min(max(found, low), high)
