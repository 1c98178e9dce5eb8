"""``graphpress plan show|diff|apply``: plans as files, as part of a report, or as what stands in a quantized model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphpress as gp
from graphpress import keys, plan_file
from graphpress.errors import BadRequest, GraphpressError
from graphpress.graph import edit
from graphpress.job import bundle
from graphpress.job.job import context
from graphpress.passes.quantize.apply_plan import ApplyPlan
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report import tables
from graphpress.target import Target
from graphpress.tools.cli import terminal
from graphpress.tools.cli.given import Given, path_of
from graphpress.types import Plan, Role, Scheme, Site


@dataclass(frozen=True)
class Shown:
    """A plan to look at."""

    plan: Plan

    def to_json(self) -> dict[str, Any]:
        return self.plan.to_json()

    def tables(self) -> list[tables.Table]:
        rows = []
        for node in self.plan.nodes():
            sites = sorted(self.plan.of(node).items())
            rows.append((node, *(", ".join(f"[{s.slot}] {v}" for s, v in sites if s.role is role) for role in Role)))
        note = f"{len(self.plan)} sites of {len(rows)} operators; {len(self.plan.ties)} ties"
        return [tables.Table("Plan", ("operator", *map(str, Role)), rows, note)]


@dataclass(frozen=True)
class PlanChange:
    """Sites whose scheme differs; None is float."""

    sites: dict[Site, tuple[Scheme | None, Scheme | None]]

    def to_json(self) -> dict[str, Any]:
        return {str(s): [v.to_json() if v else None for v in pair] for s, pair in self.sites.items()}

    def tables(self) -> list[tables.Table]:
        rows = [(str(s), *(str(v) if v else "float" for v in pair)) for s, pair in sorted(self.sites.items())]
        return [tables.Table("Plans", ("site", "a", "b"), rows, f"{len(rows)} sites differ")]


def show(source: Path) -> Shown:
    """The plan of a file or folder."""
    return Shown(read(source))


def diff(a: Path, b: Path) -> PlanChange:
    """Where two plans differ."""
    return PlanChange(read(a).diff(read(b)))


def apply(model: Path, source: Path, out: Path, *, data: Given, target: str, gptq: bool, seed: int) -> dict[str, Any]:
    """Tidy a model, write a plan into it, round its weights by GPTQ if asked to, fold and save it.

    Raises:
        StaleSite: The plan names an operator or slot that the tidied model does not have; the nearest is given.
        BadRequest: It has calibrated activations, or GPTQ is asked for, and there are no data.
    """
    bundle.spare(out, model, source, path_of(data))
    plan, loaded, where = read(source), gp.load(model), Target.load(target)
    samples = gp.calibration_data(data, loaded)
    if samples is not None:
        samples.check(loaded)
    rounding = (Gptq(),) if gptq else ()
    steps = (*Recipe.load("clean").passes, ApplyPlan(plan), *rounding, *Recipe.load("fold").passes)
    with terminal.progress() as progress:
        result, reports = Pipeline(steps).run(loaded, context(where, samples, seed=seed, progress=progress))
    with bundle.disk_errors(out):
        gp.save(result, out)
    skips = [{"pass": r.name, "where": s.where, "why": s.why} for r in reports if r.plan for s in r.skips]
    done = next(r for r in reports if r.plan is not None)
    return {"out": str(out), "sites": len(done.plan or ()), "operators": done.changed, "left alone": skips}


def read(source: Path) -> Plan:
    """A plan from its JSON, a report's (or the folder that holds one), or what a quantized ONNX file says of itself.

    Raises:
        BadRequest: There is no such file, or no plan in it.
    """
    path = source / "report.json" if source.is_dir() else source
    if path.suffix == ".onnx":
        return _of_model(gp.load(path), path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        plan = data.get("plan", data) if isinstance(data, dict) else data
        if plan is None:
            raise BadRequest("the report holds no plan", where=str(path), fix="Its recipe quantizes nothing.")
        if not isinstance(plan, dict) or "sites" not in plan:
            fix = "Write one with `graphpress plan show MODEL --json`."
            raise BadRequest("is neither a plan nor a report", where=str(path), fix=fix)
        return plan_file.read(plan, str(path))
    except OSError as e:
        fix = "Give a plan, the report of a compilation or its folder, or a quantized ONNX file."
        raise BadRequest(e.strerror or "cannot be read", where=str(path), fix=fix) from e
    except GraphpressError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        fix = "Write one with `graphpress plan show MODEL --json`."
        raise BadRequest("is neither a plan nor a report", where=str(path), fix=fix) from e


def _of_model(model: ir.Model, path: Path) -> Plan:
    """The schemes noted on the operators; which of them share a scale is not noted."""
    schemes: dict[Site, Scheme] = {}
    for node in edit.nodes(model):
        schemes |= keys.schemes(node)
    if not schemes:
        fix = "Give a model that graphpress has quantized."
        raise BadRequest("no operator of it says that it is quantized", where=str(path), fix=fix)
    return Plan(schemes)
