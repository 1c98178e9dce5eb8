"""The same W8A8 recipe for OpenVINO's provider and for ONNX Runtime's own on the CPU: time and agreement.

onnxruntime-openvino and onnxruntime bring one package, so OpenVINO wants an environment of its own
(tests/backends/test_openvino.py says how); without it one row says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graphpress import compile, load
from graphpress.backends import ort
from graphpress.errors import Unsupported
from graphpress.job.latency import compare_latency
from graphpress.runner import Progress, Runner, quiet
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task, first
from graphpress.tools.bench.zoo import tasks

MODELS = "resnet20,resnet56"
_SECONDS, _THREADS = 4.0, 1


def measure(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """Milliseconds of one sample, interleaved; the share of samples on which both providers say one class."""
    own, other = Target.load("ort-cpu"), Target.load("ort-openvino")
    for task in tasks(zoo, MODELS):
        source = load(task.file(Path()))
        try:
            with_float = [ort.execute(source, target=t, threads=_THREADS) for t in (own, other)]
        except Unsupported as e:
            yield Figure("ort-openvino against ort-cpu", "", "not measured", note=str(e))
            return
        made = [
            compile(source, "w8a8", task.data(), target=t, gate=False, prove=False, progress=progress)[0]
            for t in (own, other)
        ]
        low = [ort.execute(m, target=t, threads=_THREADS) for m, t in zip(made, (own, other), strict=True)]
        for name, (before, after) in (("float32", with_float), ("W8A8", low)):
            yield _figure(task, name, before, after)


def _figure(task: Task, name: str, own: Runner, other: Runner) -> Figure:
    found = compare_latency(own, other, task.feeds(1), _SECONDS)
    feeds = first(task.data(), 64)
    classes = [next(iter(runner(feeds).values())).argmax(-1) for runner in (own, other)]
    return Figure(
        f"{task.name}, {name}: OpenVINO's provider against the CPU provider", "", f"{found['after']:.2f} ms against "
        f"{found['before']:.2f} ms: {found['ratio']:.2f}x", note=f"one sample, {_THREADS} thread; they agree on "
        f"{np.mean(classes[0] == classes[1]):.1%} of {len(classes[0])} samples",
    )  # fmt: skip
