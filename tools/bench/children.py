"""One model by each of some recipes in a process of its own that prints a line of JSON for each: a crash costs one."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any


def lines(
    command: Sequence[str], model: str, recipes: Sequence[str], limit: float
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """For each recipe what the process printed, which names it as ``recipe``; or how the process ended.

    A process that dies or is silent for ``limit`` seconds costs the recipe it was at; another one goes on with the
    rest.

    Args:
        command: Starts the process, which takes ``--models`` and ``--recipes``, commas between them.
        model: Its name.
        recipes: In order.
        limit: Seconds.
    """
    left = list(recipes)
    while left:
        with tempfile.TemporaryFile("w+") as errors:
            now = [*command, "--models", model, "--recipes", ",".join(left)]
            process = subprocess.Popen(now, stdout=subprocess.PIPE, stderr=errors, text=True)
            for found in _printed(process, limit):
                left.remove(found["recipe"])
                yield found["recipe"], found
            if left:
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:] or ["it printed nothing"]
                yield left.pop(0), f"the process ended with code {process.returncode}: {last[0]}"


def _printed(process: subprocess.Popen[str], limit: float) -> Iterator[dict[str, Any]]:
    """What the process prints, until it ends or is silent for too long."""
    assert process.stdout is not None
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            timer.cancel()
            if line.startswith("{"):  # native libraries may print there too
                yield json.loads(line)
            timer = threading.Timer(limit, process.kill)
            timer.start()
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
