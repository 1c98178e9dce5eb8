"""The state of a job on disk: arrays and JSON facts under a key, never half written, refused if something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphpress.errors import BadRequest, GraphpressError
from graphpress.observe import npz

_HEAD, _ARRAY = "graphpress", "a:"  # the member with kind, key and facts; before the names of arrays


def read(path: Path, kind: str, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """(arrays, facts) of the job with this key; None where there is no file, or one of another job of the kind.

    Arrays are mapped: whoever keeps or changes them makes copies.

    Args:
        path: The file.
        kind: What it holds, "calibration state".
        key: What the state belongs to.

    Raises:
        BadRequest: The file is something else; it is not touched. Or its folder does not exist.
    """
    if not path.parent.is_dir():
        fix = "Make it, or name another file."
        raise BadRequest("its folder does not exist", where=f"state {str(path)!r}", fix=fix)
    if not path.exists():
        return None
    try:
        arrays = npz.read(path)
        head = json.loads(str(arrays.pop(_HEAD)))
        known = head["kind"] == kind
    except (GraphpressError, KeyError, TypeError, ValueError) as e:
        raise _foreign(path, kind) from e
    if not known:
        raise _foreign(path, kind)
    return ({n.removeprefix(_ARRAY): a for n, a in arrays.items()}, head["facts"]) if head["key"] == key else None


def write(path: Path, kind: str, key: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Put a state down; the old one stays until the new is complete.

    Raises:
        BadRequest: The disk refuses.
    """
    head = json.dumps({"kind": kind, "key": key, "facts": facts})
    try:
        npz.save(path, {_HEAD: np.asarray(head), **{_ARRAY + n: a for n, a in arrays.items()}})
    except OSError as e:
        what = f"cannot be written ({e.strerror or e})"
        raise BadRequest(what, where=f"state {str(path)!r}", fix="Free space, or name another file.") from e


def place(own: str | None, shared: Path | None, key: str) -> Path | None:
    """Where the job of a key keeps its state: in a file of its own, or beside the one that several share, if any."""
    if own is not None:
        return Path(own)
    return shared.with_name(f"{shared.name}.{key[:12]}") if shared is not None else None


def _foreign(path: Path, kind: str) -> BadRequest:
    return BadRequest(f"the file is no {kind}", where=str(path), fix="Delete it or name another.")
