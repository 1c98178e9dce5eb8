"""Rotation on the language models of the zoo: that it keeps the function, and what it does to outliers and 4 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass
from graphpress.graph import edit
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from graphpress.runner import Progress, Runner, quiet
from graphpress.tools.bench.figures.base import Figure

_FOUR_BITS = (
    "quantize{mode=dynamic,weight=int4,weight_granularity=per_group,weight_observer=mse,activation=int4,"
    "activation_granularity=per_token,kernels=preferred,embeddings=false}"
)
_ROTATE = "fold-norms,rotate{down=true}"
_EVERY = "fold-norms,rotate{keys=true,down=true}"
_DOUBLE, _SINGLE, _LOSS, _APART = 1e-10, 1e-4, 0.06, 0.005


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """R1 to R4 in double precision and in float32; outliers; nats per byte at 4-bit weights and activations."""
    for model in (_Code(zoo, "codelm"), _Code(zoo, "codelm_outliers"), _Stories(zoo)):
        yield from _exact(model)
    yield from _outliers(zoo)
    yield from _four_bits(zoo, progress)


@dataclass(frozen=True)
class _Code:
    zoo: Path
    name: str

    def load(self) -> ir.Model:
        import graphpress as gp

        return gp.load(self.zoo / f"llm/codelm/{self.name}.onnx")

    def feeds(self) -> dict[str, np.ndarray]:
        with np.load(self.zoo / "llm/codelm/calib.npz") as data:
            return {"ids": data["ids"][:2, :64].astype(np.int64)}


@dataclass(frozen=True)
class _Stories:
    zoo: Path
    name: str = "stories260K, traced from torch"

    def load(self) -> ir.Model:
        import torch

        import graphpress as gp

        folder = self.zoo / "llm/stories260K"
        spec = importlib.util.spec_from_file_location("stories_load", folder / "load.py")
        assert spec is not None and spec.loader is not None
        source: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)
        module = source.load(str(folder / "stories260K.bin"))
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
        return gp.trace(module, (torch.zeros(2, 16, dtype=torch.long),), dynamic_shapes=(sizes,))

    def feeds(self) -> dict[str, np.ndarray]:
        return {"ids": np.random.default_rng(0).integers(3, 500, (2, 48))}


def _exact(source: _Code | _Stories) -> Iterator[Figure]:
    from graphpress.backends import reference

    model, feeds = source.load(), source.feeds()
    for what, wide, bar in (("float64", True, _DOUBLE), ("float32", False, _SINGLE)):
        before = _clean(model, *(["fuse-rotary"] if wide else []))  # RotaryEmbedding knows no float64
        before = double(before) if wide else before
        after = _run(before, parse_passes(_EVERY))[0]
        execute: Callable[[ir.Model], Runner] = _in_torch if wide else reference.execute
        gap = _gap(execute(before)(feeds), execute(after)(feeds))
        yield Figure(
            f"R1 to R4, {source.name}, {what}", f"at most {bar:.0e} of the RMS", f"{gap:.1e}", gap <= bar,
            "outputs before and after fold-norms and rotate{keys, down}",
        )  # fmt: skip


def _outliers(zoo: Path) -> Iterator[Figure]:
    for name in ("codelm", "codelm_outliers"):
        source = _Code(zoo, name)
        before = _clean(source.load())
        after = _run(before, parse_passes(_ROTATE))[0]
        (loud, error), (quiet_, less) = (_inputs(m, source.feeds()) for m in (before, after))
        yield Figure(
            f"largest input over its RMS, {name}", "", f"{loud:.1f} -> {quiet_:.1f}", None, "median over layers"
        )
        is_loud = name == "codelm_outliers"
        yield Figure(
            f"squared 4-bit per-token error of the inputs, {name}", "at least 3x lower" if is_loud else "",
            f"{error:.4f} -> {less:.4f}: {error / less:.1f}x", error >= 3 * less if is_loud else None,
            "relative, seen through the weights; median over layers",
        )  # fmt: skip


def _inputs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Medians over the layers: largest over RMS, and what 4-bit rounding of the input does to the output."""
    from graphpress.backends import reference

    products = [n for n in model.graph if n.op_type == "MatMul" and edit.is_constant(n.inputs[1])]
    names = [n.inputs[0].name or "" for n in products if n.inputs[0] is not None]
    seen = reference.execute(model, list(dict.fromkeys(names)))(feeds)
    peaks, errors = [], []
    for node, name in zip(products, names, strict=True):
        x, weight = seen[name].astype(np.float64), np.asarray(edit.constant(node.inputs[1]), np.float64)
        peaks.append(np.abs(x).max() / np.sqrt((x**2).mean()))
        scale = np.maximum(np.abs(x).max(-1, keepdims=True) / 7, 1e-30)
        wrong = (np.rint(x / scale) * scale - x) @ weight
        errors.append((wrong**2).sum() / ((x @ weight) ** 2).sum())
    return float(np.median(peaks)), float(np.median(errors))


