"""Students of 8 units on scikit-learn's digits: by balanced divergences beside a teacher that learns, and by a clock.

Splits and seeds are others than in the tests, on which the second settings of ``bdkd`` were found, and than those on
which it was seen that it wants the clipping of gradients that the pass has by default (the tests leave it out).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir

from graphpress import catalog
from graphpress.backends import fx, ort
from graphpress.context import Context
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.losses.base import Tensors
from graphpress.passes.recover.methods.base import Update
from graphpress.passes.recover.methods.bdkd import Bdkd
from graphpress.passes.recover.recover import Recover
from graphpress.pipeline import Pipeline
from graphpress.runner import Progress, quiet
from graphpress.tools.bench.figures.base import Figure

if TYPE_CHECKING:
    import torch

SPLITS, SEEDS = (4, 5), range(30, 35)
SETTINGS: tuple[dict[str, float], ...] = ({}, {"temperature": 4.0, "student_weight": 0.1, "teacher_weight": 0.1})
_TRAINED, _BINS = 1200, 15


@dataclass
class Mutual(Bdkd):
    """What ``bdkd`` is held against: each towards the other by the forward divergence (arXiv:1706.00384)."""

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        student = self.look(batch)
        log_q = (self.logits(student) / self.temperature).log_softmax(-1)
        log_p = (self.taught(batch)["y"].detach() / self.temperature).log_softmax(-1)
        forward = self.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        return {**super().losses(batch, update), "student": self.label(student) + self.student_weight * forward}


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """Check (iv) of BD-KD at its defaults and at the settings of the test, check (v) of TAID."""
    digits = [Digits.split(seed) for seed in SPLITS]
    with mock.patch.dict(catalog.methods(), mutual=Mutual):
        for settings in SETTINGS:
            yield _online(digits, settings, progress)
    yield _clock(digits, progress)


@dataclass(frozen=True)
class Digits:
    """Pictures [N, 64] from 0 to 1 and their labels; ``held`` of them judge."""

    train: Mapping[str, np.ndarray]
    held: np.ndarray
    labels: np.ndarray

    @classmethod
    def split(cls, seed: int) -> Digits:
        from sklearn.datasets import load_digits

        x, labels = load_digits(return_X_y=True)
        x, order = (x / 16).astype(np.float32), np.random.default_rng(seed).permutation(len(x))
        train, held = order[:_TRAINED], order[_TRAINED:]
        return cls({"x": x[train], "labels": labels[train]}, x[held], labels[held])

    def trained(
        self, student: ir.Model, teacher: ir.Model | None, seed: int, progress: Progress, **how: Any
    ) -> ir.Model:
        """The student after a training."""
        ctx = Context(
            data=CalibrationData.from_arrays(self.train), run=ort.execute, differentiate=fx.build, teacher=teacher,
            seed=seed, progress=progress,
        )  # fmt: skip
        return Pipeline([Recover(batch_size=64, samples=_TRAINED, **how)], check_numbers=False).run(student, ctx)[0]

    def probabilities(self, model: ir.Model) -> np.ndarray:
        """[N, 10] of the held-out pictures."""
        logits = ort.execute(model)({"x": self.held})["y"].astype(np.float64)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))


def network(*widths: int, seed: int) -> ir.Model:
    """Layers of these widths between 64 pixels and 10 logits, Relu between them, as they begin."""
    sizes, rng = (64, *widths, 10), np.random.default_rng(seed)
    last = len(sizes) - 2
    steps = [f"[gemm{i}] z{i} = Gemm(h{i}, w{i}, b{i}) [relu{i}] h{i + 1} = Relu(z{i})" for i in range(last)]
    body = " ".join(steps).replace("h0,", "x,")
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 64] x) => (float[N, 10] y) {{ {body} [last] y = MatMul(h{last}, w{last}) }}"""
    proto = onnx.parser.parse_model(text)
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weight = (rng.normal(size=(rows, columns)) * (2 / rows) ** 0.5).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        if i < last:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(columns, np.float32), f"b{i}"))
    return ir.from_proto(proto)


def calibration(p: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(accuracy, expected calibration error in 15 bins) of probabilities [N, classes], in per cent."""
    sure, right = p.max(-1), p.argmax(-1) == labels
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    parts = [bins == b for b in range(_BINS)]
    error = sum(b.mean() * abs(right[b].mean() - sure[b].mean()) for b in parts if b.any())
    return 100 * float(right.mean()), 100 * float(error)


def _online(digits: list[Digits], settings: Mapping[str, float], progress: Progress) -> Figure:
    found: dict[str, list[tuple[float, float]]] = {"bdkd": [], "mutual": []}
    for seed in SEEDS:
        for part in digits:
            for name, scores in found.items():
                how = {"method": {name: settings}, "steps": 500, "lr": 1e-2}
                made = part.trained(network(8, seed=seed), network(64, seed=10 + seed), seed, progress, **how)
                scores.append(calibration(part.probabilities(made), part.labels))
    (right, error), (its_right, its_error) = (np.mean(found[name], axis=0) for name in ("bdkd", "mutual"))
    said = ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "defaults"
    apart = np.subtract(found["bdkd"], found["mutual"])
    spread = apart.std(axis=0, ddof=1) / len(apart) ** 0.5
    return Figure(
        f"bdkd, {said}: calibration error of a student beside a teacher that learns",
        "at most that of mutual learning, accuracy within 0.5 points", f"{error:.2f} %, mutual {its_error:.2f} %",
        bool(error <= its_error and right >= its_right - 0.5),
        f"accuracy {right:.2f} %, mutual {its_right:.2f} %; mean of {len(apart)} pairs, standard errors of the "
        f"differences {spread[1]:.2f} and {spread[0]:.2f}",
    )  # fmt: skip


def _clock(digits: list[Digits], progress: Progress) -> Figure:
    found: dict[str, list[float]] = {"kl": [], "taid": []}
    for part in digits:
        large = network(256, 256, seed=0)
        teacher = part.trained(large, None, 0, progress, losses={"labels": {}}, steps=150, lr=3e-3)
        for seed in list(SEEDS)[:3]:
            for name, losses in found.items():
                how = {"losses": {name: {}}, "steps": 400, "lr": 3e-3}
                made = part.trained(network(8, seed=seed), teacher, seed, progress, **how)
                p = part.probabilities(made)[np.arange(len(part.labels)), part.labels]
                losses.append(float(-np.log(p).mean()))
    taid, plain = np.mean(found["taid"]), np.mean(found["kl"])
    return Figure(
        "taid: cross-entropy of a student of 8 units after a teacher of 2 x 256",
        "at most 1.02x that of the divergence",
        f"{taid:.4f}, divergence {plain:.4f}: {taid / plain:.3f}x", bool(taid <= 1.02 * plain),
        f"mean of {len(found['kl'])} pairs",
    )  # fmt: skip
