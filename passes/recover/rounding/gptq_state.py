"""What GPTQ has settled, on disk, so that a run that was interrupted goes on where it stood."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.keys import CORRECTED
from graphpress.observe import checkpoint, statefile
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding.grids import QuantizedLayer

_INTERVAL = 5.0  # seconds between two saves
_KIND = "state of gptq"


@dataclass
class State:
    """Settled layers: weight, scale, zero point and gain of each."""

    path: Path | None
    key: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, path: str | None, options: Mapping[str, Any], model: ir.Model, data: CalibrationData, ctx: Context
    ) -> State:
        """What the file holds of this job: this model, these options, this data; else nothing.

        Raises:
            BadRequest: The file is something else; it is not touched.
        """
        if path is None and ctx.state is None:
            return cls(None, "")
        job = f"{checkpoint.key(model, {}, data.digest())} { {**options, 'state': None} } {ctx.seed}"
        key = hashlib.sha256(job.encode()).hexdigest()
        made = cls(statefile.place(path, ctx.state, key), key)
        if made.path is not None and made.path.exists():
            made._load(made.path)
        return made

    def _load(self, path: Path) -> None:
        found = statefile.read(path, _KIND, self.key)
        if found is not None:
            self.arrays = {name: np.array(a) for name, a in found[0].items()}  # the file will be written anew
            self.gains = {n: float(gain) for n, gain in found[1].items()}

    def restore(self, q: QuantizedLayer) -> bool:
        """Write what is known of a layer into it; whether anything is."""
        if q.name not in self.gains:
            return False
        weight, scale, zero = (self.arrays[f"{what} {q.name}"] for what in ("weight", "scale", "zero"))
        params = q.params()
        tables, beside = ({n: self.arrays[f"table {n} {q.name}"] for n in p} for p in (params.tables, params.beside))
        q.write(weight, QParams(scale, zero.astype(params.zero_point.dtype), tables, beside))
        if (bias := self.arrays.get(f"bias {q.name}")) is not None:
            q.layer.node.metadata_props[CORRECTED] = "bias"
            q.layer.set_bias(bias)
        return True

    def keep(self, q: QuantizedLayer, gain: float, bias: np.ndarray | None = None) -> None:
        """Note a layer as it stands in the graph, and the bias that it was given, if it was."""
        self.gains[q.name] = gain
        if self.path is not None:
            self.arrays |= {} if bias is None else {f"bias {q.name}": bias}
            params = q.params()
            self.arrays |= {f"table {n} {q.name}": t for n, t in {**params.tables, **params.beside}.items()}
            self.arrays |= {
                f"weight {q.name}": q.weight(), f"scale {q.name}": params.scale,
                f"zero {q.name}": params.zero_point.astype(np.int32), f"gain {q.name}": np.asarray(gain),
            }  # fmt: skip

    def gain(self, q: QuantizedLayer) -> float:
        """The error of a layer as a share of rounding to nearest's."""
        return self.gains[q.name]

    def save(self, *, now: bool = False) -> None:
        """Write the file if it is some seconds old, or ``now``; the old one stays until the new is complete."""
        if self.path is not None and (now or time.monotonic() - self.saved >= _INTERVAL):
            statefile.write(self.path, _KIND, self.key, self.arrays, self.gains)
            self.saved = time.monotonic()
