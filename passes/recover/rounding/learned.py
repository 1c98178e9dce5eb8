"""How one weight is rounded, as something that can be learned: between two neighbours, or by a shift of each element.

Tensors have the shape of the stored weight; number formats come in through their contract alone, so that any of them
works whose codes ascend with their numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphpress.passes.quantizers.granules import arranged, granules
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.quantizers.row_ranges import extremes
from graphpress.passes.recover.rounding.grids import QuantizedLayer

if TYPE_CHECKING:
    import torch

ZETA, GAMMA = 1.1, -0.1  # the ends of the stretched sigmoid (arXiv:2004.10568, eq. 23)


class LearnedRounding(ABC):
    """The weight of a layer, in numbers of its format.

    Args:
        layer: Not changed before ``write``.
        observer: How its scales are found: ``keep`` those of the graph, or as ``quantize`` has it.
        device: Where tensors lie, as torch calls it.
    """

    def __init__(self, layer: QuantizedLayer, observer: str, device: str) -> None:
        import torch

        self.layer, self.quantizer, self.scheme = layer, layer.quantizer, layer.scheme
        stored = np.ascontiguousarray(layer.stored(layer.weight()))
        self.weight = torch.from_numpy(stored).to(device)
        self.fitted = layer.params() if observer == "keep" else self._fitted(stored, observer)
        self.start = self._on(self.fitted)
        self.kept = self.weight != 0 if layer.pruned else None
        near = self.codes(self.weight, self.start)
        lower = near - (self._values(near, self.start) > self.weight).int()
        ends = self.scheme.qmin, self.scheme.qmax
        self.lower, self.upper = lower.clamp(*ends), (lower + 1).clamp(*ends)

    @property
    def name(self) -> str:
        """Of the initializer."""
        return self.layer.layer.weight_value.name or ""

    @property
    def tables(self) -> Mapping[str, np.ndarray]:
        """Those that come out."""
        return self.fitted.tables

    @abstractmethod
    def tensor(self, hard: bool) -> torch.Tensor:
        """The weight as it is now; ``hard``: as it would come out, else with gradients for what is learned."""

    @abstractmethod
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """What is learned, by kind."""

    @abstractmethod
    def exported(self) -> tuple[torch.Tensor, QParams]:
        """(codes, parameters) that would come out."""

    def write(self, layer: QuantizedLayer) -> None:
        """Put what comes out into a graph.

        Args:
            layer: The layer in that graph.
        """
        codes, params = self.exported()
        known = layer.params()
        plain = params.mapped(lambda tensor: tensor.detach().cpu().numpy().reshape(known.scale.shape))
        whole = plain.zero_point.astype(np.int32)
        plain = layer.cast(replace(plain, zero_point=whole, tables=self.tables))
        weight = self.quantizer.dequantize(codes.cpu().numpy().astype(np.int32), plain, self.scheme)
        if self.kept is not None:
            weight = np.where(self.kept.cpu().numpy(), weight, np.float32(0))
        zero = plain.zero_point.astype(known.zero_point.dtype)
        layer.write(layer.rows(weight), replace(plain, zero_point=zero))

    def codes(self, x: torch.Tensor, params: QParams) -> torch.Tensor:
        """int32, of the nearest numbers."""
        return self.quantizer.quantize(x, params, self.scheme).int()

    def _values(self, codes: torch.Tensor, params: QParams) -> torch.Tensor:
        found: torch.Tensor = self.quantizer.dequantize(codes, params, self.scheme)
        return found if self.kept is None else found * self.kept

    def _fitted(self, stored: np.ndarray, observer: str) -> QParams:
        scheme = replace(self.scheme, observer=observer)
        return self.layer.cast(self.quantizer.fit(stored, scheme, tables=self.layer.params().tables))

    def _on(self, params: QParams) -> QParams:
        import torch

        def put(array: Any, kind: type) -> torch.Tensor:
            return torch.from_numpy(np.array(array).astype(kind)).to(self.weight.device)

        tables = {n: put(t, np.float32) for n, t in params.tables.items()}
        beside = {n: put(a, a.dtype.type) for n, a in params.beside.items()}
        return QParams(put(params.scale, np.float32), put(params.zero_point, np.int32), tables, beside)


class SoftRounding(LearnedRounding):
    """Each element between the number below and the one above it, as a stretched sigmoid says (AdaRound).

    With ``steps`` the scale is learned too: the codes of both neighbours are fixed, so that the weight is linear in it
    (GENIE-M).
    """

    def __init__(self, layer: QuantizedLayer, observer: str, device: str, steps: bool = False) -> None:
        import torch

        super().__init__(layer, observer, device)
        below, above = (self._values(c, self.start) for c in (self.lower, self.upper))
        self.free = above > below
        share = torch.where(self.free, (self.weight - below) / (above - below).clamp_min(1e-30), 0.0).clamp(0, 1)
        self.logit = torch.nn.Parameter(torch.logit((share - GAMMA) / (ZETA - GAMMA)))
        self.scale = torch.nn.Parameter(self.start.scale.clone(), requires_grad=steps)

    @property
    def height(self) -> torch.Tensor:
        """h: 0 the number below, 1 the one above."""
        stretched = self.logit.sigmoid() * (ZETA - GAMMA) + GAMMA
        return stretched.clamp(0, 1)

    def tensor(self, hard: bool) -> torch.Tensor:
        params = replace(self.start, scale=self.scale)
        if hard:
            return self._values(self.exported()[0], params).detach()
        below, above = (self._values(c, params) for c in (self.lower, self.upper))
        return below + self.height * (above - below)

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        steps = {"scale": self.scale} if self.scale.requires_grad else {}
        return {"rounding": self.logit, **steps}

    def exported(self) -> tuple[torch.Tensor, QParams]:
        import torch

        codes = torch.where(self.height.detach() >= 0.5, self.upper, self.lower)
        return codes, replace(self.start, scale=self.scale.detach())

    def undecided(self, beta: float) -> torch.Tensor:
        """Sum of 1 - |2h - 1|^beta: 0 where every element is one of its neighbours."""
        return ((1 - (2 * self.height - 1).abs().pow(beta)) * self.free).sum()


class ShiftedRounding(LearnedRounding):
    """Each element shifted by up to half a step before it is rounded, and the range of each scale shrunk (AutoRound).

    Rounding passes gradients on. The range is that of the weights times ``reach``, at first what the observer found.
    """

    def __init__(self, layer: QuantizedLayer, observer: str, device: str, least: float) -> None:
        import torch

        super().__init__(layer, observer, device)
        self.asymmetric = not self.scheme.symmetric and "zero_point" in self.quantizer.decode.operands
        stored = self.weight.cpu().numpy()
        self.widest = self._on(self._fitted(stored, "minmax")).scale
        rows = granules(self.weight, self.scheme)
        ends = extremes(rows.reshape(-1, rows.shape[-1]))
        self.low, self.high = (arranged(e, rows.shape, self.scheme) for e in ends)
        first = self.start.scale / self.widest
        self.limits = first.clamp_max(least), first.clamp_min(1.0)
        self.reach = torch.nn.Parameter(first.clone())
        self.depth = torch.nn.Parameter(first.clone(), requires_grad=self.asymmetric)
        self.shift = torch.nn.Parameter(torch.zeros_like(self.weight))
        lower = torch.where(self.upper > self.lower, self.lower, (self.lower - 1).clamp_min(self.scheme.qmin))
        upper = torch.where(self.upper > lower, self.upper, lower + 1)
        above, below = (self.quantizer.dequantize(c, self.start, self.scheme) for c in (upper, lower))
        self.gap = (above - below) / self.quantizer.spread(self.start, self.weight.shape, self.scheme).scale

    def params(self) -> QParams:
        """As they are now, with gradients; the zero point is a float."""
        if not self.asymmetric:
            return replace(self.start, scale=self.reach * self.widest)
        low, high = self.depth * self.low, self.reach * self.high
        levels = self.scheme.qmax - self.scheme.qmin
        scale = ((high - low) / levels).clamp_min(float(np.finfo(np.float32).tiny))
        zero = (self.scheme.qmin - low / scale).clamp(self.scheme.qmin, self.scheme.qmax)
        return replace(self.start, scale=scale, zero_point=zero + (zero.round() - zero).detach())

    def shifted(self, params: QParams) -> torch.Tensor:
        """The weights before they are rounded."""
        step = self.quantizer.spread(params, self.weight.shape, self.scheme).scale
        return self.weight + self.shift * self.gap * step

    def tensor(self, hard: bool) -> torch.Tensor:
        if hard:
            codes, params = self.exported()
            return self._values(codes, params)
        params = self.params()
        x, fixed = self.shifted(params), replace(params, zero_point=params.zero_point.detach())
        found: torch.Tensor = self.quantizer.straight_through(x, fixed, self.scheme)
        if self.asymmetric:  # what is clipped moves with the zero point, the rest does not
            spread = self.quantizer.spread(params, self.weight.shape, self.scheme)
            low, high = self.quantizer.ends(fixed, self.weight.shape, self.scheme)
            outside = (x.detach() <= low.detach()) | (x.detach() >= high.detach())
            found = found - (spread.zero_point - spread.zero_point.detach()) * spread.scale.detach() * outside
        return found if self.kept is None else found * self.kept

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        found = {"shift": self.shift, "reach": self.reach}
        return found | {"depth": self.depth} if self.asymmetric else found

    def exported(self) -> tuple[torch.Tensor, QParams]:
        import torch

        with torch.no_grad():
            params = self.params()
            return self.codes(self.shifted(params), params), params
