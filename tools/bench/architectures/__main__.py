"""``python -m graphpress.tools.bench.architectures``: real architectures by every stage of the compiler.

Models of transformers, diffusers and timm (``pip install 'graphpress[models]'``) in their default configurations but
for their size, with random weights; each in a process of its own. The file of entries is written after each; a second
run with the same ``--out`` goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.job.bundle import disk_errors
from graphpress.tools.bench.architectures.architecture import Architecture
from graphpress.tools.bench.architectures.listed import listed
from graphpress.tools.bench.architectures.page import Key, misses, render
from graphpress.tools.bench.architectures.stages import STAGES, Entry
from graphpress.tools.bench.children import lines
from graphpress.tools.cli import terminal

_CHILD = (sys.executable, "-m", "graphpress.tools.bench.architectures.stages")


def load(path: Path | None) -> dict[Key, Entry]:
    """The entries in a file; none where there is no file.

    Raises:
        BadRequest: Not a file of entries.
    """
    if path is None or not path.exists():
        return {}
    try:
        found = [Entry(**json.loads(line)) for line in path.read_text().splitlines()]
        return {(e.model, e.recipe): e for e in found}
    except (OSError, ValueError, TypeError) as e:
        raise BadRequest("is not a file of entries", where=str(path), fix="Choose another --out.") from e


def entries(architecture: Architecture, todo: Sequence[str], limit: float) -> Iterator[Entry]:
    """Those of one architecture, from a process of its own."""
    for stage, found in lines(_CHILD, architecture.name, todo, limit):
        if isinstance(found, str):
            yield Entry(stage, architecture.name, ok=False, why=found, crash=True)
        else:
            yield Entry(**found)


def fill(known: dict[Key, Entry], wanted: Sequence[Architecture], args: argparse.Namespace) -> None:
    """Add the entries that are missing, and write each to the file."""
    todo = {a: [s for s in args.stages if (a.name, s) not in known] for a in wanted}
    todo = {a: stages for a, stages in todo.items() if stages}
    with ThreadPoolExecutor(args.jobs) as pool, terminal.progress() as progress:
        made = pool.map(lambda a: list(entries(a, todo[a], args.limit)), todo)
        for found in progress(made, "architectures", len(todo)):
            for entry in found:
                known[entry.model, entry.recipe] = entry
                if args.out is not None:
                    with disk_errors(args.out), args.out.open("a") as file:
                        file.write(json.dumps(asdict(entry)) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page. Exit code 0 all bars hold, 1 one does not, 2 bad request."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.architectures", description=__doc__)
    parser.add_argument("--only", default="*", help="comma-separated globs of names or families (default: all)")
    parser.add_argument("--stages", help=f"comma-separated, of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a stage may take")
    parser.add_argument("--out", type=Path, help="file of entries, a line each; a second run goes on where it stops")
    parser.add_argument("--known", action="store_true", help="run nothing: the page of what --out has")
    parser.add_argument("--page", type=Path, help="where the page goes; printed when absent")
    args = parser.parse_args(argv)
    try:
        args.stages = _stages(args.stages)
        wanted, found = listed(args.only), load(args.out)
        if not args.known:
            fill(found, wanted, args)
        text = render(_in_order(found, wanted), wanted)
        if args.page is not None:
            with disk_errors(args.page):
                args.page.write_text(text)
        else:
            print(text, end="")
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return int(any(misses(_in_order(found, wanted), wanted)))


def _in_order(found: Mapping[Key, Entry], wanted: Sequence[Architecture]) -> dict[Key, Entry]:
    return {(a.name, s): found[a.name, s] for a in wanted for s in STAGES if (a.name, s) in found}


def _stages(given: str | None) -> list[str]:
    names = given.split(",") if given else list(STAGES)
    if odd := next((n for n in names if n not in STAGES), None):
        raise BadRequest("there is no such stage", where=f"--stages {odd!r}", fix=nearest(odd, STAGES))
    return names


if __name__ == "__main__":
    sys.exit(main())
