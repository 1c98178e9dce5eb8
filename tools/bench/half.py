"""``python -m graphpress.tools.bench.half``: every recipe by every form of half precision, on two small networks.

A cell compares with what the network gives in float64, and with the same weights in float32 under the same recipe.
Settings are the quick ones of ``matrix``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.frontends import onnx_file
from graphpress.job import engine
from graphpress.job.compile import compile
from graphpress.job.gate import sqnr
from graphpress.job.job import context
from graphpress.observe.data import CalibrationData
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.target import Target
from graphpress.tools.bench.cell import quick
from graphpress.tools.bench.half_models import FORMS, NETWORKS, Sample, sample, to_half
from graphpress.tools.bench.matrix import chosen
from graphpress.tools.bench.zoo import tasks
from graphpress.tools.cli import terminal

TARGETS = ("ort-cpu", "torch-cpu")
LOSS = 1.0  # dB that half precision may cost, beside what is rounded to half once in the end
_ROUNDING = {"float16": 65.0, "bfloat16": 50.0}  # dB of outputs of the type, and of weights that passes have made
_GROWTH = 1.05  # of the bytes of all tensors: those of less than 64 elements are not worth a Cast
_BASES = {kind: form for form, kind in reversed(FORMS.items()) if form.startswith("float32")}
_HEAD = """# Half precision

Written by `python -m graphpress.tools.bench.half`, at quick settings: two small networks (`tools/bench/half_models.py`)
in every form in which half precision comes, under every recipe. A cell has the SQNR in dB against the network in
float64, in brackets how much that is beyond the same weights in float32 under that recipe, and the bytes of all tensors
as a share of what they were. Inputs and outputs have the types that they had everywhere. `-`: the recipe has nothing to
work with there (no statistics of BatchNorm, no Q/DQ). ! misses a bar: over {loss:g} dB lost beside the rounding of the
output ({rounding}), or `clean` made tensors grow by over {growth:.0%}.
"""

Key: TypeAlias = tuple[str, str, str, str]  # target, network, recipe, form


@dataclass(frozen=True)
class Entry:
    """What came of one network in one form under one recipe.

    Attributes:
        sqnr: In dB, against float64.
        size: Bytes of all tensors, after by before.
        error: Why there is nothing else; "-" where there was nothing to do.
    """

    sqnr: float = math.nan
    size: float = math.nan
    error: str = ""


def entry(target: str, network: str, recipe: str, form: str) -> Entry:
    """Compile, run and compare; an error becomes the entry's."""
    made = _with_pairs(network, form) if recipe == "fold" else _sample(network, form)
    if made is None or (recipe == "zeroq" and network == "block"):
        return Entry(error="-")
    try:
        return _compared(made, recipe, Target.load(target))
    except GraphpressError as e:
        return Entry(error=str(e))


def _compared(made: Sample, recipe: str, target: Target) -> Entry:
    data = None if recipe == "zeroq" else made.data
    low, report = compile(made.model, quick(Recipe.load(recipe)), data, target, gate=False, prove=False)
    (given,) = engine.of(target).execute(low, target=target)(made.fresh).values()
    had, has = ({v.name: v.dtype for v in (*m.graph.inputs, *m.graph.outputs)} for m in (made.model, low))
    if has != has | had or ir.DataType.from_numpy(given.dtype) != made.model.graph.outputs[0].dtype:
        return Entry(error=f"types of inputs and outputs were {had} and are {has}")
    error = given.astype(np.float64) - made.wanted
    size = report.size["weights_after"] / report.size["weights_before"]
    return Entry(sqnr(float((made.wanted**2).sum()), float((error**2).sum())), size)


def _with_pairs(network: str, form: str) -> Sample | None:
    """With Q/DQ in it, in the forms that an ONNX file comes in."""
    files = ("float32", "float16 ONNX", "Cast ends", "weights behind Cast")
    return sample(network, form, quantized=_quantized(network)) if form in files else None


@cache
def _sample(network: str, form: str) -> Sample:
    return sample(network, form)


@cache
def _quantized(network: str) -> ir.Model:
    made, folding = sample(network, "float32"), {p.name for p in Recipe.load("fold").passes}
    passes = [p for p in Recipe.load("w8a8").passes if p.name not in folding or p.name == "remove-dead"]
    data = CalibrationData.from_arrays(made.data).bind(made.model)
    return Pipeline(passes).run(made.model, context(Target.load("ort-cpu"), data))[0]


def misses(found: Mapping[Key, Entry], key: Key) -> str:
    """Which bar an entry misses; "" where it misses none, or the float32 network is not there to compare with."""
    target, network, recipe, form = key
    base = found.get((target, network, recipe, _BASES[FORMS[form]]))
    if (mine := found[key]).error or base is None or base.error:
        return "" if mine.error in ("", "-") else "it fails"
    noise = sum(10 ** (-dB / 10) for dB in (base.sqnr, _ROUNDING[FORMS[form]]))
    lost = -10 * math.log10(noise) - mine.sqnr
    if lost > LOSS:
        return f"{lost:.1f} dB are lost"
    return f"tensors grow to {mine.size:.2f}x" if recipe == "clean" and mine.size > _GROWTH else ""


