"""What `make check` runs in a checkout: lint, types, and the guards of tests/project; those named, or all.

Exit code 1 if any fails, 2 for a name that is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from graphpress.tools.check import typecheck


def lint(root: Path) -> bool:
    """Ruff, with the bans of pyproject.toml."""
    return subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=root).returncode == 0


def types(root: Path) -> bool:
    """Mypy over all rooms."""
    links = root / ".check"
    typecheck.link(root, links)
    fine, text = typecheck.run(root, links)
    print(text, end="")
    return fine


def guards(root: Path) -> bool:
    """Sizes, import directions, packaging, the README's example."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "tests/project"]
    return subprocess.run(command, cwd=root).returncode == 0


CHECKS = {check.__name__: check for check in (lint, types, guards)}


def main(*names: str) -> int:
    """Run every check, or those named, also after one that fails."""
    if unknown := [name for name in names if name not in CHECKS]:
        print(f"no check {unknown[0]!r}: there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    root = Path.cwd()
    failed = []
    for name in names or CHECKS:
        print(f"== {name}", flush=True)
        if not CHECKS[name](root):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
