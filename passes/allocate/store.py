"""Figures that are measured once: a JSON file of numbers by digest, written as a whole and renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path


class Cache:
    """Numbers by what they belong to, in memory and, with a folder, in ``<folder>/<name>.json``.

    What cannot be read is no error: it is measured again. Several threads may use one.

    Args:
        folder: Created when first written to; None keeps nothing beyond this object.
        name: Of the file.
    """

    def __init__(self, folder: str | Path | None, name: str) -> None:
        self._path = None if folder is None else Path(folder) / f"{name}.json"
        self._lock = threading.Lock()
        self._known: dict[str, float] = self._read()
        self.found = 0  # how many figures were here already when asked for

    def get(self, *what: object) -> float | None:
        """The figure, or None."""
        with self._lock:
            value = self._known.get(digest(*what))
            self.found += value is not None
            return value

    def put(self, value: float, *what: object) -> float:
        """Keep a figure; it comes back."""
        with self._lock:
            self._known[digest(*what)] = float(value)
        return float(value)

    def save(self) -> None:
        """Write the file, together with what others have written meanwhile."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with self._lock:
            draft.write_text(json.dumps(self._read() | self._known), encoding="utf-8")
        draft.replace(self._path)

    def _read(self) -> dict[str, float]:
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                found = json.loads(self._path.read_text(encoding="utf-8"))
                return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}
        return {}


def digest(*what: object) -> str:
    """SHA-256 over the texts of some values."""
    return hashlib.sha256("\0".join(map(str, what)).encode()).hexdigest()
