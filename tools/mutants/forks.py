"""Forks that are watched: work is done in a copy of this process, which may fail, hang or take too much memory."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable

MEMORY = 12 << 30  # bytes that a fork may take


def start(work: Callable[[], int], output: int | None = None) -> int:
    """Start ``work`` in a fork; what it returns is the exit code. Prints to the file ``output``, or to nothing."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sink = os.open(os.devnull, os.O_WRONLY) if output is None else output
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        code = work()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code, or None where it had to be stopped."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def read(work: Callable[[int], int], seconds: float) -> tuple[str, int | None]:
    """What a fork writes to the file it is given (its output goes there too), and its exit code."""
    reader, writer = os.pipe()
    pid = start(lambda: work(writer), writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    return text, wait(pid, seconds)


def apart(work: Callable[[], None]) -> None:
    """Run ``work`` in a fork and wait for it, so that what it imports does not stay."""

    def done() -> int:
        work()
        return 0

    wait(start(done, os.dup(1)), float("inf"))
