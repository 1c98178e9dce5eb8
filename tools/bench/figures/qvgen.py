"""Four bits trained beside branches that fade (QVGen), against the same steps without branches, over three seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress import load, trace
from graphpress.backends import fx, ort, reference
from graphpress.context import Context
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.recover import Recover
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.runner import Progress, Runner, quiet
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.language import nats
from graphpress.tools.bench.vision_transformer import FOLDS, trained

SEEDS = (0, 1, 2)
_FORMAT = {
    "mode": "dynamic", "weight_observer": "mse", "activation": "int4", "activation_granularity": "per_token",
    "kernels": "preferred", "embeddings": False,
}  # fmt: skip
_TOKENS, _JUDGED = 64, 64  # of the code model: bytes in a sequence; texts of 256 bytes that judge


@dataclass(frozen=True)
class QvgenTrial:
    """A model with what it is trained and judged on; ``loss`` of a runner is lower for better."""

    name: str
    dense: ir.Model
    data: Mapping[str, np.ndarray]
    loss: Callable[[Runner], float]
    rank: int
    options: Mapping[str, Any]
    seed: int

    def after(self, weight: str, method: Any, progress: Progress) -> float:
        """The loss after training by a method, activations of 4 bits by token."""
        ctx = Context(
            data=CalibrationData.from_arrays(self.data), run=ort.execute, oracle=reference.execute, seed=self.seed,
            differentiate=fx.build, teacher=self.dense, progress=progress,
        )  # fmt: skip
        passes = [Quantize(weight=weight, **_FORMAT), Recover(method=method, train="all", **self.options)]  # type: ignore[arg-type]
        made, _ = Pipeline(passes).run(self.dense, ctx)
        return self.loss(ort.execute(made))


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """A vision transformer on digits, the code model."""
    digits = [_digits(seed) for seed in SEEDS]
    yield _figure(digits, "int4", progress)
    yield _figure(digits, "int2", progress)
    yield _figure([_code(zoo / "llm/codelm", seed) for seed in SEEDS], "int4", progress)


def _figure(trials: list[QvgenTrial], weight: str, progress: Progress) -> Figure:
    """Means over the seeds."""
    one = trials[0]
    beside = {"qvgen": {"rank": one.rank, "share": 0.5}}
    plain = [trial.after(weight, "distill", progress) for trial in trials]
    faded = [trial.after(weight, beside, progress) for trial in trials]
    pairs = ", ".join(f"{a:.4f} and {b:.4f}" for a, b in zip(faded, plain, strict=True))
    return Figure(
        f"{one.name}: weights {weight}, activations int4, trained beside branches of rank {one.rank} that fade",
        "better than the same steps without", f"{np.mean(faded):.4f}, without {np.mean(plain):.4f}",
        bool(np.mean(faded) < np.mean(plain)),
        f"with and without, by seed: {pairs}; {one.options['steps']} steps at {one.options['lr']:g}",
    )  # fmt: skip


def _digits(seed: int) -> QvgenTrial:
    """Each seed leaves another third out of training, and is judged on it."""
    import torch

    module, (train, test, _) = trained(seed % FOLDS)
    batch = torch.export.Dim("batch", min=2)
    traced = trace(module, (torch.from_numpy(test[:4]),), dynamic_shapes=({0: batch},))
    dense, _ = Pipeline(Recipe.load("clean").passes).run(traced)
    (given,), (end,) = ([v.name or "" for v in values] for values in (dense.graph.inputs, dense.graph.outputs))
    wanted = ort.execute(dense)({given: test})[end]

    def distance(runner: Runner) -> float:
        return float(np.square(runner({given: test})[end] - wanted).mean() / np.square(wanted).mean())

    options = {"steps": 160, "lr": 3e-4, "batch_size": 16, "samples": 512}
    return QvgenTrial("digits ViT, distance to the float logits", dense, {given: train}, distance, 8, options, seed)


def _code(folder: Path, seed: int) -> QvgenTrial:
    """Trained without labels on pieces of the calibration text."""
    valid, text = (np.load(folder / f"{part}.npz")["ids"].astype(np.int64) for part in ("valid", "calib"))
    dense, _ = Pipeline(Recipe.load("clean").passes).run(load(folder / "codelm.onnx"))
    judged = np.split(valid[:_JUDGED], 8)
    options = {"steps": 40, "lr": 3e-4, "batch_size": 4, "samples": 192, "losses": {"kl": {}}}
    pieces = {"ids": text[:, :256].reshape(-1, _TOKENS)}
    return QvgenTrial("code model, nats per byte", dense, pieces, lambda runner: nats(runner, judged), 8, options, seed)
