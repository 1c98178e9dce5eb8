"""What ONNX Runtime made of a model and how long each node took: its optimised graph and its profile, read back."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphpress.backends.macs import KernelRun, Shapes
from graphpress.backends.ort.session import Session, SessionOptions, open_session
from graphpress.runner import Arrays
from graphpress.target import Target

BUDGET = 0.3  # seconds of repeated runs; the fastest counts
MOST_RUNS = 10
CONTROL = frozenset({"If", "Loop", "Scan"})  # their time is that of their bodies
_EXTERNAL = {
    "session.optimized_model_external_initializers_file_name": "optimised.bin",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


@dataclass(frozen=True)
class Profile:
    """``graph`` is ONNX Runtime's graph (weights left out); ``kernels`` goes by node name."""

    graph: onnx.GraphProto
    kernels: dict[str, KernelRun]


def profile(model: ir.Model, feeds: Arrays, *, optimise: bool = True, target: Target | None = None) -> Profile:
    """Run ``model`` on ``feeds``, repeatedly where that is quick, and read back what ran.

    Raises:
        BadRequest: The feeds do not fit the model.
        Unsupported: ONNX Runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        graph = Path(folder) / "optimised.onnx"
        options = SessionOptions(
            optimise,
            spinning=optimise,  # timed as the only model of a process would run
            save_optimised=str(graph),
            profile=str(Path(folder) / "profile"),
            config=dict(_EXTERNAL),
        )
        session = open_session(model, None, options, target)
        with _ended(session) as written:
            _run(session, feeds, repeat=optimise)
        events = json.loads(Path(written[0]).read_text())
        return Profile(onnx.load(graph, load_external_data=False).graph, _kernels(events))


@contextlib.contextmanager
def _ended(session: Session) -> Iterator[list[str]]:
    """The path of the profile once the block is left; ended in any case, for an open one keeps its file."""
    written: list[str] = []
    try:
        yield written
    finally:
        written.append(session.session.end_profiling())


def _run(session: Session, feeds: Arrays, *, repeat: bool) -> None:
    start = time.perf_counter()
    session(feeds)
    once = time.perf_counter() - start
    for _ in range(min(MOST_RUNS, int(BUDGET / once) + 1) if repeat else 0):
        session(feeds)


def _kernels(events: list[dict[str, Any]]) -> dict[str, KernelRun]:
    """Kernels by node name: the fastest run of each, the first one left out where there are more."""
    ends = sorted(e["ts"] + e["dur"] for e in events if e.get("name") == "model_run")
    runs: list[dict[str, list[dict[str, Any]]]] = [defaultdict(list) for _ in ends]
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            run = int(np.searchsorted(ends, event["ts"]))
            runs[min(run, len(runs) - 1)][event["name"].removesuffix("_kernel_time")].append(event)
    timed = runs[1:] or runs
    names = dict.fromkeys(name for run in timed for name in run)
    return {name: _kernel(name, [run[name] for run in timed if name in run]) for name in names}


def _kernel(name: str, runs: list[list[dict[str, Any]]]) -> KernelRun:
    fastest = min(sum(e["dur"] for e in run) for run in runs)
    calls = [(_shapes(e, "input_type_shape"), _shapes(e, "output_type_shape")) for e in runs[0]]
    return KernelRun(name, runs[0][0]["args"]["op_name"], float(fastest), calls)


def _shapes(event: dict[str, Any], key: str) -> Shapes:
    return [(kind, tuple(shape)) for entry in event["args"].get(key, []) for kind, shape in entry.items()]
