"""All tasks on the folder of real models."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from graphpress.errors import BadRequest
from graphpress.tools.bench import classification, detection, language, speech
from graphpress.tools.bench.task import Task, select


def tasks(zoo: Path, pattern: str = "*") -> list[Task]:
    """The tasks whose name matches one of the comma-separated globs.

    Raises:
        BadRequest: No such folder, or a glob matches nothing.
    """
    if not zoo.is_dir():
        raise BadRequest("no such folder", where=f"zoo {str(zoo)!r}", fix="Give --zoo, or set GRAPHPRESS_ZOO.")
    return select([t for domain in (classification, detection, speech, language) for t in domain.tasks(zoo)], pattern)


def add_options(parser: argparse.ArgumentParser, models: str = "*") -> None:
    """--zoo and --models, as every command here takes them."""
    zoo = os.environ.get("GRAPHPRESS_ZOO")
    what = "folder of models (default: $GRAPHPRESS_ZOO)"
    parser.add_argument("--zoo", type=Path, default=zoo, required=zoo is None, help=what)
    parser.add_argument("--models", default=models, help=f"comma-separated globs (default: {models})")
