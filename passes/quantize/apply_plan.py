"""Write a plan into the graph: the one pass that makes a float model a quantized one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
from pydantic import BeforeValidator

from graphpress import keys, plan_file
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport, Skip
from graphpress.errors import BadRequest, StaleSite, nearest
from graphpress.graph import edit, opsets
from graphpress.keys import SPARSITY
from graphpress.observe.steps import StepRanges
from graphpress.ops.dynamic_quantize_token import OP as TOKEN
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.activation_ranges import Activations, static_sites
from graphpress.passes.quantize.emitter import Emitter
from graphpress.passes.quantize.fitting import fit_weights
from graphpress.passes.quantize.quantize_options import TOKEN_TYPES
from graphpress.passes.quantize.step_tables import StepTables
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.types import AFFINE, Kind, Numerics, Plan, Role, Scheme, Site, Stage


def _given(plan: object) -> object:
    """A plan out of its JSON, as a recipe holds it; anything else as it is."""
    if not isinstance(plan, Mapping) or isinstance(plan, Plan):
        return plan
    try:
        return plan_file.read(plan, "plan")
    except BadRequest as e:
        raise ValueError(str(e)) from e


@dataclass(frozen=True)
class ApplyPlan(Pass):
    """Quantize what a plan says, in the canonical forms: Q -> DQ with initializers, or quantization at run time.

    Ranges of static activations come from the calibration data. Nodes whose scales would be degenerate (NaN or infinite
    weights, values that were never seen or always zero) stay float, each with a Skip.

    Attributes:
        plan: The plan, its JSON, or the path of that.
        batch_size: Samples at a time during calibration; None: what fits the memory budget.
        steps: Of a diffusion model: static activations have a scale for each range of this input, which the model
            gathers by it; ``t=0,0.5,1`` names the input and the bounds.
    """

    plan: Annotated[Plan | str, BeforeValidator(_given)]
    batch_size: int | None = None
    steps: str | None = None

    name = "apply-plan"
    numerics = Numerics.LOSSY
    gives = Stage.QDQ

    def __post_init__(self) -> None:
        if self.steps is not None:
            StepRanges.read(self.steps)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite ``model``.

        Raises:
            StaleSite: The plan names a node or slot that the graph does not have.
            BadRequest: It has static activations and there is no data; a site holds no floats; its file cannot be read;
                the model has no input of the name that ``steps`` gives, or a sample's step lies in no range.
            Unsupported: A scheme needs an opset that the model cannot be converted to.
        """
        plan = self.plan if isinstance(self.plan, Plan) else _load(self.plan)
        _check(plan)
        values = _locate(model, plan)
        if (version := _opset(plan, values)) > edit.opset(model):
            opsets.require(model, version)
            values = _locate(model, plan)
        weights = fit_weights(plan, values)
        tables = None if self.steps is None else StepTables(model, StepRanges.read(self.steps))
        activations = Activations(plan, values, tables)
        activations.observe(model, ctx, self.batch_size)
        broken = {**activations.broken, **weights.broken, **_filled(model, plan)}
        for node, why in broken.items():
            report.skip(node, why)
        plan = plan.without(broken)
        left = set(map(str, plan))
        remarks = [r for r in (*weights.remarks, *activations.remarks) if r.where in left]
        report.warnings += [*(Skip(node, why) for node, why in broken.items()), *remarks]
        report.histograms = activations.histograms(plan)
        _write(model, plan, activations, {**activations.params(plan), **weights.params})
        if tables is not None:
            _tell(tables, activations, plan, report)
        report.plan, report.changed = plan, len(plan.nodes())
        report.metrics |= _metrics(plan)


def _tell(tables: StepTables, activations: Activations, plan: Plan, report: PassReport) -> None:
    """How many sites have a scale for each range of steps, and why others have one for all."""
    for site in static_sites(plan):
        if why := tables.unfit(activations.values[site]):
            report.skip(str(site), why)
    single = activations.single()
    by_step = [s for s in static_sites(plan) if activations.group(s) not in single]
    report.metrics["sites with a scale for each range of steps"] = float(len(by_step))


def _load(path: str) -> Plan:
    try:
        return plan_file.read(json.loads(Path(path).read_text(encoding="utf-8")), path)
    except OSError as e:
        raise BadRequest(e.strerror or "cannot be read", where=f"plan {path!r}") from e
    except ValueError as e:
        raise BadRequest(f"not a plan: {e}", where=f"plan {path!r}", fix="Write it with Plan.to_json.") from e


