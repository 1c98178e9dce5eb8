"""The file of measured rows: machine and rows as JSON, written anew and atomically with each row."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphpress.errors import BadRequest
from graphpress.tools.bench.row import THREADS, BenchRow

_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # those that integer kernels go by


@dataclass
class Results:
    """Rows in the order they were measured, and the machine they were measured on."""

    machine: str
    rows: list[BenchRow] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Results:
        """What stands in the file.

        Raises:
            BadRequest: Not a file of results.
        """
        try:
            data = json.loads(path.read_text())
            return cls(data["machine"], [BenchRow.from_json(r) for r in data["rows"]])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BadRequest("is not a file of results", where=str(path), fix="Choose another --out.") from e

    def save(self, path: Path) -> None:
        """Write a sibling and rename it."""
        text = json.dumps({"machine": self.machine, "rows": [r.to_json() for r in self.rows]}, indent=1)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text + "\n")
        temporary.replace(path)

    def add(self, row: BenchRow) -> None:
        """Add a row in place of an older one of the same model and recipe."""
        self.rows = [r for r in self.rows if (r.model, r.recipe) != (row.model, row.recipe)] + [row]

    def missing(self, model: str, recipes: Sequence[str]) -> list[str]:
        """The recipes that have no row yet."""
        have = {r.recipe for r in self.rows if r.model == model}
        return [r for r in recipes if r not in have]


def resume(path: Path) -> Results:
    """The results in the file if there is one, else none yet.

    Raises:
        BadRequest: The rows in it are of another machine.
    """
    here = machine()
    results = Results.load(path) if path.exists() else Results(here)
    if results.machine != here:
        what = f"holds rows of another machine: {results.machine}"
        raise BadRequest(what, where=str(path), fix="Choose another --out.")
    return results


def machine() -> str:
    """Cores, instruction sets and runtime that the figures depend on, in one line."""
    import onnxruntime as ort

    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    isa = ", ".join(f for f in _FLAGS if f in words) or "instruction sets unknown"
    return f"{platform.machine()} ({isa}), {THREADS} threads on {os.cpu_count()} cores, ONNX Runtime {ort.__version__}"
