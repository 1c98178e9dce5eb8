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

from graphpress.graph import edit
from graphpress.observe import statefile
from graphpress.observe.observers import Observer
from graphpress.types import Scheme

_INTERVAL = 5.0  # seconds between two saves
_KIND = "calibration state"


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
        found = statefile.read(self.path, _KIND, self.key)
        if found is None:
            return Mark()
        arrays, facts = found
        for i, seen in enumerate(watch.values()):
            prefix = f"{i}."
            seen.restore({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        return Mark(**facts)

    def save(self, watch: Mapping[str, Observer], mark: Mark, *, now: bool = False) -> None:
        """Write the state if it is some seconds old, or ``now``; the old one stays until the new is complete."""
        if not now and time.monotonic() - self.saved < _INTERVAL:
            return
        arrays: dict[str, np.ndarray] = {}
        for i, seen in enumerate(watch.values()):
            arrays |= {f"{i}.{name}": array for name, array in seen.state().items()}
        statefile.write(self.path, _KIND, self.key, arrays, dataclasses.asdict(mark))
        self.saved = time.monotonic()