def _check(plan: Plan) -> None:
    """Refuse what has no canonical form."""
    for site, scheme in plan.items():
        if scheme.dtype != scheme.storage and site.role is not Role.WEIGHT:
            raise BadRequest(f"{scheme.dtype} is for weights", where=f"site {site}", fix="Take int4.")
        if scheme.quantizer != AFFINE and site.role is not Role.WEIGHT:
            raise BadRequest(
                f"{scheme.quantizer} is for weights", where=f"site {site}", fix="Leave activations affine."
            )
        if site.role is Role.WEIGHT:
            named(scheme.quantizer).check(scheme, f"site {site}")
        if scheme.granularity.kind is Kind.TOKEN and scheme.dtype not in TOKEN_TYPES:
            known = " or ".join(TOKEN_TYPES)
            raise BadRequest(f"activations by token are {known}, not {scheme.dtype}", where=f"site {site}")


def _filled(model: ir.Model, plan: Plan) -> dict[str, str]:
    """Pruned nodes whose zeros would not stay zeros, with the reason."""
    pruned = {n.name for n in operators.body(model) if SPARSITY in n.metadata_props}
    lossy = {s: v for s, v in plan.items() if s.role is Role.WEIGHT and not named(v.quantizer).keeps_zero}
    return {s.node: f"it is pruned, and {v.quantizer} keeps no zeros" for s, v in lossy.items() if s.node in pruned}


def _metrics(plan: Plan) -> dict[str, float | str]:
    roles = [s.role for s in plan]
    return {f"{role} sites": float(roles.count(role)) for role in Role if role in roles}


def _locate(model: ir.Model, plan: Plan) -> dict[Site, ir.Value]:
    """The value that each site quantizes.

    Raises:
        StaleSite: The graph has no such node or slot.
        BadRequest: A site holds something else than floats.
    """
    nodes = {n.name or "": n for n in operators.body(model)}
    found = {}
    for site, scheme in plan.items():
        if site.node not in nodes:
            raise StaleSite("the graph has no such node", where=f"site {site}", fix=nearest(site.node, nodes))
        found[site] = _value(nodes[site.node], site, scheme)
        dtype = found[site].dtype
        if dtype is not None and not dtype.is_floating_point():
            raise BadRequest(f"it holds {dtype.name}, and only floats are quantized", where=f"site {site}")
    return found


def _value(node: ir.Node, site: Site, scheme: Scheme) -> ir.Value:
    if site.role is Role.OUTPUT and site.slot == 0:
        return operators.settled(node, scheme)
    slots = node.outputs if site.role is Role.OUTPUT else node.inputs
    value = slots[site.slot] if site.slot < len(slots) else None
    if value is None:
        raise StaleSite(f"the {node.op_type} has no such slot", where=f"site {site}")
    return value


def _opset(plan: Plan, values: Mapping[Site, ir.Value]) -> int:
    """The lowest opset that expresses the plan."""
    needed = [13]
    for site, scheme in plan.items():
        dtype = values[site].dtype
        half = 19 if dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else 13
        token = TOKEN.opset if scheme.granularity.kind is Kind.TOKEN else 13
        needed.append(max(named(scheme.quantizer).opset(scheme), half, token))
    return max(needed) if plan else 1


def _write(model: ir.Model, plan: Plan, activations: Activations, params: Mapping[Site, QParams]) -> None:
    by_node: dict[str, dict[Site, Scheme]] = {}
    for site, scheme in plan.items():
        by_node.setdefault(site.node, {})[site] = scheme
    emitter = Emitter(model, activations.tables)
    touched = [n for n in operators.body(model) if n.name in by_node]
    for node in touched:
        for site, scheme in by_node[node.name or ""].items():
            if site.role is Role.OUTPUT:
                emitter.output(activations.values[site], activations.group(site), params[site], scheme, node)
    for node in touched:
        sites = by_node[node.name or ""]
        for site, scheme in sites.items():
            if scheme.dynamic:
                emitter.dynamic(node, site.slot, scheme)
            elif site.role is not Role.OUTPUT:
                group = activations.group(site)
                emitter.input(node, site.slot, group, params[site], scheme)
        keys.note_schemes(node, sites)
