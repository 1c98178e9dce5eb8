"""Type checks over all rooms.

A checker finds packages by folders and cannot read setuptools' mapping, so it is shown a folder of links in which the
rooms lie where their import names say.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from graphpress.tools.check.rooms import rooms


def link(root: Path, to: Path) -> None:
    """Make the folder ``to`` anew: one folder a room, holding links to the files and sub-packages of the room."""
    shutil.rmtree(to, ignore_errors=True)
    for package, folder in rooms(root).items():
        place = to.joinpath(*package.split("."))
        place.mkdir(parents=True)
        for entry in folder.iterdir():
            if entry.suffix == ".py" or entry.name == "py.typed" or (entry / "__init__.py").is_file():
                (place / entry.name).symlink_to(entry.resolve())


def run(root: Path, links: Path, *what: str) -> tuple[bool, str]:
    """Run mypy on ``what`` (default: all of graphpress) below the folder ``links``.

    Returns:
        Whether all is well, and what mypy says, with the paths of the checkout.
    """
    cache, config = root / ".mypy_cache", root / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", f"--config-file={config}", f"--cache-dir={cache}"]
    done = subprocess.run([*command, *(what or ("-p", "graphpress"))], cwd=links, capture_output=True, text=True)
    mapped = "|".join(package.removeprefix("graphpress.") for package in rooms(root) if "." in package)
    return done.returncode == 0, re.sub(rf"^graphpress/(?={mapped})", "", done.stdout + done.stderr, flags=re.M)