def render(found: Mapping[Key, Entry]) -> str:
    """A table for each target and network: recipes down, forms across; errors below."""
    parts = [_HEAD.format(
        loss=LOSS, growth=_GROWTH - 1, rounding=", ".join(f"{t} {dB:g} dB" for t, dB in _ROUNDING.items())
    )]  # fmt: skip
    recipes, forms = (list(dict.fromkeys(k[i] for k in found)) for i in (2, 3))
    for target, network in dict.fromkeys(k[:2] for k in found):
        parts += [f"## {network}, {target}\n", f"| | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
        for recipe in recipes:
            cells = (_cell(found, (target, network, recipe, form)) for form in forms)
            parts.append(f"| {recipe} | {' | '.join(cells)} |")
        parts.append("")
    errors = [f"- {', '.join(key)}: {e.error}" for key, e in found.items() if e.error not in ("", "-")]
    missed = sum(bool(misses(found, key)) for key in found)
    return "\n".join([*parts, f"{len(found) - missed} of {len(found)} cells hold.", *errors]) + "\n"


def _cell(found: Mapping[Key, Entry], key: Key) -> str:
    mine, base = found.get(key, Entry(error="")), found.get((*key[:3], _BASES[FORMS[key[3]]]))
    if mine.error or math.isnan(mine.sqnr):
        return {"-": "-", "": ""}.get(mine.error, "error !")
    more = "" if base is None or base is mine else f" ({mine.sqnr - base.sqnr:+.1f})"
    return f"{mine.sqnr:.1f}{more} {mine.size:.2f}x" + (" !" if misses(found, key) else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page. Exit code 0 all cells hold, 1 one does not, 2 bad request."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.half", description=__doc__)
    for name, known in (("targets", TARGETS), ("networks", NETWORKS), ("forms", FORMS)):
        parser.add_argument(f"--{name}", help=f"comma-separated, of {', '.join(known)} (default: all)")
    parser.add_argument("--recipes", help="comma-separated (default: all that are shipped)")
    parser.add_argument("--zoo", type=Path, help="a folder of real models: two are compared as well")
    parser.add_argument("--out", type=Path, help="file of entries, a line each; a second run goes on where it stops")
    args = parser.parse_args(argv)
    try:
        wanted = [_among(getattr(args, n), k) for n, k in (("targets", TARGETS), ("networks", NETWORKS))]
        parts = *wanted, chosen(args.recipes), _among(args.forms, FORMS)
        keys = [(t, n, r, f) for t, n, r, f in itertools.product(*parts)]
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    with terminal.progress() as progress:
        found = _fill(progress(keys, "cells", len(keys)), args.out)
    print(render(found), end="")
    if args.zoo is not None:
        print("\n".join(_real(args.zoo)))
    return int(any(misses(found, key) for key in found))


def _real(zoo: Path) -> Iterator[str]:
    """Two real models in each type under two recipes, on the held-out samples of the gate: a table."""
    yield "\n## Real models\n"
    yield "Converted whole; SQNR of the gate, on the 12 of 64 samples that are held out; MB of all tensors."
    yield "With `--zoo DIR`.\n"
    yield "| model | type | recipe | SQNR dB | before | after |\n|---|---|---|---|---|---|"
    for task, kind in itertools.product(tasks(zoo, "resnet20,codelm"), ("float32", *_ROUNDING)):
        with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
            model = onnx_file.load(task.file(Path(folder)))
            if kind != "float32":
                to_half(model, ir.DataType[kind.upper()], ends=True)
            data = {k: a[:64] if a.ndim else a for k, a in task.data().items()}
            for recipe in ("w8a8", "w4a16-gptq"):
                _, report = compile(model, recipe, data, gate=False, prove=False)
                sizes = [f"{report.size[f'weights_{when}'] / 1e6:.2f}" for when in ("before", "after")]
                yield f"| {task.name} | {kind} | {recipe} | {report.gate.outputs[0].sqnr:.1f} | {' | '.join(sizes)} |"


def _fill(keys: Iterable[Key], out: Path | None) -> dict[Key, Entry]:
    """The entries, those in the file taken from it; the others are added to it as they are made."""
    lines = out.read_text().splitlines() if out is not None and out.exists() else []
    known = {tuple(row["key"]): Entry(**row["entry"]) for row in map(json.loads, lines)}
    found = {}
    for key in keys:
        found[key] = known[key] if key in known else entry(*key)
        if out is not None and key not in known:
            with out.open("a") as file:
                file.write(json.dumps({"key": key, "entry": asdict(found[key])}) + "\n")
    return found


def _among(given: str | None, known: Iterable[str]) -> list[str]:
    names = given.split(",") if given else list(known)
    if odd := next((n for n in names if n not in known), None):
        raise BadRequest("there is no such thing", where=repr(odd), fix=nearest(odd, list(known)))
    return names


if __name__ == "__main__":
    sys.exit(main())
