"""Made-up inputs for a model of which nothing is known but the types and shapes of its inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SEED = 0
UNKNOWN = ((1, 1, 1), (2, 2, 2), (3, 3, 3), (8, 8, 8), (1, 64, 64), (1, 1, 576))  # first, inner, last axis; in turn
_BY_NAME = {"sr": 16000}  # a sample rate, on which a model branches
_NUMPY = {
    "float": "f4", "double": "f8", "float16": "f2", "bool": "?", "string": "O", "int8": "i1", "int16": "i2",
    "int32": "i4", "int64": "i8", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip


def feeds(inputs: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Seeded inputs: normal floats and small integers, then ones, then zeros, for each size of unknown axes."""
    static = all(isinstance(d, int) for i in inputs for d in i.shape)
    for sizes in UNKNOWN[:1] if static else UNKNOWN:
        rng = np.random.default_rng(SEED)
        for fill in (None, 1, 0):
            yield {i.name: _value(i, sizes, rng, _BY_NAME.get(i.name, fill)) for i in inputs}


def _value(info: Any, sizes: tuple[int, int, int], rng: np.random.Generator, fill: int | None) -> Any:
    """Random, or all ``fill``."""
    kind = re.search(r"tensor\((\w+)\)", info.type)
    dtype = np.dtype(_NUMPY.get(kind[1] if kind else "", "f4"))
    last = len(info.shape) - 1
    shape = [d if isinstance(d, int) and d >= 0 else sizes[(i > 0) + (i == last)] for i, d in enumerate(info.shape)]
    if dtype.kind == "O":
        array = np.full(shape, "text" if fill is None else str(fill), object)
    elif fill is not None:
        array = np.full(shape, fill, dtype)
    elif dtype.kind == "f":
        array = rng.normal(size=shape).astype(dtype)
    else:
        array = rng.integers(0, 3, size=shape).astype(dtype)
    return [array] if info.type.startswith("seq(") else array
