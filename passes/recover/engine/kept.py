"""What a training keeps of what it has passed: the exported parameters, and the method's own state, at one step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graphpress.interrupts import held as uninterrupted
from graphpress.passes.recover.engine.average import Average
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import Facts, Saved, under
from graphpress.passes.recover.engine.updater import Updater
from graphpress.passes.recover.methods.base import Method

if TYPE_CHECKING:
    import torch


class Kept:
    """Copies of parameters by ``role:name``, by the rule of a selection.

    Attributes:
        step: After which step they were there.
        curve: (step, measure) of every measurement.
    """

    def __init__(self, method: Method, updaters: Mapping[str, Updater], selection: Selection) -> None:
        self.method, self.selection = method, selection
        self.updaters = {name: u for name, u in updaters.items() if u.role.export}
        self.step, self.curve = 0, list[tuple[int, float]]()
        self.best, self.said = self._copy(), method.state()
        self.average = Average(self._live(), selection.decay) if selection.by == "ema" else None

    @property
    def nothing_to_win(self) -> bool:
        """Whether the measure that chooses is as low as it can be."""
        return self.selection.by == "held" and self.step == 0 and dict(self.curve).get(0) == 0.0

    def after_step(self) -> None:
        if self.average is not None:
            self.average.update(self._live())

    @contextmanager
    def exported(self) -> Iterator[None]:
        """While it lasts, the parameters are those that would be exported now."""
        if self.average is None:
            yield
            return
        live = self._copy()
        self._put(self.average.tensors)
        try:
            yield
        finally:
            self._put(live)

    def consider(self, step: int, measure: float) -> None:
        """Put a measurement down, and keep what is there now if it is better, or nothing is compared."""
        lowest = min((x for _, x in self.curve), default=math.inf)
        compared = self.selection.compares and not math.isnan(measure)
        if not compared or measure < lowest:
            now = self._copy() if self.average is None else self.average.state()[0]
            self.best, self.step, self.said = now, step, self.method.state()
        self.curve.append((step, measure))

    def put(self) -> None:
        """Let the parameters, and the method, be as they were kept."""
        with uninterrupted():
            self._put(self.best)
            self.method.load(self.said)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it that is tensors, to be saved."""
        found = {f"b:{k}": t for k, t in self.best.items()} | {f"s:{k}": t for k, t in self.said.tensors.items()}
        if self.average is not None:
            found |= {f"e:{k}": t for k, t in self.average.state()[0].items()}
        return found

    def facts(self) -> Facts:
        """The rest."""
        curve = [(n, None if math.isnan(x) else x) for n, x in self.curve]
        averaged = 0 if self.average is None else self.average.number
        return {"step": self.step, "curve": curve, "said": self.said.facts, "averaged": averaged}

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Facts) -> None:
        """Go to what ``tensors`` and ``facts`` gave."""
        live = self._live()
        self.best = {k: t.to(live[k].device) for k, t in under(tensors, "b").items()}
        self.said = Saved(under(tensors, "s"), facts["said"])
        if self.average is not None:
            self.average.load(under(tensors, "e"), int(facts["averaged"]))
        self.step = int(facts["step"])
        self.curve = [(int(n), math.nan if x is None else float(x)) for n, x in facts["curve"]]

    def _live(self) -> dict[str, torch.Tensor]:
        return {f"{role}:{n}": p for role, u in self.updaters.items() for n, p in u.parameters.items()}

    def _copy(self) -> dict[str, torch.Tensor]:
        return {key: p.detach().clone() for key, p in self._live().items()}

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for role, updater in self.updaters.items():
            updater.put(under(tensors, role))
