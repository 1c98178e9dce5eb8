"""``python -m graphpress.tools.bench.torch_speed --zoo DIR``: the fx module against eager torch of the same model.

Ratios are medians over pairs of interleaved runs in one process, two threads, uncompiled and under torch.compile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphpress.tools.bench.torch_models import MODELS

SECONDS = 3.0  # of interleaved runs for one ratio


@dataclass(frozen=True)
class Speed:
    """One model at one batch size. Ratios are fx over eager, ``error`` is relative to the largest output."""

    model: str
    batch: int
    eager_ms: float
    uncompiled: float
    compiled: float | None
    error: float


def measure(name: str, zoo: Path, *, compiled: bool) -> list[Speed]:
    """Trace a model once and time it at each of its batch sizes."""
    import graphpress as gp

    make, inputs, batches = MODELS[name]
    module = make(zoo)
    rows = []
    for batch in batches:
        x = inputs(batch)
        fast = gp.lower(gp.trace(module, (x,)), "torch-cpu")
        rows.append(_one(name, batch, module, fast, x, compiled=compiled))
    return rows


def _one(name: str, batch: int, module: nn.Module, fast: nn.Module, x: torch.Tensor, *, compiled: bool) -> Speed:
    with torch.no_grad():
        expected, given = module(x), fast(x)
        error = float((expected - given).abs().max() / expected.abs().max())
        eager, ratio = ratio_of(lambda: fast(x), lambda: module(x))
        both = None
        if compiled:
            torch._dynamo.reset()
            a, b = torch.compile(fast, fullgraph=True), torch.compile(module, fullgraph=True)
            both = ratio_of(lambda: a(x), lambda: b(x))[1]
    return Speed(name, batch, 1e3 * eager, ratio, both, error)


def ratio_of(a: Callable[[], Any], b: Callable[[], Any], seconds: float = SECONDS) -> tuple[float, float]:
    """(median seconds of ``b``, median of the pairwise ratio a/b), the order of each pair turned round every time."""
    for f in (a, b, a, b):
        f()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 5 or time.perf_counter() < end:
        first, second = (a, b) if len(pairs) % 2 else (b, a)
        t0 = time.perf_counter()
        first()
        t1 = time.perf_counter()
        second()
        t2 = time.perf_counter()
        pairs.append((t1 - t0, t2 - t1) if first is a else (t2 - t1, t1 - t0))
    return statistics.median(p[1] for p in pairs), statistics.median(p[0] / p[1] for p in pairs)


def build_seconds(nodes: int = 1000) -> tuple[int, float]:
    """(nodes, fastest of three seconds) that a module of a deep perceptron takes to build."""
    import graphpress as gp

    layers = [nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU()) for _ in range(nodes // 2)]
    model = gp.trace(nn.Sequential(*layers), (torch.randn(2, 16),))
    found = []
    for _ in range(3):
        start = time.perf_counter()
        gp.lower(model, "torch-cpu")
        found.append(time.perf_counter() - start)
    return len(list(model.graph)), min(found)


def shared_weights(zoo: Path) -> tuple[int, int]:
    """(parameters of the code model's fx module that lie in the traced module's memory, all of them)."""
    import graphpress as gp

    make, inputs, _ = MODELS["code model"]
    module = make(zoo)
    fast = gp.lower(gp.trace(module, (inputs(1),)), "torch-cpu")
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    return sum(p.untyped_storage().data_ptr() in own for p in fast.parameters()), len(list(fast.parameters()))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.torch_speed", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print("| model | batch | eager ms | fx / eager | both under torch.compile | error |")
    print("|---|---|---|---|---|---|")
    for name in args.models.split(","):
        for row in measure(name, args.zoo, compiled=not args.no_compile):
            compiled = "-" if row.compiled is None else f"{row.compiled:.2f}x"
            print(
                f"| {name} | {row.batch} | {row.eager_ms:.1f} | {row.uncompiled:.2f}x | {compiled} | {row.error:.1e} |",
                flush=True,
            )
    nodes, seconds = build_seconds()
    shared, parameters = shared_weights(args.zoo)
    print(f"\nBuilding a module of {nodes} nodes: {seconds:.2f} s.")
    print(f"Weights in the traced module's memory: {shared} of {parameters}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
