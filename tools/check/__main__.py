"""What `make check` runs in a checkout: lint, types, and the guards of tests/project. Exit code 1 if any fails."""

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
    return subprocess.run([sys.executable, "-m", "pytest", "tests/project"], cwd=root).returncode == 0


def main() -> int:
    """Run every check, also after one that fails."""
    root = Path.cwd()
    failed = []
    for check in (lint, types, guards):
        print(f"== {check.__name__}", flush=True)
        if not check(root):
            failed.append(check.__name__)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
