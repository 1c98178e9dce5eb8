"""One method on one model in a process of its own; prints a line of JSON: seconds and the peak of its memory."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphpress.tools.bench.peers.methods import named


def main(argv: Sequence[str] | None = None) -> int:
    """Write the compressed model; whatever the tool raises ends the process."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.peers.child", description=__doc__)
    parser.add_argument("--method", required=True)
    parser.add_argument("--model", type=Path, required=True, help="float ONNX file")
    parser.add_argument("--data", type=Path, required=True, help=".npz of calibration samples")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    method = named(args.method)
    with np.load(args.data) as arrays:
        data = dict(arrays)
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr), importing() as spent:  # tools print there
        method.compress(args.model, data, args.out)
    seconds = time.perf_counter() - start - sum(spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"seconds": round(seconds, 2), "peak": peak}), flush=True)
    return 0


@contextlib.contextmanager
def importing() -> Iterator[list[float]]:
    """The seconds that this thread spends on each module that is imported for the first time, those within it included.

    Tools import when they are first used, whatever is imported ahead.
    """
    machinery: Any = importlib._bootstrap
    load, thread = machinery._find_and_load, threading.get_ident()
    spent: list[float] = []
    inside = False

    def timed(*args: Any) -> Any:
        nonlocal inside
        if inside or threading.get_ident() != thread:
            return load(*args)
        inside, start = True, time.perf_counter()
        try:
            return load(*args)
        finally:
            inside = False
            spent.append(time.perf_counter() - start)

    machinery._find_and_load = timed
    try:
        yield spent
    finally:
        machinery._find_and_load = load


if __name__ == "__main__":
    sys.exit(main())
