"""``python -m graphpress.tools.mutants [FILE ...]``: how many mutants of each formula file its tests kill.

Fails where a file is below 90 %, a planted mutant lives, or one lives that tests/mutants.toml does not list.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from graphpress.tools.check import rooms
from graphpress.tools.mutants import forks, formulas, page
from graphpress.tools.mutants.mutants import Mutant, mutants
from graphpress.tools.mutants.warm import ALIVE, KILLED, LATE, NEVER_RUN, Warm

LEAST = 0.9


def main() -> int:
    """Judge the named files, or all of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="formula files of tests/mutants.toml; all without")
    parser.add_argument("--sample", type=int, default=0, help="at most this many mutants a file, drawn by a fixed seed")
    parser.add_argument("--out", type=Path, default=Path("out/mutants"), help="folder of what was found, as JSON")
    parser.add_argument("--planted", action="store_true", help="only the mutants made by hand")
    parser.add_argument("--again", action="store_true", help="only those that lived the last time, if they still exist")
    parser.add_argument("--page", action="store_true", help=f"judge nothing: write {page.PAGE} from what was found")
    options = parser.parse_args()
    root = Path.cwd()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [f for f in formulas.load(root) if not options.files or f.file in options.files]
    if not chosen:
        parser.error(f"not in {formulas.TABLE}: {', '.join(options.files)}")
    if options.page:
        page.write(root, chosen, options.out)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    return 1 if sum(_in_a_fork(root, formula, options) for formula in chosen) else 0


def _in_a_fork(root: Path, formula: formulas.Formula, options: argparse.Namespace) -> bool:
    """Whether this file fails."""
    found = options.out / f"{formula.file.replace('/', '.')}.json"
    before = json.loads(found.read_text(encoding="utf-8")) if options.again and found.exists() else None
    found.unlink(missing_ok=True)
    forks.apart(lambda: _judge(root, formula, options, found, before))
    if not found.exists():
        return True
    return not json.loads(found.read_text(encoding="utf-8"))["fine"]


def _judge(
    root: Path, formula: formulas.Formula, options: argparse.Namespace, found: Path, before: dict[str, Any] | None
) -> None:
    (source,) = (s for s in rooms.sources(root) if s.path == root / formula.file)
    planted = formula.planted_in(source.text)
    made = [] if options.planted else mutants(source.text)
    of = len(made)
    rest: list[dict[str, Any]] = []
    if before:
        exist = {(m.old, m.new) for m in [*planted, *made]}
        rest = [m for m in before["mutants"] if m["fate"] in (KILLED, LATE) and (m["old"], m["new"]) in exist]
        lived = {(m["old"], m["new"]) for m in before["mutants"]} - {(m["old"], m["new"]) for m in rest}
        made = [m for m in made if (m.old, m.new) in lived]
        planted = [m for m in planted if (m.old, m.new) in lived]
    elif options.sample and of > options.sample:
        made = sorted(random.Random(0).sample(made, options.sample), key=lambda m: m.line)
    warm = Warm(source.module, source.path, source.text, formula.selection)
    began = time.monotonic()
    failed = warm.warm_up()
    if failed:
        print(f"{formula.file}: its tests fail as they are\n{failed}")
        return
    judged = [*planted, *made]
    fates = list(zip(judged, warm.fates([(m.line, m.code) for m in judged]), strict=True))
    alive = [m for m, fate in fates if fate in (ALIVE, NEVER_RUN)]
    unlisted = [m for m in alive if formula.reason(m) is None]
    judged_of = len(fates) + len(rest)
    share = 1 - len(alive) / max(1, judged_of)
    fine = share >= LEAST and not unlisted
    print(
        f"{formula.file}: {judged_of - len(alive)} of {judged_of} killed ({share:.1%}), "
        f"{len(alive) - len(unlisted)} live with a reason, {len(unlisted)} without"
        f"{f'; a sample of {of}' if len(made) < of else ''}; "
        f"{sum(fate == LATE for _, fate in fates)} by time; {time.monotonic() - began:.0f} s"
    )
    for mutant in unlisted:
        print(f"  {mutant.line} {mutant.kind}\n    - {mutant.old}\n    + {mutant.new}")
    sys.stdout.flush()
    found.write_text(json.dumps(_record(formula, fates, fine, of, rest), indent=1), encoding="utf-8")


def _record(
    formula: formulas.Formula, fates: list[tuple[Mutant, str]], fine: bool, made: int, rest: list[dict[str, Any]]
) -> dict[str, object]:
    rows = [
        {"line": m.line, "kind": m.kind, "old": m.old, "new": m.new, "fate": fate, "reason": formula.reason(m)}
        for m, fate in fates
    ]
    return {"file": formula.file, "fine": fine, "made": made, "mutants": [*rest, *rows]}


if __name__ == "__main__":
    sys.exit(main())
