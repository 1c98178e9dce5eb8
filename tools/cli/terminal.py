"""What people see: tables and progress bars on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from graphpress.report import tables
from graphpress.report.report import Report
from graphpress.report.summary import summary
from graphpress.runner import Progress as Show
from graphpress.runner import quiet

MOST_ROWS = 40  # of a table on the terminal; the HTML report and --json have all of them


@contextmanager
def progress() -> Iterator[Show]:
    """Bars on standard error while the block runs; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield quiet
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
            return bars.track(items, total=total, description=label)

        yield show


def note(line: str) -> None:
    """One line on standard output."""
    print(line)


def show(result: Any, verbose: bool = False) -> None:
    """Draw a result: text, a mapping, a report (in short, or all tables of it), or anything with ``tables()``."""
    if isinstance(result, str):
        print(result)
    elif isinstance(result, dict):
        _mapping(result)
    elif isinstance(result, Report):
        if not verbose:
            print(summary(result))
            return
        wanted = (tables.before_after, tables.gate, tables.warnings, tables.coverage, tables.sites, tables.passes)
        _draw([table(result) for table in wanted])
    else:
        _draw(result.tables())


def _mapping(result: dict[str, Any]) -> None:
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = tuple(value[0])
            _draw([tables.Table(key, columns, [tuple(str(row[c]) for c in columns) for row in value])])
        elif isinstance(value, list):
            print("\n".join(map(str, value)))
        elif isinstance(value, dict):
            _draw([tables.Table(key, ("", ""), [(k, str(v)) for k, v in value.items()])])
        else:
            print(f"{key:<20} {value}")


def _draw(found: Iterable[tables.Table]) -> None:
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for table in found:
        if not table.rows and not table.note:
            continue
        drawn = Drawn(title=table.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for column in table.columns:
            drawn.add_column(column, overflow="fold")
        for row in table.rows[:MOST_ROWS]:
            drawn.add_row(*map(_literal, row))
        console.print(drawn)
        if len(table.rows) > MOST_ROWS:
            console.print(f"... and {len(table.rows) - MOST_ROWS} more (all of them in the report and with --json)")
        if table.note:
            console.print(_literal(table.note))
        console.print()


def _literal(text: str) -> str:
    """Site names hold brackets that rich would take for markup."""
    return text.replace("[", "\\[")
