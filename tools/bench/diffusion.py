"""Diffusion models: what is lost of the prediction along the way from noise to digits, and of the digits themselves."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.runner import Runner

NAMES = ("dit", "unet")
NONE = 10  # the class of what has none, for guidance
_STEPS, _GUIDANCE, _PROJECTIONS = 16, 2.0, 128
Predict: TypeAlias = Callable[[np.ndarray, float, np.ndarray], np.ndarray]


def digits(zoo: Path, name: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """x_t, t and labels: ``count`` digits at times drawn evenly, a tenth without their label."""
    images, labels = _mnist(zoo)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, 10_000, count)
    x, label = images[chosen], labels[chosen]
    label[rng.random(count) < 0.1] = NONE
    t, noise = rng.random(count).astype(np.float32), rng.standard_normal(x.shape).astype(np.float32)
    a, s = (1 - t, t) if name == "dit" else (np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t))
    mixed = a.reshape(-1, 1, 1, 1) * x + s.reshape(-1, 1, 1, 1) * noise
    return {"x": mixed.astype(np.float32), "t": t, "label": label}


@functools.cache
def _mnist(zoo: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [10000, 1, 28, 28] from -1 to 1, and labels."""
    parts = (next((zoo / "mnist").glob(f"t10k-{p}*")).read_bytes() for p in ("images", "labels"))
    images, labels = (np.frombuffer(gzip.decompress(b), np.uint8) for b in parts)
    return images[16:].reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1, labels[8:].astype(np.int64)


def traced(zoo: Path, name: str) -> ir.Model:
    """The model with an open batch."""
    import torch

    import graphpress as gp

    spec = importlib.util.spec_from_file_location("diffusion_models", zoo / "diffusion" / "models.py")
    assert spec is not None and spec.loader is not None
    made: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    example = {n: torch.from_numpy(a) for n, a in digits(zoo, name, 2, 0).items()}
    batch = torch.export.Dim("batch")
    return gp.trace(made.load(name), tuple(example.values()), dynamic_shapes={n: {0: batch} for n in example})


def error(before: Runner, after: Runner, feeds: Mapping[str, np.ndarray]) -> float:
    """Squared error of what is predicted over its square."""
    wanted, got = (next(iter(run(feeds).values())).astype(np.float64) for run in (before, after))
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


@dataclass(frozen=True)
class Sampler:
    """Draws digits: Euler steps of the flow, or DDIM steps of the variance-preserving process, with guidance.

    Attributes:
        zoo: Where the judge and the real digits are.
        name: Of the model.
        count: Digits, a tenth of each class.
        seed: Of the noise.
    """

    zoo: Path
    name: str
    count: int = 100
    seed: int = 0

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count) % 10

    def way(self, predict: Predict) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        """(x_t, t, the guided prediction there) of each step; the last has the digits and t = 0."""
        x = np.random.default_rng(self.seed).standard_normal((self.count, 1, 28, 28)).astype(np.float32)
        grid = np.linspace(1.0 if self.name == "dit" else 0.999, 0.0, _STEPS + 1)
        for t, u in itertools.pairwise(grid):
            told, free = predict(x, t, self.labels), predict(x, t, np.full_like(self.labels, NONE))
            guided = free + _GUIDANCE * (told - free)
            yield x, float(t), guided
            x = self._step(x, guided, float(t), float(u)).astype(np.float32)
        yield x, 0.0, np.zeros_like(x)

    def _step(self, x: np.ndarray, p: np.ndarray, t: float, u: float) -> np.ndarray:
        if self.name == "dit":
            return x + (u - t) * p
        a, s, b, r = (f(math.pi / 2 * w) for w in (t, u) for f in (math.cos, math.sin))
        return b * np.clip((x - s * p) / a, -1.5, 1.5) + r * p

    def run(self, runner: Runner) -> np.ndarray:
        """The digits of a model, [count, 1, 28, 28]."""
        *_, last = self.way(self._predict(runner))
        return last[0]

    def velocity(self, way: Sequence[tuple[np.ndarray, float, np.ndarray]], after: Runner) -> float:
        """Squared error of the guided prediction on the float model's way (see ``float_way``), over its square."""
        predict, wrong, whole = self._predict(after), 0.0, 0.0
        for x, t, wanted in way[:-1]:
            told, free = predict(x, t, self.labels), predict(x, t, np.full_like(self.labels, NONE))
            got = free + _GUIDANCE * (told - free)
            wrong += float(np.square(got - wanted, dtype=np.float64).sum())
            whole += float(np.square(wanted, dtype=np.float64).sum())
        return wrong / whole

    def float_way(self, before: Runner) -> list[tuple[np.ndarray, float, np.ndarray]]:
        """Where the float model goes, and what it predicts there; the last has the digits."""
        return list(self.way(self._predict(before)))

    def right(self, made: np.ndarray) -> float:
        """Per cent of digits that the zoo's classifier takes for what was asked."""
        from graphpress.backends import ort

        judge = ort.execute(ir.load(self.zoo / "mnist" / "burn_mnist.onnx"))
        pixels = (np.clip(made, -1, 1) + 1) / 2
        scores = [
            next(iter(judge({judge.input_names[0]: ((p[None] - 0.1307) / 0.3081).astype(np.float32)}).values()))
            for p in pixels
        ]
        return 100.0 * float(np.mean(np.concatenate(scores).argmax(-1) == self.labels))

    def distance(self, made: np.ndarray) -> float:
        """Sliced Wasserstein distance to real digits of the same classes, root mean square over projections."""
        images, labels = _mnist(self.zoo)
        real = np.concatenate([images[labels == c][: self.count // 10] for c in range(10)])
        rng = np.random.default_rng(self.seed)
        along = rng.standard_normal((28 * 28, _PROJECTIONS))
        along /= np.linalg.norm(along, axis=0)
        mine, theirs = (np.sort(x.reshape(len(x), -1).astype(np.float64) @ along, axis=0) for x in (made, real))
        return float(np.sqrt(np.square(mine - theirs).mean()))

    def _predict(self, runner: Runner) -> Predict:
        def predict(x: np.ndarray, t: float, label: np.ndarray) -> np.ndarray:
            feeds = {"x": x, "t": np.full(len(x), t, np.float32), "label": label}
            return next(iter(runner(feeds).values())).astype(np.float64)

        return predict
