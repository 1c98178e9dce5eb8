"""``python -m graphpress.tools.bench.compile_time``: what compiling costs, beside ONNX Runtime's quantizer.

ResNet-56 and MobileNetV1-0.75 with 300 images, each run a fresh process: our w8a8 (file to saved model, gate included;
audit and latency apart) and ``quantize_static`` (MinMax, per channel, QDQ), whose reader gives one image at a time (the
least memory) or batches. Then whole processes as a user starts them, ours with audit, latency, report and view. Then
how long ``import graphpress`` and ``graphpress --help`` take beyond a bare interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from graphpress.tools.bench.classification import photographs
from graphpress.tools.bench.row import warm
from graphpress.tools.bench.zoo import add_options, tasks

IMAGES = 300
Figures = Mapping[str, float]  # seconds, whole_seconds, peak_mb


def ours(model: Path, data: Path, out: Path) -> Callable[[], None]:
    """Imports, and gives what is timed."""
    import graphpress as gp

    warm()

    def run() -> None:
        compiled, _ = gp.compile(model, "w8a8", data, prove=False)
        gp.save(compiled, out)

    return run


def theirs(model: Path, data: Path, out: Path, batch: int) -> Callable[[], None]:
    """The same for ONNX Runtime's quantizer, its reader giving ``batch`` images at a time."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            with np.load(data) as z:
                arrays = {k: z[k] for k in z.files if k != "labels"}
            self.feeds = ({k: a[i : i + batch] for k, a in arrays.items()} for i in range(0, IMAGES, batch))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    def run() -> None:
        quantize_static(
            model,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )

    return run


OURS = "graphpress"
TOOLS: dict[str, Callable[[Path, Path, Path], Callable[[], None]]] = {
    OURS: ours,
    "onnxruntime x1": partial(theirs, batch=1),
    "onnxruntime x64": partial(theirs, batch=64),
}


def child(tool: str, model: Path, data: Path, out: Path) -> Figures:
    """Compile once in this process."""
    run = TOOLS[tool](model, data, out)
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "peak_mb": peak()}


def peak() -> float:
    """Highest resident memory of this process in MB. Linux's getrusage would count the parent's at the fork as well."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def fresh(tool: str, model: Path, data: Path, folder: Path) -> Figures:
    """``child`` in a process of its own, and the seconds from its start to its end."""
    what = [tool, str(model), str(data), str(folder / "out.onnx")]
    command = [sys.executable, "-m", "graphpress.tools.bench.compile_time", "--zoo", "-", "--child", *what]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed on {model.name}:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "whole_seconds": time.perf_counter() - start}


def compare_tools(model: Path, data: Path, repeat: int, tools: Sequence[str] = tuple(TOOLS)) -> dict[str, Figures]:
    """Medians of ``repeat`` interleaved runs of each tool."""
    runs: dict[str, list[Figures]] = {t: [] for t in tools}
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        for _ in range(repeat):
            for tool in tools:
                runs[tool].append(fresh(tool, model, data, Path(folder)))
    return {t: {k: statistics.median(r[k] for r in found) for k in found[0]} for t, found in runs.items()}


THEIRS = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
model, data, out, batch, images = *sys.argv[1:4], *map(int, sys.argv[4:])
class Reader(CalibrationDataReader):
    def __init__(self):
        with np.load(data) as z:
            arrays = {k: z[k] for k in z.files if k != "labels"}
        self.feeds = ({k: a[i : i + batch] for k, a in arrays.items()} for i in range(0, images, batch))
    def get_next(self):
        return next(self.feeds, None)
quantize_static(
    model, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
)
"""


def whole_processes(model: Path, data: Path, repeat: int) -> dict[str, Figures]:
    """Median seconds from the start of a process to its end, of interleaved runs behind one that warms up."""
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        paths = [str(model), "--recipe", "w8a8", "--data", str(data), "--out", f"{folder}/ours"]
        commands = {OURS: ["-m", "graphpress.tools.cli", "compile", *paths]}
        for batch in (1, 64):
            given = [str(model), str(data), f"{folder}/theirs.onnx", str(batch), str(IMAGES)]
            commands[f"onnxruntime x{batch}"] = ["-c", THEIRS, *given]
        walls = [{tool: _wall(args) for tool, args in commands.items()} for _ in range(1 + repeat)]
    return {tool: {"seconds": statistics.median(w[tool] for w in walls[1:])} for tool in commands}


def start_up(rounds: int = 5) -> dict[str, float]:
    """Median seconds beyond a bare interpreter, for the import and for --help, in interleaved runs."""
    cases = {
        "bare": ["-c", "pass"],
        "import graphpress": ["-c", "import graphpress"],
        "graphpress --help": ["-c", "from graphpress.tools.cli import main; main()", "--help"],
    }
    walls = [{name: _wall(args) for name, args in cases.items()} for _ in range(rounds)]
    return {name: statistics.median(w[name] - w["bare"] for w in walls) for name in cases if name != "bare"}


def verifier(size: int = 10_000, rounds: int = 5) -> float:
    """Median seconds that the structural check takes on a chain of ``size`` nodes."""
    import onnx_ir as ir

    from graphpress.graph import verify

    first = value = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = []
    for i in range(size):
        nodes.append(ir.Node("", "Relu", [value], name=f"n{i}"))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    model = ir.Model(ir.Graph([first], [value], nodes=nodes, opset_imports={"": 21}, name="chain"), ir_version=10)
    walls = []
    for _ in range(rounds):
        start = time.perf_counter()
        verify.check(model)
        walls.append(time.perf_counter() - start)
    return statistics.median(walls)


def _wall(args: Sequence[str]) -> float:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as a user's interpreter is
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], capture_output=True, check=True, env=kept)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures as text, or as JSON."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.compile_time", description="Seconds and memory.")
    add_options(parser, models="resnet56,mobilenet_v1_0.75_192")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median is given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        tool, *paths = args.child
        print(json.dumps(child(tool, *map(Path, paths))))
        return 0
    found = measure(args.zoo, args.models, args.repeat)
    print(json.dumps(found, indent=1) if args.json else render(found))
    return 0


def measure(zoo: Path, models: str, repeat: int) -> dict[str, dict[str, Figures]]:
    """Model -> tool -> figures, and the start-up times."""
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        for task in tasks(zoo, models):
            data = Path(folder) / "data.npz"
            arrays = task.data()
            if len(next(iter(arrays.values()))) < IMAGES:  # the table keeps most photographs for the score
                size = next(iter(arrays.values())).shape[-1]
                arrays = {next(iter(arrays)): photographs(zoo, size)[0][:IMAGES]}
            np.savez(data, **arrays)  # type: ignore[arg-type]
            model = task.file(Path(folder))
            found[task.name] = compare_tools(model, data, repeat)
            found[f"{task.name}, whole"] = whole_processes(model, data, repeat)
    seconds = start_up() | {"verify 10,000 nodes": verifier()}
    return {**found, "start-up": {name: {"seconds": s} for name, s in seconds.items()}}


def render(found: Mapping[str, Mapping[str, Figures]]) -> str:
    """A line each, with our share of the other tool's figures."""
    lines = []
    for what, tools in found.items():
        for tool, figures in tools.items():
            lines.append(f"{what:24} {tool:18} " + "  ".join(f"{k} {v:.2f}" for k, v in figures.items()))
            if OURS in tools and tool != OURS:
                shares = {k: tools[OURS][k] / v for k, v in figures.items()}
                lines.append(f"{what:24} {'  ours is':18} " + "  ".join(f"{k} {v:.2f}x" for k, v in shares.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
