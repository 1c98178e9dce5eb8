"""``python -m graphpress.tools.bench.figures --zoo DIR [--only NAME,..]``: the figures of each method as a table."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.tools.bench import figures
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.cli import terminal

_PARTS = ("__main__", "base")


def names() -> list[str]:
    """The families that have figures."""
    return sorted(m.name for m in pkgutil.iter_modules(figures.__path__) if m.name not in _PARTS)


def line(figure: Figure) -> str:
    """The figure as a row of a Markdown table."""
    verdict = {True: "met", False: "NOT met", None: ""}[figure.met]
    return f"| {figure.what} | {figure.asked} | {figure.measured} | {verdict} | {figure.note} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 all bars met, 1 one is missed, 2 bad request."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.figures", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(names())}")
    args = parser.parse_args(argv)
    missed = 0
    try:
        for name in _chosen(args.only):
            print(f"\n### {name}\n\n| what | asked | measured | | note |\n|---|---|---|---|---|", flush=True)
            module = importlib.import_module(f"graphpress.tools.bench.figures.{name}")
            with terminal.progress() as progress:
                for figure in module.measure(args.zoo, progress):
                    missed += figure.met is False
                    print(line(figure), flush=True)
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 1 if missed else 0


def _chosen(only: str | None) -> Iterable[str]:
    known = names()
    for name in only.split(",") if only else known:
        if name not in known:
            raise BadRequest("has no figures", where=f"--only {name!r}", fix=nearest(name, known))
        yield name


if __name__ == "__main__":
    sys.exit(main())
