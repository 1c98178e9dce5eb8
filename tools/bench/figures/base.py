"""One figure that was asked for, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        what: What was measured, on which model.
        asked: The bar in words, or "" where the figure only informs.
        measured: With its unit.
        met: Whether the bar holds; None where there is none.
        note: What a reader must know.
    """

    what: str
    asked: str
    measured: str
    met: bool | None = None
    note: str = ""
