"""One operator alone, float and in each format: what sensitivity and cost are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.graph.cut import cut
from graphpress.graph.grid import is_dequantize, is_quantize
from graphpress.job.natures import Nature
from graphpress.keys import STAGE
from graphpress.observe.collect import Calibration, collect
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.space import Schemes, Space
from graphpress.passes.allocate.watched import watch
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.runner import Runner
from graphpress.types import Plan, Role, Scheme, Stage

CODES_OF = "graphpress.codes_of"  # on an input of a bare part: the float value that its codes stand for


@dataclass(frozen=True, eq=False)
class Part:
    """An operator with the Relu or Clip that quantization takes into it.

    Attributes:
        node: Its name.
        inputs: Computed values that it reads.
        outputs: What it gives to others.
        model: These alone; constants are shared with the whole model.
    """

    node: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: ir.Model


@dataclass
class Parts:
    """The parts of a space, and what calibration found at their edges.

    Attributes:
        space: What to choose from.
        ctx: Runtimes and data.
        natures: Of the outputs that are compared; None: found when they are asked for.
        parts: By operator.
    """

    space: Space
    ctx: Context
    natures: Mapping[str, Nature] | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    _made: dict[tuple[str, str], ir.Model | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.space.model.graph:
            if node.name in self.space.own or node.name in self.space.light:
                self.parts[node.name] = part(self.space.model, node)

    @cached_property
    def compared(self) -> Mapping[str, Nature]:
        """The natures of the outputs that are compared."""
        return watch(self.space.model, self.ctx).natures if self.natures is None else self.natures

    def schemes(self, node: str, name: str) -> Schemes:
        """What a format writes at an operator, with weights or without."""
        return self.space.own[node][name] if node in self.space.own else self.space.light[node]

    @cached_property
    def ranges(self) -> Calibration:
        """Ranges of all calibrated values of all formats, from one pass over the data."""
        wanted: dict[str, Scheme] = {}
        for node in self.space.model.graph:
            known = self.space.own.get(node.name or "", {"": self.space.light.get(node.name or "", {})})
            for sites in known.values():
                wanted |= _calibrated(node, sites)
        if not wanted or self.ctx.data is None or self.ctx.run is None:
            return Calibration()
        calibrate = self.ctx.calibrate or collect
        return calibrate(self.space.model, wanted, self.ctx.data, self.ctx.run, progress=self.ctx.progress)

    def quantized(self, node: str, name: str) -> ir.Model | str:
        """The part of ``node`` with Q/DQ in format ``name``, or why it cannot be written (degenerate scales)."""
        key = node, name
        if key not in self._made:
            self._made[key] = self._quantized(node, name)
        return self._made[key]

    def _quantized(self, node: str, name: str) -> ir.Model | str:
        model = self.parts[node].model
        return model if name == FLOAT else self.written(model, self.schemes(node, name))

    def written(self, model: ir.Model, schemes: Schemes) -> ir.Model | str:
        """A copy of some parts of the model with Q/DQ by ``schemes``, or why they cannot be written."""
        report, clone = PassReport(), model.clone()
        ctx = replace(self.ctx, calibrate=lambda _, values, *a, **k: _lookup(self.ranges, values), data=self.ctx.data)
        ApplyPlan(Plan(schemes)).run(clone, ctx, report)
        return report.skips[0].why if report.skips else clone

    def run(self, node: str, name: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the part gives in a format, computed as it is written.

        Not by the fast runtime: ONNX Runtime 1.32 fails when it folds Q -> DQ of a 2-bit constant.
        """
        execute, model = self.ctx.oracle or self.ctx.need("run", "allocate"), self.quantized(node, name)
        assert isinstance(model, ir.Model)
        runner = execute(model)
        return runner({n: values[n] for n in runner.input_names})

    def runner(self, model: ir.Model) -> Runner:
        """A whole folded model: on the target, or where there is none, as it is written."""
        build = self.ctx.deploy or self.ctx.oracle or self.ctx.need("run", "allocate")
        return build(model)

    @cached_property
    def _fold(self) -> Pipeline:
        return Pipeline(Recipe.load("fold").passes, check_numbers=False)

    def folded(self, node: str, name: str) -> ir.Model:
        """The part as it is saved: with integers for weights and bias."""
        model = self.quantized(node, name)
        assert isinstance(model, ir.Model)
        return model if name == FLOAT else self.fold(model)

    def fold(self, model: ir.Model) -> ir.Model:
        """A model that a plan was written into, be it empty, after the recipe ``fold``."""
        STAGE.set(model, Stage.QDQ)
        return self._fold.run(model, replace(self.ctx, oracle=None, data=None))[0]  # the data are the whole model's


def part(model: ir.Model, node: ir.Node) -> Part:
    """One operator of the main graph as a model."""
    clamp = operators.clamp_behind(node)
    outputs = [clamp.outputs[0]] if clamp is not None else [v for v in node.outputs if v.uses() or v.is_graph_output()]
    inputs = list(dict.fromkeys(v.name or "" for v in node.inputs if v is not None and not edit.is_constant(v)))
    names = [v.name or "" for v in outputs]
    return Part(node.name or "", tuple(inputs), tuple(names), cut(model, inputs, names))


def _calibrated(node: ir.Node, sites: Schemes) -> dict[str, Scheme]:
    """Value -> scheme of the sites whose range comes from data."""
    found = {}
    for site, scheme in sites.items():
        if site.role is not Role.WEIGHT and not scheme.dynamic:
            value = operators.settled(node, scheme) if site.role is Role.OUTPUT else node.inputs[site.slot]
            found[value.name or "" if value is not None else ""] = scheme
    return found


def _lookup(known: Calibration, values: Mapping[str, Scheme]) -> Any:
    """What is known of some values, as calibration would give it."""
    return replace(
        known,
        ranges={n: known.ranges[n] for n in values if n in known.ranges},
        unobserved={n: known.unobserved[n] for n in values if n in known.unobserved},
    )


def bare(model: ir.Model) -> ir.Model:
    """A copy without Q at its inputs and DQ at its outputs: codes in, codes out."""
    clone = model.clone()
    graph = clone.graph
    for i, value in enumerate(list(graph.inputs)):
        users = {u.node for u in value.uses()}
        if len(users) == 1 and is_quantize(q := users.pop()) and q.inputs[0] is value:
            codes = q.outputs[0]
            given = ir.Value(name=f"{value.name}_codes", shape=value.shape, type=codes.type)
            given.metadata_props[CODES_OF] = value.name or ""
            codes.replace_all_uses_with(given)
            graph.inputs[i] = given
            graph.remove(q, safe=True)
    for i, value in enumerate(list(graph.outputs)):
        dq = value.producer()
        if not is_dequantize(dq) or dq.inputs[0] is None or dq.inputs[0].producer() is None:
            continue
        if len(value.uses()) == 0:
            graph.outputs[i] = dq.inputs[0]
            graph.remove(dq, safe=True)
    return clone
