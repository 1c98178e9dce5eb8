"""``python -m graphpress.tools.bench.peers --zoo DIR``: other tools on the same weights and data, and ours.

Each method runs in a process of its own, on the task's calibration samples; what it writes is scored by ONNX Runtime.
A tool that is not installed, or that fails, is a row. Rows are kept in ``--out`` and not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from graphpress.errors import GraphpressError
from graphpress.runner import Arrays, Runner
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.peers import methods
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.rows import PeerRow, render
from graphpress.tools.bench.task import Task, select
from graphpress.tools.bench.zoo import tasks

_HEAD = """# Other tools on the same weights and data

Written by `python -m graphpress.tools.bench.peers --zoo DIR --out FILE --page docs/figures/peers.md`: each method in a
process of its own, its file scored by ONNX Runtime; in bold ours. Weights in groups of 64 where a tool takes that. The
torch tools' weights are dequantized into the file for the score, so their MB are those of floats. Imports take no
part in the seconds; ours hold the checks behind each pass and the comparison of the outputs, which no other tool makes.
Where a tool fails as it is, it is given what makes it run: smaller groups, its preprocessing without symbolic shapes,
memory that is not pinned for a GPU. AIMET's AdaRound takes 2,000 steps a layer, MCT's EPTQ 15 epochs.
Without data, MCT makes 64 images in 500 steps for each 32 of them, and Genie-D 64 in 150 steps; both, and ZeroQ, from
the statistics of BatchNormalization, which the torch module and our export of it still have.

Nats of a text move by 0.001 to 0.002 with any change of weights, for better or worse; the divergence (KL from the float
model's predictions, mean over the text) does not, and tells methods apart. Our recipes store the embedding table in
4 bits too, most others in floats: part of their divergence, and of their MB. Top-1 of the classifiers, on 2,000 or 400
images, moves by half a point likewise.

"""
MODELS = "codelm,codelm_outliers,stories260K,resnet20,resnet56,mobilenet_v1_0.75_192"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when done, 2 at a bad request."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.peers", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--models", default=MODELS, help="comma-separated globs")
    parser.add_argument("--only", default="*", help="glob of methods, as in 'ONNX Runtime*'")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a method may take")
    parser.add_argument("--out", type=Path, help="file of rows, a line each; a second run goes on where it stops")
    parser.add_argument("--page", type=Path, help="where the tables go; printed when absent")
    args = parser.parse_args(argv)
    try:
        rows = known(args.out)
        for task in select(tasks(args.zoo), args.models):
            done = {(r.model, r.method, r.scheme) for r in rows}
            for row in measure(task, args.only, done, args.zoo, args.limit):
                rows.append(row)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(row.to_json()) + "\n")
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    page = _HEAD + render(sorted(rows, key=lambda r: (r.model, r.scheme)))
    if args.page:
        args.page.write_text(page)
    else:
        print(page)
    return 0


def known(out: Path | None) -> list[PeerRow]:
    """What an earlier run left."""
    if out is None or not out.exists():
        return []
    return [PeerRow.from_json(json.loads(line)) for line in out.read_text().splitlines()]


def measure(task: Task, only: str, done: set[tuple[str, str, str]], zoo: Path, limit: float) -> Iterator[PeerRow]:
    """A row for each method that takes the task and is not done."""
    chosen = [
        m
        for m in methods.every()
        if _takes(m, task) and fnmatch.fnmatchcase(methods.key(m), only) and (task.name, m.name, m.scheme) not in done
    ]
    if not chosen:
        return
    with tempfile.TemporaryDirectory(prefix="graphpress-") as name:
        folder = Path(name)
        source = task.file(folder)
        data = folder / "data.npz"
        np.savez(data, **{k: a for k, a in task.data().items() if k != "labels"})  # type: ignore[arg-type]
        float_runner = Remembered(FileRunner(source))
        whole = score(task, float_runner, float_runner)
        for method in chosen:
            print(f"{task.name}: {methods.key(method)}", file=sys.stderr, flush=True)
            row = PeerRow(task.name, task.kind, method.name, method.scheme, method.ours, whole)
            yield run(method, task, row, float_runner, source, data, folder / "out.onnx", limit)


def _takes(method: Method, task: Task) -> bool:
    return any(task.kind == glob or fnmatch.fnmatchcase(task.name, glob) for glob in method.takes)


def run(
    method: Method, task: Task, row: PeerRow, whole: Runner, source: Path, data: Path, out: Path, limit: float
) -> PeerRow:
    """The row with what came of it."""
    if lacks := methods.missing(method):
        return replace(row, why=f"not installed: {', '.join(lacks)}")
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "graphpress.tools.bench.peers.child", "--method", methods.key(method)]
    command += ["--model", str(source.absolute()), "--data", str(data.absolute()), "--out", str(out.absolute())]
    try:
        ended = subprocess.run(  # where ``out`` lies: some tools leave files in the working folder
            command, capture_output=True, text=True, timeout=limit, check=False, cwd=out.parent
        )
    except subprocess.TimeoutExpired:
        return replace(row, why=f"stopped after {limit:.0f} s")
    printed = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    if ended.returncode or not printed:
        return replace(row, why=_last(ended.stderr))
    try:
        runner = Remembered(FileRunner(out))
        after = score(task, runner, whole)
        apart = None if task.apart is None else task.apart(runner, whole)
    except Exception as e:  # noqa: BLE001 - what another tool writes may be anything
        return replace(row, why=f"ONNX Runtime: {_last(str(e))}")
    return replace(row, score=after, apart=apart, size=out.stat().st_size, **printed[-1])


def score(task: Task, runner: Runner, whole: Runner) -> float:
    """The task's headline figure of a model beside the float one."""
    return next(iter(task.scores(runner, whole).values()))


class Remembered:
    """A ``Runner`` that runs each feed once: two figures of a method are taken on one text, and the float one's too."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.input_names, self.output_names = runner, runner.input_names, runner.output_names
        self.known: dict[bytes, dict[str, np.ndarray]] = {}

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        key = hashlib.sha256(b"".join(array.tobytes() for array in feeds.values())).digest()
        if key not in self.known:
            self.known[key] = self.runner(feeds)
        return self.known[key]


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:160] if lines else "it printed nothing"


if __name__ == "__main__":
    sys.exit(main())
