"""What the commands do, without the parsing."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

import graphpress as gp
from graphpress import catalog, options, shipped
from graphpress.errors import BadRequest, GateError, RecipeError, nearest
from graphpress.frontends import stored, wire
from graphpress.graph import text
from graphpress.job import budgets, bundle
from graphpress.job.job import context
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from graphpress.recipe_schema import recipe_schema
from graphpress.report.view import library
from graphpress.target import Target
from graphpress.tools.cli import terminal
from graphpress.tools.cli.given import Given, path_of


def compile_to(
    model: Path,
    recipe: str,
    out: Path,
    *,
    data: Given,
    target: str,
    assignments: list[str],
    evaluate: str | None = None,
    max_drop: float | None,
    max_latency: str | None = None,
    max_size: str | None = None,
    state: Path | None,
    seed: int,
    external: bool | None,
    keep: bool,
    as_json: bool,
    verbose: bool = False,
) -> int:
    """Compile and write the folder: 0, or 1 where the gate failed (then the model is written only on ``keep``)."""
    bundle.spare(out, model, path_of(data))
    resolved = budgets.handed(Recipe.load(recipe).set(assignments), max_latency, max_size, max_drop)
    with bundle.claim(out) as draft:
        failure = None
        with terminal.progress() as progress:
            try:
                compiled, report = gp.compile(
                    model, resolved, data, target, seed=seed, evaluate=evaluate, max_drop=max_drop,
                    max_latency=max_latency, max_size=max_size, state=state, progress=progress,
                )  # fmt: skip
            except GateError as e:
                if e.report is None:
                    raise
                failure, compiled, report = e, e.model, e.report  # type: ignore[assignment]
            report.size["file_before"] = _on_disk(model)
            kept = compiled if failure is None or keep else None
            drawing = library.available()
            bundle.write(draft, kept, report, resolved, external, view=drawing and kept is not None)
            if drawing and kept is not None:
                gp.view(kept, model, report=report, out=draft / "view.html")
        bundle.publish(draft, out)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        terminal.show(report, verbose)
        more = "" if verbose else "-v prints its tables, "
        terminal.note(f"written to {out} ({more}open {out / 'report.html'})")
    if failure is not None:
        print(f"graphpress: {failure}", file=sys.stderr)
        return 1
    return 0


def _on_disk(path: Path) -> int:
    """Bytes of a model file and of the external data files beside it."""
    proto = onnx.ModelProto.FromString(wire.skeleton(stored.read(path)))
    entries = (e for t in proto.graph.initializer for e in t.external_data if e.key == "location")
    beside = {e.value for e in entries} - {wire.INSIDE}
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in beside)))


def audit(model: Path, target: str, data: Given) -> Any:
    """The audit of a model on data, or on made-up inputs."""
    loaded, feeds = _with_feeds(model, data)
    return gp.audit(loaded, target, feeds)


def parity(model: Path, target: str, data: Given) -> Any:
    """Torch against ONNX Runtime on data, or on made-up inputs.

    Raises:
        BadRequest: The target is not of torch.
    """
    where = Target.load(target)
    if where.runtime != "fx":
        raise BadRequest("is no torch target", where=f"target {target!r}", fix="Use torch-cpu or torch-cuda.")
    from graphpress.backends.parity import parity as compare

    loaded, feeds = _with_feeds(model, data)
    return compare(loaded, where, feeds)


def _with_feeds(model: Path, data: Given) -> tuple[ir.Model, dict[str, Any] | None]:
    """A model, and the first sample of the data for it."""
    loaded = gp.load(model)
    samples = gp.calibration_data(data, loaded)
    if samples is None:
        return loaded, None
    samples.check(loaded)
    return loaded, next(iter(samples.bind(loaded).batches(1)))


def opt(model: Path, passes: str, out: Path, *, data: Given, target: str, seed: int, show: bool) -> dict[str, Any]:
    """Run passes and save; what each did."""
    bundle.spare(out, model, path_of(data))
    steps = parse_passes(passes)
    loaded, where = gp.load(model), Target.load(target)
    samples = gp.calibration_data(data, loaded)
    if samples is not None:
        samples.check(loaded)
    with terminal.progress() as progress:
        result, reports = Pipeline(steps).run(loaded, context(where, samples, seed=seed, progress=progress))
    with bundle.disk_errors(out):
        gp.save(result, out)
    done = [
        {
            "pass": r.name,
            "changed": r.changed,
            "skipped": len(r.skips),
            "seconds": round(r.seconds, 4),
            "checked": r.checked,
        }
        for r in reports
    ]
    return {"out": str(out), "passes": done} | ({"diff": text.diff(loaded, result).splitlines()} if show else {})


def recipes(name: str | None, schema: bool = False) -> Any:
    """All recipes with their summaries, one as YAML with every option, or the JSON schema of all."""
    if schema:
        return json.dumps(recipe_schema(), indent=1)
    if name is not None:
        return Recipe.load(name).dump()
    return {n: Recipe.load(n).summary for n in shipped.recipes()}


def passes(name: str | None, recipe: str | None = None) -> dict[str, Any]:
    """All passes with the first line of their docstring, or what is to be known of the options of one.

    Args:
        name: Of the pass.
        recipe: One that has it: the options show their values there beside the defaults.

    Raises:
        RecipeError: There is no such pass, or not in the recipe.
    """
    known = catalog.passes()
    if name is None:
        if recipe is not None:
            raise BadRequest("shows the options of one pass in it", where="--recipe", fix="Name a pass.")
        return {n: (c.__doc__ or "").strip().splitlines()[0] for n, c in sorted(known.items())}
    if name not in known:
        raise RecipeError("there is no such pass", where=f"pass {name!r}", fix=nearest(name, known))
    there = _values(name, recipe) if recipe is not None else {}
    rows = []
    for o in options.options_of(known[name]):
        own = {"in the recipe": there[o.name]} if there else {}
        rows.append({"option": o.name, "takes": o.takes, "default": o.default, **own, "meaning": o.meaning})
    return {"pass": name, "about": options.parts(known[name])[0], "options": rows}


def _values(name: str, recipe: str) -> dict[str, str]:
    """What each option of a pass is in a recipe; of all where it has the pass more than once."""
    loaded = Recipe.load(recipe)
    found = [p.options() for p in loaded.passes if p.name == name]
    if not found:
        fix = nearest(name, [p.name for p in loaded.passes])
        raise RecipeError(f"no pass {name!r} in it", where=f"recipe {recipe!r}", fix=fix)
    return {o: " / ".join(dict.fromkeys(repr(f[o]) for f in found)) for o in found[0]}


def conformance(backend: str, op: str | None, kinds: list[str]) -> Any:
    """ONNX's backend tests on one of our backends.

    Raises:
        BadRequest: There is no such backend or kind, or no case for the operator.
    """
    from graphpress.tools.conformance import cases, run

    for kind in kinds:
        if kind not in cases.KINDS:
            raise BadRequest("there is no such kind of case", where=f"--kind {kind}", fix=nearest(kind, cases.KINDS))
    build = run.backend(backend)
    with terminal.progress() as progress:
        wanted = list(cases.cases(kinds or cases.KINDS, op))
        if not wanted:
            known = {c.op for c in cases.cases(["node"])}
            raise BadRequest("the suite has no case for it", where=f"--op {op}", fix=nearest(op or "", known))
        return run.run(backend, build, progress(wanted, "cases", len(wanted)))


def compare_models(folder: Path) -> Any:
    """Every ONNX file below a folder: torch against the reference.

    Raises:
        BadRequest: There is none.
    """
    from graphpress.tools.conformance import whole_models

    files = sorted(folder.rglob("*.onnx"))
    if not files:
        raise BadRequest("holds no ONNX file", where=str(folder), fix="Give a folder of models.")
    with terminal.progress() as progress:
        return whole_models.run(progress(files, "models", len(files)), folder)


def demo(out: Path, as_json: bool) -> int:
    """Compile the shipped digits model with the recipe w8a8."""
    folder = resources.files("graphpress.tools.demo")
    with resources.as_file(folder / "digits.onnx") as model, resources.as_file(folder / "digits.npz") as data:
        return compile_to(
            model, "w8a8", out, data=data, target="ort-cpu", assignments=[], max_drop=None, state=None, seed=0,
            external=None, keep=False, as_json=as_json,
        )  # fmt: skip