def _four_bits(zoo: Path, progress: Progress) -> Iterator[Figure]:
    from graphpress.backends import ort

    ways = {
        "to nearest": _FOUR_BITS,
        "rotated": f"{_ROTATE},{_FOUR_BITS}",
        "rotated + GPTQ": f"{_ROTATE},{_FOUR_BITS},gptq",
    }
    losses: dict[str, list[float]] = {way: [] for way in ways}
    base = nats(ort.execute(_Code(zoo, "codelm").load()), zoo, progress)
    for name in ("codelm", "codelm_outliers"):
        for way, passes in ways.items():
            model = _run(_clean(_Code(zoo, name).load()), parse_passes(passes), _context(zoo, name, progress))[0]
            loss = nats(ort.execute(model), zoo, progress) - base
            losses[way].append(loss)
            last = way == "rotated + GPTQ"
            yield Figure(
                f"W4A4, group 64, per token, {way}, {name}", f"at most +{_LOSS}" if last else "",
                f"{base + loss:.4f} nats per byte, {loss:+.4f}", loss <= _LOSS if last else None,
                f"float32 {base:.4f}; 256 x 256 bytes",
            )  # fmt: skip
    plain, loud = losses["rotated + GPTQ"]
    apart = abs(plain - loud)
    yield Figure("the two variants, rotated + GPTQ", f"within {_APART}", f"{apart:.4f} apart", apart <= _APART)
    ratio = losses["to nearest"][1] / losses["rotated"][1]
    yield Figure("loss of codelm_outliers to nearest over rotated", "", f"{ratio:.0f}x")


def nats(runner: Runner, zoo: Path, progress: Progress = quiet) -> float:
    """Mean cross-entropy in nats per byte of the code model on its validation text."""
    with np.load(zoo / "llm/codelm/valid.npz") as data:
        ids = data["ids"].astype(np.int64)
    total = 0.0
    for start in progress(range(0, len(ids), 16), "nats per byte", -(-len(ids) // 16)):
        part = ids[start : start + 16]
        logits = next(iter(runner({"ids": part[:, :-1]}).values())).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        right = np.take_along_axis(logits, part[:, 1:, None], -1)[..., 0]
        total += float((np.log(np.exp(logits).sum(-1)) - right).sum())
    return total / ids[:, 1:].size


def double(model: ir.Model) -> ir.Model:
    """A copy with every float32 tensor in float64."""
    wide, single = model.clone(), ir.DataType.FLOAT
    for graph in edit.graphs(wide):
        for value in list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []:
            if value.dtype == single and value.const_value is not None:
                edit.overwrite(value, value.const_value.numpy().astype(np.float64))
        for value in [*graph.inputs, *(o for n in graph for o in n.outputs)]:
            if value.dtype == single:
                value.type = ir.TensorType(ir.DataType.DOUBLE)
        for node in graph:
            for name in ("stash_type", "to"):
                if node.attributes.get_int(name, 0) == single:
                    node.attributes.add(ir.AttrInt64(name, int(ir.DataType.DOUBLE)))
    return wide


def _in_torch(model: ir.Model) -> Runner:
    """The torch backend has all of ONNX in float64, which ONNX Runtime has not."""
    from graphpress.backends import fx
    from graphpress.backends.fx.module_runner import ModuleRunner

    return ModuleRunner(model, fx.build(model), None)


def _gap(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    pairs = [(a[n].astype(np.float64), b[n].astype(np.float64)) for n in a]
    return max(float(np.abs(x - y).max() / np.sqrt((x**2).mean())) for x, y in pairs)


def _clean(model: ir.Model, *without: str) -> ir.Model:
    return _run(model, [p for p in Recipe.load("clean").passes if p.name not in without])[0]


def _run(model: ir.Model, passes: Sequence[Pass], ctx: Context | None = None) -> tuple[ir.Model, Any]:
    return Pipeline(list(passes), check_numbers=False).run(model, ctx)


def _context(zoo: Path, name: str, progress: Progress) -> Context:
    from graphpress.backends import ort, reference
    from graphpress.observe.data import CalibrationData

    with np.load(zoo / "llm/codelm/calib.npz") as data:
        ids = data["ids"][:, :-1].astype(np.int64)
    samples = CalibrationData.from_arrays({"ids": ids}).bind(_Code(zoo, name).load())
    return Context(data=samples, run=ort.execute, oracle=reference.execute, progress=progress)
