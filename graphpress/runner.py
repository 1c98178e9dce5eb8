"""What executes: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

Arrays: TypeAlias = Mapping[str, np.ndarray]


class Runner(Protocol):
    """An executable model: named arrays in, named arrays out."""

    @property
    def input_names(self) -> Sequence[str]: ...

    @property
    def output_names(self) -> Sequence[str]: ...

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]: ...


class Executor(Protocol):
    """Builds a Runner. ``outputs`` asks for these values (any of the main graph) instead of the graph outputs."""

    def __call__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Runner: ...


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come."""

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]: ...


def quiet(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
    """The Progress that shows nothing."""
    return items
