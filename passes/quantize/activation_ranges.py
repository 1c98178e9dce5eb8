"""Ranges of the static activations of a plan: what shares a scale, what to observe, what cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Skip
from graphpress.observe.collect import Calibration, collect
from graphpress.observe.inner import InnerValues
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.step_tables import StepTables
from graphpress.passes.quantizers.affine import from_range
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.types import Plan, Role, Site

SATURATED = 0.01  # the share of clipped elements from which on it is worth a remark


def static_sites(plan: Plan) -> list[Site]:
    """Sites whose range comes from data."""
    return [s for s, v in plan.items() if s.role is not Role.WEIGHT and not v.dynamic]


def unseen(model: ir.Model, ctx: Context) -> dict[str, str] | None:
    """Nodes of bodies that repeat, by name, that read or give a value which the data does not show, with the reason.

    None where there is no data, or nothing to run it on.

    Raises:
        CalibrationError: The data does not fit the model.
    """
    nodes = operators.body(model)
    inside = operators.repeated(nodes)
    if not inside:
        return {}
    if ctx.data is None or ctx.run is None:
        return None
    touched = {
        node.name or "": [v.name or "" for v in (*(node.inputs[s] for s in slots), node.outputs[0]) if v is not None]
        for node in nodes
        if node.name in inside and node.op_type in operators.WEIGHTS and (slots := _computed(node))
    }
    names = {name for values in touched.values() for name in values}
    hidden = InnerValues.of(model, names, ctx.run, trial=ctx.data.bind(model).batches(1)).unobserved
    lost = {node: next((hidden[v] for v in values if v in hidden), "") for node, values in touched.items()}
    return {node: why for node, why in lost.items() if why}


def _computed(node: ir.Node) -> list[int]:
    """Slots of what an operator with weights computes with them."""
    roles = operators.operands(node)
    return [] if isinstance(roles, str) else [slot for slot, role in roles.items() if role is Role.ACTIVATION]


@dataclass
class Activations:
    """Groups of values with one scale: each value with those that it is tied to, directly or through others.

    Attributes:
        plan: What is to be written.
        values: The value of each site.
        tables: What chooses between scales of each step of a diffusion model, where that is asked for.
        broken: Nodes that cannot be quantized, with the reason.
        remarks: Sites whose range leaves out much of what was seen.
    """

    plan: Plan
    values: Mapping[Site, ir.Value]
    tables: StepTables | None = None
    broken: dict[str, str] = field(default_factory=dict)
    remarks: list[Skip] = field(default_factory=list)
    _found: Calibration = field(default_factory=Calibration)
    _by_step: list[Calibration] = field(default_factory=list)
    _parent: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tie in self.plan.ties:
            first, *rest = sorted(tie)
            for site in rest:
                self._parent[self.group(site)] = self.group(first)

    def group(self, site: Site) -> ir.Value:
        """The value that stands for all that share a scale with that of ``site``."""
        value = self.values[site]
        while (parent := self._parent.get(value, value)) is not value:
            value = parent
        return value

    def observe(self, model: ir.Model, ctx: Context, batch_size: int | None) -> None:
        """Find the ranges, and which nodes have none.

        Raises:
            BadRequest: There is nothing to run, or nothing to run it on.
            CalibrationError: The data does not fit the model.
        """
        sites = static_sites(self.plan)
        if not sites:
            return
        data = ctx.need(
            "data", "quantize", "static activations need calibration data",
            "choose a recipe with dynamic or float activations",
        )  # fmt: skip
        run = ctx.need("run", "quantize")
        moved = self._moved()
        schemes = {v.name or "": self.plan[s] for s in sites if (v := self.values[s]) not in moved}
        calibrate = partial(ctx.calibrate or collect, batch_size=batch_size, progress=ctx.progress)
        self._found = calibrate(model, schemes, data, run)
        if self.tables is not None:
            self._by_step = [calibrate(model, schemes, part, run) for part in self.tables.steps.split(data, model)]
        spans = self._spans(self._found)
        for site in sites:
            if why := self._unusable(self.values[site].name or "", self.group(site) in spans):
                self.broken.setdefault(site.node, why)
        self._remark(sites)

    def _remark(self, sites: list[Site]) -> None:
        seen = {self.values[s].name or "": s for s in reversed(sites)}  # the first site of each value
        for name, site in seen.items():
            found = self._found.get(name)
            if found is not None and found.saturated > SATURATED:
                why = f"{found.saturated:.1%} of {name!r} lies outside the range chosen by {self.plan[site].observer}"
                self.remarks.append(Skip(str(site), why))

    def _moved(self) -> set[ir.Value]:
        """Values that data movement takes from another of their group, so that they lie within its range."""
        found = set()
        for tie in self.plan.ties:
            sources = {s.node for s in tie if s.role is Role.ACTIVATION}
            outs = [self.values[s] for s in tie if s.role is Role.OUTPUT and s.node in sources]
            found |= {v for v in outs if (node := v.producer()) is not None and operators.moved(node)}
        return found

    def _unusable(self, name: str, has_span: bool) -> str | None:
        if name in self._found.unobserved:
            return f"{name!r} has no range: {self._found.unobserved[name]}"
        if not has_span:
            return f"{name!r} has no range, as nothing that it is moved from has one"
        seen = self._found.get(name)
        if seen is not None and seen.nonfinite:
            return f"{seen.nonfinite} of {seen.count} elements of {name!r} were NaN or infinite"
        return f"{name!r} was zero on all calibration data" if seen is not None and seen.dead else None

    def _spans(self, found: Calibration) -> dict[ir.Value, tuple[float, float]]:
        """The range of each group: all ranges of its values together."""
        spans: dict[ir.Value, tuple[float, float]] = {}
        for site in static_sites(self.plan):
            seen = found.get(self.values[site].name or "")
            if seen is not None:
                lo, hi = spans.get(self.group(site), (0.0, 0.0))
                spans[self.group(site)] = min(lo, seen.lo), max(hi, seen.hi)
        return spans

    def histograms(self, plan: Plan) -> dict[str, dict[str, Any]]:
        """What was seen at each static site of ``plan``, and the range that its scale keeps."""
        spans, found = self._spans(self._found), {}
        for site in static_sites(plan):
            seen = self._found.get(self.values[site].name or "")
            if seen is not None:
                lo, hi = spans[self.group(site)]
                found[str(site)] = {
                    "counts": list(seen.bins), "start": seen.start, "width": seen.width, "min": seen.minimum,
                    "max": seen.maximum, "lo": lo, "hi": hi,
                }  # fmt: skip
        return found

    def params(self, plan: Plan) -> dict[Site, QParams]:
        """Scale and zero point of each static site of ``plan``, which is what is left of ``self.plan``; one for each
        range of steps where a table holds them."""
        spans, by_step = self._spans(self._found), [self._spans(found) for found in self._by_step]
        single, found = self.single(), {}
        for site in static_sites(plan):
            group = self.group(site)
            lo, hi = ends = spans[group]
            if self.tables is not None and group not in single:
                lo, hi = np.array([step.get(group, ends) for step in by_step]).T
            found[site] = from_range(lo, hi, plan[site])
        return found

    def single(self) -> set[ir.Value]:
        """Groups with a value that no table of steps fits."""
        if self.tables is None:
            return set()
        return {self.group(s) for s in static_sites(self.plan) if self.tables.unfit(self.values[s])}
