"""The command line: ``graphpress compile``, ``inspect``, ``diff``, ``audit``, ``opt``, ...: twins of the API calls."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``graphpress`` command."""
    try:
        from graphpress.tools.cli.app import run

        run()
    except KeyboardInterrupt:  # while the interpreter was still importing
        sys.exit(130)
