"""``python -m graphpress.tools.bench.calibration --out DIR``: calibration data as the command line takes them.

Writes ``NAME.npz`` for each model (input name -> array, samples first; ``labels`` for classifiers), and ``NAME.onnx``
for a model that comes in through torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphpress.errors import GraphpressError
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import add_options, tasks


def write_npz(task: Task, folder: Path) -> Path:
    """The task's calibration data as ``NAME.npz`` in ``folder``."""
    path = folder / f"{task.name}.npz"
    np.savez(path, **task.data())  # type: ignore[arg-type]
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write them all and print the commands that use them."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.calibration", description="Write calibration data.")
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for task in tasks(args.zoo, args.models):
            model, data = task.file(args.out), write_npz(task, args.out)
            print(f"graphpress compile {model} --recipe w8a8 --data {data} --out OUT", flush=True)
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
