"""Native code that prints whatever it is told: kept off the streams of the process while it runs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hushed() -> Iterator[None]:
    """Send what is written to the descriptors 1 and 2 nowhere, what C keeps in its buffers included.

    For short calls: other threads of the process are not heard either.
    """
    _flush()
    kept = {}
    try:
        with Path(os.devnull).open("wb") as nowhere:
            for descriptor in (1, 2):
                try:
                    kept[descriptor] = os.dup(descriptor)
                except OSError:  # closed: a process without a terminal
                    continue
                os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        _flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
