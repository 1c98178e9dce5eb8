"""The command line: ``graphpress compile``, ``inspect``, ``diff``, ``audit``, ``opt``, ...: twins of the API calls."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``graphpress`` command."""
    from graphpress.tools.cli.app import run

    run()
