"""One way to compress a model, a peer's or ours, that runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graphpress.runner import Arrays

NO_DATA = "without data"  # part of a scheme: the method makes its own images, and what it is given is left alone


@dataclass(frozen=True)
class Method:
    """A row of the table for each model that it takes.

    Attributes:
        name: The tool and the method, as its users call it.
        scheme: Bits of weights and activations, as in ``W4A16``; rows of one scheme are compared.
        takes: Kinds of tasks (``language``, ``classifier``) or globs of their names.
        compress: Float ONNX file, calibration data (input name -> samples), path of the ONNX file that it writes.
        needs: Distributions that must be installed.
        ours: Whether it is graphpress.
    """

    name: str
    scheme: str
    takes: tuple[str, ...]
    compress: Callable[[Path, Arrays, Path], None]
    needs: tuple[str, ...] = ()
    ours: bool = False
