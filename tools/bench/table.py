"""``python -m graphpress.tools.bench.table``: every real model by every recipe, as JSON and as the README's tables.

Each row is kept as soon as it is measured; a second run with the same ``--out`` goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from graphpress.errors import GraphpressError
from graphpress.tools.bench.children import lines
from graphpress.tools.bench.markdown import missed, render
from graphpress.tools.bench.results import Results, resume
from graphpress.tools.bench.row import BenchRow
from graphpress.tools.bench.zoo import add_options, tasks

RECIPES = "w8a8,w8a8-dynamic,w8a16,w4a16,w4a8"


def rows(command: Sequence[str], model: str, recipes: Sequence[str], limit: float) -> Iterator[BenchRow]:
    """A row for each recipe from a process of its own, which ``command`` starts.

    A process that dies or is silent for ``limit`` seconds costs the row it was at; another one measures the rest.
    """
    for recipe, found in lines(command, model, recipes, limit):
        yield (
            BenchRow.from_json(found)
            if isinstance(found, dict)
            else BenchRow(model, recipe, status="crash", reason=found)
        )


def measure(args: argparse.Namespace, results: Results, keep: Path) -> None:
    """Fill in the rows that are missing, writing the file after each."""
    chosen, recipes = tasks(args.zoo, args.models), args.recipes.split(",")
    command = [sys.executable, "-m", "graphpress.tools.bench.row", "--zoo", str(args.zoo)]
    command += ["--keep", str(keep), "--seconds", str(args.seconds)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(chosen) * len(recipes))
        for task in chosen:
            todo = results.missing(task.name, recipes)
            progress.update(bar, advance=len(recipes) - len(todo), description=task.name)
            for row in rows(command, task.name, todo, args.limit):
                results.add(row)
                results.save(args.out)
                progress.update(bar, advance=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 a bar is missed, 2 bad request."""
    args = _parser().parse_args(argv)
    try:
        results = resume(args.out)
        with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
            measure(args, results, args.keep or Path(folder))
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if args.markdown:
        print(render(results))
    for line in (short := missed(results.rows)):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if short else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphpress.tools.bench.table", description="Measure every model by every recipe."
    )
    add_options(parser)
    parser.add_argument("--recipes", default=RECIPES, help=f"comma-separated (default: {RECIPES})")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="file of rows; goes on where it stops")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the README")
    parser.add_argument("--keep", type=Path, help="folder to keep the compiled models in")
    parser.add_argument("--seconds", type=float, default=2.0, help="of latency measurement per batch size")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that a row may take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
