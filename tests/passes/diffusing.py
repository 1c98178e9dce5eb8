"""The zoo's small diffusion models as graphs, with inputs on the way from digits to noise."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphpress as gp
from graphpress.backends import reference


def digits(zoo: Path, name: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """x_t, t and labels: ``count`` digits at times drawn evenly, a tenth without their label."""
    parts = {p: next((zoo / "mnist").glob(f"t10k-{p}*")).read_bytes() for p in ("images", "labels")}
    images, labels = (np.frombuffer(gzip.decompress(b), np.uint8) for b in parts.values())
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, 10_000, count)
    x = images[16:].reshape(-1, 1, 28, 28)[chosen].astype(np.float32) / 127.5 - 1
    label = labels[8:].astype(np.int64)[chosen]
    label[rng.random(count) < 0.1] = 10
    t, noise = rng.random(count).astype(np.float32), rng.standard_normal(x.shape).astype(np.float32)
    a, s = (1 - t, t) if name == "dit" else (np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t))
    mixed = a.reshape(-1, 1, 1, 1) * x + s.reshape(-1, 1, 1, 1) * noise
    return {"x": mixed.astype(np.float32), "t": t, "label": label}


def traced(zoo: Path, name: str) -> ir.Model:
    """The model with an open batch."""
    import torch

    spec = importlib.util.spec_from_file_location("diffusion_models", zoo / "diffusion" / "models.py")
    assert spec is not None and spec.loader is not None
    made: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    example = {n: torch.from_numpy(a) for n, a in digits(zoo, name, 2, 0).items()}
    batch = torch.export.Dim("batch")
    return gp.trace(made.load(name), tuple(example.values()), dynamic_shapes={n: {0: batch} for n in example})


def error(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """Squared error of what is predicted over its square."""
    wanted, got = (next(iter(reference.execute(m)(feeds).values())).astype(np.float64) for m in (before, after))
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())
