"""The page of figures: what was judged, what was killed, and why what lives may live."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphpress.tools.mutants.formulas import Formula

PAGE = Path("docs/figures/mutants.md")

_HEAD = """\
# Mutants of the formula files

`make mutants` changes one thing at a time in a file of formulas (operators of Cosmic Ray, and five of our own for
arithmetic on arrays: tools/mutants/changes.py) and runs the few test files that pin it. The table of files and tests,
the mutants made by hand ("planted": they must die) and those that may live, each with its reason, stand in
tests/mutants.toml. A file fails below 90 %, and where one lives that is not listed. Left out are annotations,
what is there for types alone, decorators, assertions, the words of errors, and defaults of options that are 8 or more.

This page is written by `python -m graphpress.tools.mutants --page` from what the last runs of `python -m
graphpress.tools.mutants --sample N FILE` found (N mutants drawn by a fixed seed; "made" is what there was to draw
from; mutants made by hand come on top). Killed counts those that end by time too.

| file | made | judged | killed | share |
|---|---|---|---|---|
"""


def write(root: Path, formulas: Sequence[Formula], out: Path) -> None:
    """Write the page from the files of ``out``."""
    rows, alive = [], []
    for formula in sorted(formulas, key=lambda f: f.file):
        found = out / f"{formula.file.replace('/', '.')}.json"
        if not found.exists():
            rows.append(f"| {formula.file} | | not judged | | |")
            continue
        told = json.loads(found.read_text(encoding="utf-8"))
        living = [m for m in told["mutants"] if m["fate"] in ("alive", "never run")]
        judged = len(told["mutants"])
        killed = judged - len(living)
        rows.append(f"| {formula.file} | {told['made']} | {judged} | {killed} | {killed / judged:.0%} |")
        alive += [_survivor(root, formula, m) for m in living]
    text = _HEAD + "\n".join(rows) + "\n\nWhat lives, and why it may:\n\n" + "\n".join(alive) + "\n"
    (root / PAGE).write_text(text, encoding="utf-8")


def _survivor(root: Path, formula: Formula, mutant: Mapping[str, Any]) -> str:
    lines = " ".join(line.strip() for line in (root / formula.file).read_text(encoding="utf-8").splitlines())
    reason = next((s.reason for s in formula.survivors if (s.old, s.new) == (mutant["old"], mutant["new"])), None)
    if reason is None:
        reason = "**no reason yet**" if mutant["old"] in lines else "the code is another now"
    return f"- {formula.file}: `{mutant['old']}` as `{mutant['new']}`: {reason}"
