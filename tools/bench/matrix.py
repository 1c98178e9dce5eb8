"""``python -m graphpress.tools.bench.matrix``: every recipe by every real model: applies, skips, or refuses, and why.

Settings are quick ones: short searches, short trainings, few samples. The file of cells is written after each; a second
run with the same ``--out`` goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from graphpress import shipped
from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.job.bundle import disk_errors
from graphpress.tools.bench.cell import Cell
from graphpress.tools.bench.children import lines
from graphpress.tools.bench.zoo import add_options, tasks
from graphpress.tools.cli import terminal

_HEAD = """# Every recipe by every model

Written by `python -m graphpress.tools.bench.matrix --zoo DIR --markdown`, at quick settings: {what}.
A percentage is the share of the sites (convolutions, matrix products, recurrences, embeddings) that have a low-bit
format now; before it stands what else the recipe did: the first of its passes that found something, and how many
changes it made. `-` is a skip (nothing there to change), `no` a refusal; * is below the recipe's accuracy gate, which
these settings are not made to hold.
"""
_QUICK = "16 samples, searches of 10 iterations or 5 seconds, trainings of 6 steps, 12 where they have phases"


def load(path: Path) -> list[Cell]:
    """The cells in a file, without those that crashed, which are tried again; none where there is no file.

    Raises:
        BadRequest: Not a file of cells.
    """
    if not path.exists():
        return []
    try:
        cells = [Cell.from_json(c) for c in json.loads(path.read_text())["cells"]]
        return [c for c in cells if c.status != "crash"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadRequest("is not a file of cells", where=str(path), fix="Choose another --out.") from e


def save(cells: Sequence[Cell], path: Path) -> None:
    """Write a sibling and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"cells": [c.to_json() for c in cells]}, indent=1) + "\n")
    temporary.replace(path)


def chosen(pattern: str | None) -> list[str]:
    """Names of shipped recipes, all of them without a pattern.

    Raises:
        BadRequest: There is no such recipe.
    """
    known = list(shipped.recipes())
    for name in pattern.split(",") if pattern else ():
        if name not in known:
            raise BadRequest("there is no such recipe", where=f"--recipes {name!r}", fix=nearest(name, known))
    return pattern.split(",") if pattern else known


def fill(cells: list[Cell], args: argparse.Namespace, command: Sequence[str]) -> Iterator[Cell]:
    """The cells that are missing, models in order."""
    done = {(c.model, c.recipe) for c in cells}
    for task in tasks(args.zoo, args.models):
        todo = [r for r in chosen(args.recipes) if (task.name, r) not in done]
        for recipe, found in lines(command, task.name, todo, args.limit):
            yield Cell.from_json(found) if isinstance(found, dict) else Cell(task.name, recipe, "crash", reason=found)


def in_order(cells: Sequence[Cell], zoo: Path) -> list[Cell]:
    """Models as the zoo has them, recipes by name, whenever they were run."""
    places = {task.name: i for i, task in enumerate(tasks(zoo))}
    return sorted(cells, key=lambda c: (places.get(c.model, len(places)), c.recipe))


def render(cells: Sequence[Cell], what: str = _QUICK, page: str = "") -> str:
    """The table, models down and recipes across, with every reason once below it.

    Args:
        cells: In order.
        what: The settings in words.
        page: What was rendered before; its cells stay where there are no new ones.

    Raises:
        BadRequest: The page holds no such table.
    """
    found = (_parsed(page) if page else {}) | {(c.model, c.recipe): _said(c) for c in cells}
    models, recipes = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    recipes = sorted(recipes) if page else recipes
    numbers: dict[str, int] = {}
    table = [f"| | {' | '.join(recipes)} |", "|---" * (len(recipes) + 1) + "|"]
    for model in models:
        row = (_noted(*found[model, recipe], numbers) if (model, recipe) in found else "" for recipe in recipes)
        table.append(f"| {model} | {' | '.join(row)} |")
    reasons = [f"{number}. {reason}" for reason, number in numbers.items()]
    return "\n".join([_HEAD.format(what=what), *table, "", *reasons]) + "\n"


def _parsed(page: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(model, recipe) -> (what a cell says, its reason) of a page that was rendered."""
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    if len(rows) < 2:
        raise BadRequest("holds no table of cells", where="--into", fix="Give the page that --markdown has printed.")
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    found = {}
    for model, *texts in rows[2:]:
        for recipe, text in zip(rows[0][1:], texts, strict=True):
            if text:
                said, _, number = text.removesuffix("</sup>").partition("<sup>")
                found[model, recipe] = said, reasons[number] if number else ""
    return found


def _said(cell: Cell) -> tuple[str, str]:
    """(what it says, the reason)."""
    reason = " ".join(cell.reason.split())[:300].replace("|", "/")
    if cell.status != "applied":
        return {"skipped": "-", "refused": "no", "crash": "CRASH"}[cell.status], reason
    parts = [f"{name} {count}" for name, count in cell.changes.items() if count] or [""]
    parts = [parts[0], f"{cell.share:.0%}" if cell.share is not None else ""]
    return ", ".join(p for p in parts if p) + ("" if cell.gate else "*"), reason


def _noted(text: str, reason: str, numbers: dict[str, int]) -> str:
    return text + (f"<sup>{numbers.setdefault(reason, len(numbers) + 1)}</sup>" if reason else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 something crashed, 2 bad request."""
    args = _parser().parse_args(argv)
    try:
        cells, recipes = load(args.out), chosen(args.recipes)
        left = len(tasks(args.zoo, args.models)) * len(recipes)
        command = [sys.executable, "-m", "graphpress.tools.bench.cell", "--zoo", str(args.zoo)]
        with terminal.progress() as progress:
            for cell in progress(fill(cells, args, command), "cells", left):
                cells.append(cell)
                save(cells, args.out)
        if args.markdown:
            print(render(in_order(cells, args.zoo)), end="")
        if args.into:
            with disk_errors(args.into):
                args.into.write_text(render(in_order(cells, args.zoo), page=args.into.read_text()))
    except GraphpressError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    crashed = [c for c in cells if c.status == "crash"]
    for cell in crashed:
        print(f"crash: {cell.model}, {cell.recipe}: {cell.reason}\n{cell.trace}", file=sys.stderr)
    return 1 if crashed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.matrix", description=__doc__)
    add_options(parser)
    parser.add_argument("--recipes", help="comma-separated (default: all that are shipped)")
    parser.add_argument("--out", type=Path, default=Path("matrix.json"), help="file of cells; goes on where it stops")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/figures/matrix.md")
    parser.add_argument("--into", type=Path, help="put the cells into this page, printed before; others stay")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a cell may take")
    return parser


if __name__ == "__main__":
    sys.exit(main())
