"""The command line: ``graphpress compile``, ``inspect``, ``diff``, ``audit``, ``opt``, ...: twins of the API calls."""

from __future__ import annotations

import gc
import sys

# Graphs are cycles of many small objects that live long: a look for garbage after each 700 new ones, as is the default,
# takes a tenth of a compile.
_ALLOCATIONS = 20_000


def main() -> None:
    """Entry point of the ``graphpress`` command."""
    gc.set_threshold(_ALLOCATIONS)
    try:
        from graphpress.tools.cli.app import run

        run()
    except KeyboardInterrupt:  # while the interpreter was still importing
        sys.exit(130)
    finally:
        gc.freeze()  # the process ends, and need not look through all graphs for garbage first
