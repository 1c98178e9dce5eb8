"""``python -m graphpress.tools.check.pages``: write what the documentation takes from the source.

Between ``<!-- made: WHAT -->`` and ``<!-- end -->`` a page holds what this command makes: ``rooms``, ``packages``, or
``PATH NAME``, a declaration. With ``--check`` nothing is written, and the exit code is 1 where a page is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from graphpress.tools.check import floorplan, signatures
from graphpress.tools.check.rooms import sources

_MADE = re.compile(r"(<!-- made: (.+?) -->\n).*?(<!-- end -->)", re.S)


def made(root: Path, what: str) -> str:
    """The text for one place of a page."""
    if what == "rooms":
        return floorplan.drawing(sources(root))
    if what == "packages":
        return floorplan.packages(sources(root))
    path, _, name = what.partition(" ")
    return signatures.declared(root / path, name)


def fresh(root: Path, text: str) -> str:
    """A page with every made place made anew."""
    return _MADE.sub(lambda m: f"{m[1]}{made(root, m[2])}\n{m[3]}", text)


def stale(root: Path) -> dict[Path, str]:
    """The pages of docs/ that are out of date, each with what it should say."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted((root / "docs").rglob("*.md"))}
    return {path: new for path, text in pages.items() if (new := fresh(root, text)) != text}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where ``--check`` finds a page out of date."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    found = stale(Path.cwd())
    for path, text in found.items():
        print(f"{'out of date' if check else 'written'}: {path}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
