"""What is mutated, by what tests it is held, and which mutants are known to live: tests/mutants.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from graphpress.tools.mutants.mutants import Mutant, describe

TABLE = Path("tests/mutants.toml")


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test kills.

    Attributes:
        old: The line as it is.
        new: The line as it became.
        reason: Why nothing needs to see the difference.
    """

    old: str
    new: str
    reason: str


@dataclass(frozen=True)
class Formula:
    """A file of formulas.

    Attributes:
        file: Its path in the checkout.
        tests: The test files that must kill its mutants, those that do it fastest first.
        without: Words in the names of tests that are left out: they measure time, or take too much of it.
        planted: Mutants made by hand: (text as it is, text as it becomes). They must be killed.
        survivors: The mutants that are known to live.
    """

    file: str
    tests: list[str]
    without: list[str] = field(default_factory=list)
    planted: list[tuple[str, str]] = field(default_factory=list)
    survivors: list[Survivor] = field(default_factory=list)

    @property
    def selection(self) -> list[str]:
        """What pytest is told to run."""
        return [*self.tests, *(["-k", f"not ({' or '.join(self.without)})"] if self.without else [])]

    def reason(self, mutant: Mutant) -> str | None:
        """Why this mutant may live, if it may."""
        return next((s.reason for s in self.survivors if (s.old, s.new) == (mutant.old, mutant.new)), None)

    def planted_in(self, code: str) -> list[Mutant]:
        """The mutants made by hand.

        Raises:
            ValueError: The text that one of them changes does not stand once in the file.
        """
        for old, _ in self.planted:
            if code.count(old) != 1:
                raise ValueError(f"{self.file}: {old!r} stands {code.count(old)} times: mend [[{TABLE}]]")
        return [describe("planted", code, code.replace(old, new)) for old, new in self.planted]


def load(root: Path) -> list[Formula]:
    """Every formula file of the table, in its order."""
    entries = tomllib.loads((root / TABLE).read_text(encoding="utf-8"))["formula"]
    return [
        Formula(
            entry["file"],
            entry["tests"],
            entry.get("without", []),
            [(p["old"], p["new"]) for p in entry.get("planted", [])],
            [Survivor(**s) for s in entry.get("survivors", [])],
        )
        for entry in entries
    ]
