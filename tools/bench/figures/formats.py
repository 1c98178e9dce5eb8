"""What each number format of weights costs: nats or top-1, bytes by the formula, and bytes of the file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress import Report, compile, save
from graphpress.graph import edit
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import parameters_shape
from graphpress.recipe import Recipe
from graphpress.runner import Progress, quiet
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks
from graphpress.types import Role, Scheme, Storage

_APART = 0.01  # of the bytes, that formula and file may differ by
_FLOAT = 4  # bytes of a weight before
_NUPES: Mapping[str, Any] = {"mode": "blocks", "method": "nupes", "steps": 60, "batch_size": 16}


@dataclass(frozen=True)
class _Row:
    """A recipe with other settings, and passes put behind ``quantize``; ``bare``: without those that round there."""

    what: str
    recipe: str
    settings: tuple[str, ...] = ()
    added: tuple[Mapping[str, Any], ...] = ()
    bare: bool = False


_WEIGHTS = (
    _Row("int4, groups of 64, to nearest", "w4a16"),
    _Row("int4, groups of 64, HQQ", "w4a16", ("quantize.weight_observer=hqq",)),
    _Row("int4, groups of 64, AWQ", "w4a16-awq"),
    _Row("int4, groups of 64, GPTQ", "w4a16-gptq"),
    _Row("MXFP4, blocks of 32, to nearest", "w4a16-mxfp4", bare=True),
    _Row("MXFP4, blocks of 32, GPTQ", "w4a16-mxfp4"),
    _Row("NVFP4, blocks of 16, GPTQ", "w4a16-nvfp4"),
    _Row("code books of 16, k-means", "w4a16-points", bare=True),
    _Row("code books of 16, learned, GPTQ", "w4a16-points"),
    _Row("twin-log, 4 bits, GPTQ", "w3a16-tlq", ("quantize.weight=int4",)),
    _Row("int3, groups of 64, rotated, GPTQ", "w3a16-rot"),
    _Row("twin-log, 3 bits, GPTQ", "w3a16-tlq"),
    _Row("int2, groups of 64, GPTQ", "w4a16-gptq", ("quantize.weight=int2",)),
    _Row("two binary numbers (FDB), groups of 64", "w2a16-fdb"),
    _Row("ternary, groups of 64, GPTQ", "w4a16-gptq", ("quantize.weight=ternary",)),
    _Row("binary, groups of 64, GPTQ", "w4a16-gptq", ("quantize.weight=binary",)),
)
_BOTH = (
    _Row("float8 (e4m3), activations too", "w8a8-float8"),
    _Row("int4, activations in 8 bits, to nearest", "w4a8"),
    _Row("squares (PowerQuant), activations in 8 bits, to nearest", "w4a8-power"),
    _Row("powers of a learned exponent (NUPES), activations in 8 bits", "w4a8-power", (), ({"recover": _NUPES},)),
)
_WHOLE = (
    _Row("one scale a weight, int8", "w8a8", ("quantize.weight_granularity=per_tensor",)),
    _Row("one scale a weight, int8, layers equalized (CLE, DFQ)", "w8a8-cle"),
)
ROWS = {"codelm": _WEIGHTS, "resnet20": _BOTH, "mobilenet_v1_0.75_192": _WHOLE}


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """Each format by the recipe that has it, on all layers that this quantizes; the file is saved and run.

    Sizes are those of tensors: names and nodes, which a small network has as many of as a large one, are left out.
    """
    with tempfile.TemporaryDirectory(prefix="graphpress-") as name:
        folder = Path(name)
        for task in tasks(zoo, ",".join(ROWS)):
            whole = FileRunner(source := task.file(folder))
            clean = compile(source, "clean", None, gate=False, prove=False)[0]
            yield Figure(
                f"{task.name}: float32", "", f"{_score(task, whole, whole):.4f} {_unit(task)}",
                note=f"{_tensors(clean) / 1e6:.3f} MB",
            )  # fmt: skip
            for row in ROWS[task.name]:
                yield _measured(task, source, clean, whole, row, folder / "out.onnx", progress)


def _measured(
    task: Task, source: Path, clean: ir.Model, whole: FileRunner, row: _Row, path: Path, progress: Progress
) -> Figure:
    model, report = compile(source, _recipe(row), task.data(), gate=False, prove=False, progress=progress)
    save(model, path)
    run, (told, bits) = FileRunner(path), _formula(report, clean)
    found = _tensors(ir.load(path))
    said = [
        f"{bits:.2f} bits a weight, {found / 1e6:.3f} MB, by the formula {told / 1e6:.3f} ({found / told - 1:+.1%})"
    ]
    if task.apart is not None:
        said.insert(0, f"divergence {task.apart(run, whole):.4f}")
    asked = task.kind == "language"  # a small network has as many bytes of scales of activations and of biases
    return Figure(
        f"{task.name}: {row.what}", f"size within {_APART:.0%}" if asked else "",
        f"{_score(task, run, whole):.4f} {_unit(task)}", abs(found / told - 1) <= _APART if asked else None,
        "; ".join(said),
    )  # fmt: skip


def _recipe(row: _Row) -> Recipe:
    plain = Recipe.load(row.recipe).set(list(row.settings)).to_json()
    passes = [p for p in plain["passes"] if not (row.bare and set(p) & {"gptq", "learn-format"})]
    at = next(i for i, p in enumerate(passes) if "quantize" in p) + 1
    return Recipe.load({**plain, "passes": [*passes[:at], *row.added, *passes[at:]]})


def _formula(report: Report, clean: ir.Model) -> tuple[float, float]:
    """Bytes of all tensors, what the quantized weights took replaced by what their formats take; bits a weight."""
    assert report.plan is not None
    nodes = {n.name: n for n in clean.graph}
    bits, held = 0.0, dict[ir.Value, int]()  # two layers may read one weight
    for site, scheme in report.plan.items():
        node = nodes.get(site.node)
        value = node.inputs[site.slot] if node is not None and site.role is Role.WEIGHT else None
        if value is not None and value not in held:
            tensor = edit.constant_tensor(value)
            assert tensor is not None
            held[value] = tensor.size
            bits += _bits(tuple(tensor.shape.numpy()), scheme)
    count = sum(held.values())
    return _tensors(clean) - _FLOAT * count + bits / 8, bits / max(count, 1)


def _bits(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Of the format; kernels do without the zero points of symmetric codes, so their file does."""
    quantizer, count = named(scheme.quantizer), math.prod(parameters_shape(shape, scheme))
    zeros = scheme.symmetric and "zero_point" in quantizer.decode.operands
    return quantizer.bits(shape, scheme) - zeros * count * Storage.of(scheme.dtype).stored_bits


def _tensors(model: ir.Model) -> int:
    """Bytes of all constants, of bodies too."""
    made = (v.const_value for g in edit.graphs(model) if isinstance(g, ir.Graph) for v in g.initializers.values())
    return sum(t.nbytes for t in made if t is not None)


def _score(task: Task, run: FileRunner, whole: FileRunner) -> float:
    return next(iter(task.scores(run, whole).values()))


def _unit(task: Task) -> str:
    return "nats per byte" if task.kind == "language" else "% top-1"
