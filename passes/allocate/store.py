"""Figures that are measured once: numbers by digest in a state file, written as a whole and renamed."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from graphpress.observe import statefile

_KIND = "store of measured figures"


class Cache:
    """Numbers by what they belong to, in memory and, with a folder, in ``<folder>/<name>.npz``.

    Several threads may use one.

    Args:
        folder: Created when first written to; None keeps nothing beyond this object.
        name: Of the file.

    Raises:
        BadRequest: The file is something else; it is not touched.
    """

    def __init__(self, folder: str | Path | None, name: str) -> None:
        self._path, self._name = None if folder is None else Path(folder) / f"{name}.npz", name
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
        with self._lock:
            statefile.write(self._path, _KIND, self._name, {}, self._read() | self._known)

    def _read(self) -> dict[str, float]:
        found = None if self._path is None else statefile.read(self._path, _KIND, self._name)
        return {} if found is None else {name: float(value) for name, value in found[1].items()}


def digest(*what: object) -> str:
    """SHA-256 over the texts of some values."""
    return hashlib.sha256("\0".join(map(str, what)).encode()).hexdigest()
