"""The state of a training on disk: of the one under way, and of what those before it ended with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphpress.observe import statefile

if TYPE_CHECKING:
    import torch

Facts: TypeAlias = dict[str, Any]
_KIND, _RUN, _DONE = "state of a recovery", "run", "done"
_INTERVAL = 5.0  # seconds between two saves at least; and saving takes at most a twentieth of the time


@dataclass
class Saved:
    """Tensors and JSON-able facts of one training."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


@dataclass
class TrainingState:
    """The file of one job: the training under way, and what those before it ended with (blocks, phases).

    Attributes:
        path: The file; its folder must exist.
        key: What the state belongs to (model, data, options): a file with another key is not resumed but replaced.
        interval: Seconds between two saves at least.
    """

    path: Path
    key: str
    interval: float = _INTERVAL
    running: tuple[str, Saved] | None = None
    finished: dict[str, Saved] = field(default_factory=dict)
    _next: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Read the file if there is one.

        Raises:
            BadRequest: The file is something else; it is not touched. Or its folder does not exist.
        """
        self._next += self.interval
        if (found := _read(self.path, self.key)) is None:
            return
        tensors, facts = found
        if facts["running"] is not None:
            name, said = facts["running"]
            self.running = name, Saved(under(tensors, _RUN), said)
        self.finished = {
            name: Saved(under(tensors, f"{_DONE}:{i}"), said) for i, (name, said) in enumerate(facts["finished"])
        }

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self._next

    def under_way(self, name: str) -> Saved | None:
        """The state of the training of that name, if it is the one that was interrupted."""
        return self.running[1] if self.running is not None and self.running[0] == name else None

    def save(self, name: str, saved: Saved) -> None:
        """Put down how far the training of that name has come."""
        self.running = name, saved
        self._write()

    def finish(self, name: str, saved: Saved) -> None:
        """Put down what the training of that name ended with."""
        self.running, self.finished[name] = None, saved
        self._write()

    def _write(self) -> None:
        start = time.monotonic()
        tensors = {f"{_DONE}:{i}:{k}": t for i, s in enumerate(self.finished.values()) for k, t in s.tensors.items()}
        running = None
        if self.running is not None:
            name, saved = self.running
            running = (name, saved.facts)
            tensors |= {f"{_RUN}:{k}": t for k, t in saved.tensors.items()}
        facts = {"running": running, "finished": [(n, s.facts) for n, s in self.finished.items()]}
        _save(self.path, self.key, tensors, facts)
        now = time.monotonic()
        self._next = now + max(self.interval, 20 * (now - start))


def under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with ``prefix:``, without it."""
    return {k.removeprefix(f"{prefix}:"): t for k, t in tensors.items() if k.startswith(f"{prefix}:")}


def _read(path: Path, key: str) -> tuple[dict[str, torch.Tensor], Facts] | None:
    import torch

    found = statefile.read(path, _KIND, key)
    if found is None:
        return None
    arrays, facts = found
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return tensors | {name: tensors[name].view(torch.bfloat16) for name in facts["bfloat16"]}, facts


def _save(path: Path, key: str, tensors: Mapping[str, torch.Tensor], facts: Facts) -> None:
    import torch

    plain = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    narrow = [k for k, t in plain.items() if t.dtype is torch.bfloat16]  # which numpy does not have
    arrays = {k: (t.view(torch.int16) if k in narrow else t).numpy() for k, t in plain.items()}
    statefile.write(path, _KIND, key, arrays, facts | {"bfloat16": narrow})
