"""Adaptive computation: time against work on ONNX Runtime, accuracy at a budget against smaller layers."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphpress import load, trace
from graphpress.backends import fx, ort, reference
from graphpress.context import Context
from graphpress.observe.data import CalibrationData
from graphpress.ops.acm_price import price_at
from graphpress.passes.acm import site, usage
from graphpress.passes.acm.acm import Acm
from graphpress.passes.recover.train_acm import TrainAcm
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.runner import Progress, Runner, quiet
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.vision_transformer import FOLDS, trained

WIDTH, HIDDEN, TOKENS = 768, 3072, 256
BUDGETS = (0.6, 0.4)
STEPS = {"learner_steps": 100, "gate_steps": 150, "steps": 300}
_CHUNKS, _SAMPLES, _LENGTH = 1600, 12, 256


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """Speed, the code model, a vision transformer."""
    yield from speed()
    yield from code_model(zoo, progress)
    yield from digits(progress)


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(rounds: int = 60) -> Iterator[Figure]:
    """One feed-forward layer, gates that send tokens to different numbers of learners, runs of both in turn."""
    dense = _layer()
    x = np.random.default_rng(1).normal(size=(1, TOKENS, WIDTH)).astype(np.float32)
    after, _ = Pipeline([Acm()]).run(dense)
    (only,) = site.sites(after)
    rng = np.random.default_rng(2)
    only.set("gate", rng.normal(size=only.array("gate").shape) / 4)
    meter = usage.Meter(after, CalibrationData.from_arrays({"x": x}), reference.execute)
    shares = (0.25, 0.5, 0.75, 1.0)
    knots, prices = usage.fit_prices(meter, shares)
    site.set_table(after, knots, prices)
    target = Target.load("ort-cpu")
    runners = [ort.deploy(ort.lower(m, target), target) for m in (dense, after)]
    for share in shares:
        taken = meter.usage(price_at(share, knots, prices)).share
        feeds = [{"x": x}, {"x": x, "budget": np.array(share, np.float32)}]
        ratio = _ratio(runners, feeds, rounds)
        yield Figure(
            f"ACM {WIDTH}/{HIDDEN}, 4 learners, {TOKENS} tokens, ORT CPU, mean share {taken:.3f}",
            f"at most {share + 0.12:.2f} x dense", f"{ratio:.2f} x", ratio <= share + 0.12, "median of paired runs",
        )  # fmt: skip


def _ratio(runners: list[Any], feeds: list[dict[str, np.ndarray]], rounds: int) -> float:
    """Median time of the second over that of the first, runs in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for runner, given, kept in zip(runners, feeds, times, strict=True):
            start = time.perf_counter()
            runner(given)
            kept.append(time.perf_counter() - start)
    return float(np.median(times[1]) / np.median(times[0]))


