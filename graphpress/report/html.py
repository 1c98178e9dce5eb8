"""Tables as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol


class Rows(Protocol):
    """What is drawn: a table of ``report.tables``."""

    @property
    def title(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> Sequence[tuple[str, ...]]: ...
    @property
    def note(self) -> str: ...


@dataclass(frozen=True)
class Drawn:
    """A table of one's own."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def drawn(found: Iterable[Rows], most: int = 60) -> str:
    """Each with its title, at most so many rows, and what stands below; empty ones are left out."""
    return "\n".join(_one(table, most) for table in found if table.rows or table.note)


def _one(table: Rows, most: int) -> str:
    head = _row("th", table.columns) if any(table.columns) else ""
    body = "".join(_row("td", row) for row in table.rows[:most])
    more = len(table.rows) - most
    notes = [table.note, f"... and {more} more" if more > 0 else ""]
    below = "".join(f"<p>{escape(note)}</p>" for note in notes if note)
    return f"<table><caption>{escape(table.title)}</caption>{head}{body}</table>{below}"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
