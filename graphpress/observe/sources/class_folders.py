"""Labels from the names of folders, one folder a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

_SHOWN = 4  # folders in a note


def labels(root: Path, files: Sequence[Path], model: ir.Model, notes: list[str]) -> Mapping[Path, int] | None:
    """The class of each file; None where they do not lie in folders, or these cannot be the model's classes.

    Names that are all whole numbers are the classes; else the folders are numbered in order of their names, if there
    are as many as the first output has classes.

    Args:
        root: The folder of the folders.
        files: All below it.
        model: Whose classes they are.
        notes: Takes a sentence on what was decided.
    """
    if not root.is_dir() or any(f.parent == root for f in files):
        return None
    own = {f: f.relative_to(root).parts[0] for f in files}
    names = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(names) < 2:
        return None
    classes = _classes(model)
    if all(n.isdecimal() for n in names):
        numbers = {n: int(n) for n in names}
        said = f"labels are the names of {len(names)} folders"
    else:
        numbers = {n: i for i, n in enumerate(names)}
        shown = ", ".join(f"{i} {n}" for n, i in list(numbers.items())[:_SHOWN])
        said = f"labels are the {len(names)} folders in order of their names ({shown}{', ...' * (len(names) > _SHOWN)})"
        if classes is not None and len(names) != classes:
            why = f"the first output has {classes} classes; name folders by class number"
            notes.append(f"{len(names)} folders are no labels: {why}")
            return None
    if classes is None:
        notes.append(f"{len(names)} folders are no labels: the first output is not one score a class")
        return None
    if max(numbers.values()) >= classes:
        notes.append(f"{len(names)} folders are no labels: {max(numbers.values())} is none of {classes} classes")
        return None
    notes.append(said)
    return {f: numbers[n] for f, n in own.items()}


def _classes(model: ir.Model) -> int | None:
    """How many the first output has, where it is [samples, classes]."""
    shape = model.graph.outputs[0].shape if model.graph.outputs else None
    last = shape[1] if shape is not None and len(shape) == 2 else None
    return last if isinstance(last, int) else None
