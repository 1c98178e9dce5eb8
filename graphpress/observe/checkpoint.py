"""The state of a calibration on disk, so that one that was interrupted goes on where it stood."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, GraphpressError
from graphpress.graph import edit
from graphpress.observe import npz
from graphpress.observe.observers import Observer
from graphpress.types import Scheme

_INTERVAL = 5.0  # seconds between two saves
_KEY, _MARK = "graphpress.calibration", "mark"


def key(model: ir.Model, values: Mapping[str, Scheme], digest: str) -> str:
    """What a state belongs to: this model (weights too), these values and schemes, this data."""
    sha = hashlib.sha256(digest.encode())
    sha.update(json.dumps({name: str(scheme) for name, scheme in values.items()}).encode())
    for graph in edit.graphs(model):
        for node in graph:
            sha.update(ir.to_proto(node).SerializeToString(deterministic=True))
        if isinstance(graph, ir.Graph):
            for name, value in graph.initializers.items():
                tensor = value.const_value
                sha.update(f"{name} {value.dtype} {value.shape}".encode())
                sha.update(b"" if tensor is None else tensor.tobytes())
    return sha.hexdigest()


@dataclass
class Mark:
    """How far a calibration has come: batches observed, samples in them, samples asked for in each."""

    batches: int = 0
    samples: int = 0
    size: int = 0


@dataclass
class Checkpoint:
    """One file: a mark, and what every observer knew there."""

    path: Path
    key: str
    saved: float = field(default_factory=time.monotonic)

    def load(self, watch: Mapping[str, Observer]) -> Mark:
        """The mark, with the observers restored to it; the very start where the file holds nothing of this job.

        Raises:
            BadRequest: The file is something else; it is not touched.
        """
        if not self.path.exists():
            return Mark()
        try:
            arrays = npz.read(self.path)
            found = str(arrays[_KEY])
        except (GraphpressError, KeyError) as e:
            raise BadRequest(
                "the file is no calibration state", where=str(self.path), fix="Delete it or name another."
            ) from e
        if found != self.key:
            return Mark()
        for i, seen in enumerate(watch.values()):
            prefix = f"{i}."
            seen.restore({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        return Mark(*map(int, arrays[_MARK]))

    def save(self, watch: Mapping[str, Observer], mark: Mark, *, now: bool = False) -> None:
        """Write the state if it is some seconds old, or ``now``; the old one stays until the new is complete."""
        if not now and time.monotonic() - self.saved < _INTERVAL:
            return
        arrays = {_KEY: np.asarray(self.key), _MARK: np.asarray(dataclasses.astuple(mark))}
        for i, seen in enumerate(watch.values()):
            arrays |= {f"{i}.{name}": array for name, array in seen.state().items()}
        npz.save(self.path, arrays)
        self.saved = time.monotonic()
