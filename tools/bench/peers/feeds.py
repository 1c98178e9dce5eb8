"""Calibration data in the shapes that other tools take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphpress.runner import Arrays


def batches(data: Arrays, size: int) -> Iterator[dict[str, np.ndarray]]:
    """All samples, ``size`` of them at a time."""
    count = min(len(a) for a in data.values())
    for i in range(0, count, size):
        yield {k: a[i : i + size] for k, a in data.items()}


class Reader:
    """ONNX Runtime's calibration reader (``CalibrationDataReader`` by duck type)."""

    def __init__(self, data: Arrays, size: int = 1) -> None:
        self._feeds = list(batches(data, size))
        self.rewind()

    def rewind(self) -> None:
        """Start over."""
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed, or None at the end."""
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self._feeds)