def _layer() -> ir.Model:
    """x + Linear(Gelu(Linear(x))) with biases."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, WIDTH), "b2": (WIDTH,)}
    named = ", ".join(f"float{list(s)} {n}" for n, s in shapes.items())
    model = ir.from_proto(
        onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        layer (float[B,T,{WIDTH}] x, {named}) => (float[B,T,{WIDTH}] y) {{
        p = MatMul(x, w1) h = Add(p, b1) a = Gelu(h) q = MatMul(a, w2) r = Add(q, b2) y = Add(x, r) }}""")
    )
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        shape = shapes[value.name or ""]
        value.const_value = ir.tensor((rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


# -- accuracy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AcmTask:
    """A dense model and how good a runner of one like it is: ``loss`` is lower for better."""

    name: str
    dense: ir.Model
    data: Mapping[str, np.ndarray]
    loss: Callable[[Runner, float | None], float]
    unit: str
    allowed: float  # over dense at budget 0.6
    options: Mapping[str, Any]

    def train(self, passes: Acm, options: Mapping[str, Any], progress: Progress) -> Runner:
        ctx = Context(
            data=CalibrationData.from_arrays(self.data), run=ort.execute, oracle=reference.execute,
            differentiate=fx.build, teacher=self.dense, progress=progress,
        )  # fmt: skip
        made, _ = Pipeline([passes, TrainAcm(**{**self.options, **options})]).run(self.dense, ctx)
        return ort.execute(ort.lower(made, Target.load("ort-cpu")))


def _compare(tasks: Sequence[AcmTask], progress: Progress) -> Iterator[Figure]:
    """A model with all budgets against a smaller static layer for each, trained as long; means over the tasks."""
    first = tasks[0]
    dense, mine, other = 0.0, dict.fromkeys(BUDGETS, 0.0), dict.fromkeys(BUDGETS, 0.0)
    for task in tasks:
        base = task.loss(ort.execute(task.dense), None)
        dense += base / len(tasks)
        adaptive = task.train(Acm(), {"budgets": (*sorted(BUDGETS), 1.0)}, progress)
        for budget in BUDGETS:
            static = task.train(Acm(learners=1, fraction=budget), {"gate_steps": 0, "budgets": (1.0,)}, progress)
            mine[budget] += (task.loss(adaptive, budget) - base) / len(tasks)
            other[budget] += (task.loss(static, None) - base) / len(tasks)
    for budget in BUDGETS:
        yield Figure(
            f"{first.name}, budget {budget}", "better than a static smaller FFN distilled with the same steps",
            f"{mine[budget]:+.4f} {first.unit}, static {other[budget]:+.4f}", mine[budget] < other[budget],
            f"over dense, {dense:.4f}",
        )  # fmt: skip
        if budget == 0.6:
            what, got = f"at most +{first.allowed:g} {first.unit}", mine[budget]
            yield Figure(f"{first.name}, budget 0.6, over dense", what, f"{got:+.4f}", got <= first.allowed)


def code_model(zoo: Path, progress: Progress, steps: Mapping[str, int] = STEPS) -> Iterator[Figure]:
    """Trained without labels on the standard library of the running Python, files with validation text left out."""
    folder = zoo / "llm/codelm"
    valid = np.load(folder / "valid.npz")["ids"].astype(np.int64)
    dense, _ = Pipeline(Recipe.load("clean").passes).run(load(folder / "codelm.onnx"))
    data = {"ids": _source(valid, _CHUNKS)}
    task = AcmTask("code model", dense, data, partial(_nats, valid), "nats per byte", 0.03,
                {**steps, "samples": _SAMPLES})  # fmt: skip
    yield from _compare([task], progress)


def _source(valid: np.ndarray, count: int) -> np.ndarray:
    """[count, 256] bytes of Python source."""
    known = [row.astype(np.uint8).tobytes()[:64] for row in valid]
    root = Path(sysconfig.get_paths()["stdlib"])
    chunks: list[np.ndarray] = []
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        if "site-packages" in path.parts or "test" in path.parts or any(k in content for k in known):
            continue
        rows = len(content) // _LENGTH
        chunks.extend(np.frombuffer(content[: rows * _LENGTH], np.uint8).reshape(rows, _LENGTH))
    order = np.random.default_rng(0).permutation(len(chunks))[:count]
    return np.stack([chunks[i] for i in order]).astype(np.int64)


def _nats(valid: np.ndarray, runner: Runner, budget: float | None) -> float:
    total = 0.0
    for i in range(0, len(valid), 16):
        rows = valid[i : i + 16]
        logits = runner({"ids": rows[:, :-1], **_budget(budget)})["logits"].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= float(np.take_along_axis(log, rows[:, 1:, None], -1).sum())
    return total / valid[:, 1:].size


def _budget(budget: float | None) -> dict[str, np.ndarray]:
    return {} if budget is None else {"budget": np.array(budget, np.float32)}


def digits(progress: Progress) -> Iterator[Figure]:
    """A vision transformer of 16 patches trained here on scikit-learn's digits, each third in turn for the test."""
    yield from _compare([_digits(fold) for fold in range(FOLDS)], progress)


def _digits(fold: int) -> AcmTask:
    import torch

    module, (train_x, test_x, test_y) = trained(fold)
    batch = torch.export.Dim("batch", min=2)
    traced = trace(module, (torch.from_numpy(test_x[:4]),), dynamic_shapes=({0: batch},))
    dense, _ = Pipeline(Recipe.load("clean").passes).run(traced)
    (given,) = [v.name or "" for v in dense.graph.inputs]

    def points(runner: Runner, budget: float | None) -> float:
        out = next(iter(runner({given: test_x, **_budget(budget)}).values()))
        return 100 * float((out.argmax(-1) != test_y).mean())

    options = {"learner_steps": 200, "gate_steps": 200, "steps": 400, "batch": 64, "samples": 256}
    return AcmTask(f"digits ViT, {FOLDS} folds", dense, {given: train_x}, points, "points", 1.0, options)
