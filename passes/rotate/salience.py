"""How loud what layers read is, and some of its rows: what decides between transforms, and what shapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Exhibit, PassReport
from graphpress.graph import edit
from graphpress.keys import LOUDNESS
from graphpress.observe.inner import stream
from graphpress.ops.dynamic_quantize_token import steps
from graphpress.passes.rotate.dual import DualTransform, block_of, dual_transform
from graphpress.passes.structure.layers.linear import Linear, layers

_ROWS = 1024  # of each value, spread over the batches
_BATCH = 8  # samples in a run
_BITS = 4  # in which two transforms are compared: at 8 it hardly matters which
Threshold: TypeAlias = float | Literal["auto"]


@dataclass
class Heard:
    """What is remembered of a value.

    Attributes:
        batches: How many there will be.
        kept: Rows [tokens, channels], batch by batch.
    """

    batches: int
    kept: list[np.ndarray] = field(default_factory=list)
    _square: float = 0.0
    _count: int = 0

    def update(self, x: np.ndarray) -> None:
        """See one batch, channels last; rows that are not finite are left out."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows[np.isfinite(rows).all(axis=1)]
        if rows.size:
            self._square += float(np.square(rows, dtype=np.float64).sum())
            self._count += rows.size
            some = min(len(rows), -(-_ROWS // max(self.batches, 1)))
            self.kept.append(rows[np.linspace(0, len(rows) - 1, some).astype(np.int64)])

    @property
    def loudness(self) -> float:
        """J = |X|_F / sqrt(tokens * channels): the root mean square of all that was seen."""
        return float(np.sqrt(self._square / max(self._count, 1)))


@dataclass(frozen=True, eq=False)
class Salience:
    """What layers read, and what decides which transform turns it (LRQ-DiT, "Adaptive Rotation Scheme").

    Attributes:
        threshold: Of J; ``auto``: the transform that leaves less of an error in rows that it was not made for.
        heard: What was seen; values that never were are not there.
        report: Gets a row for each value that is turned.
    """

    threshold: Threshold
    heard: Mapping[ir.Value, Heard]
    report: PassReport

    def transform(
        self, views: Sequence[Linear], plain: np.ndarray | None, rng: np.random.Generator
    ) -> DualTransform | None:
        """What turns that which some layers read; None where it is not salient, was not seen, or has no blocks.

        Args:
            views: The layers.
            plain: What would turn each run of channels otherwise, as a row; None: nothing would.
            rng: Draws the rotations that are tried.
        """
        heard = self.heard.get(views[0].input)
        if heard is None or not heard.kept or block_of(views[0].shape[1]) == 1:
            return None
        noted = [j for v in views if (j := LOUDNESS.get(v.node)) is not None]
        loudness, rows = max(noted, default=heard.loudness), np.concatenate(heard.kept)
        fitted = rows if self.threshold != "auto" else rows[::2]
        made = dual_transform(fitted, rng) if self.threshold == "auto" or loudness >= self.threshold else None
        if self.threshold == "auto" and made is not None and plain is not None:
            rest = rows[1::2]
            turned = (rest.reshape(-1, len(plain)) @ plain).reshape(rest.shape)
            made = made if rounding_error(made(rest)) < rounding_error(turned) else None
        names = ", ".join(v.node.name or "?" for v in views)
        self._table.append((names, f"{loudness:.3g}", "Hadamard" if made is None else "dual"))
        return made

    @property
    def _table(self) -> list[tuple[str, ...]]:
        name = "loudness of what layers read"
        found = next((e for e in self.report.exhibits if e.name == name), None)
        if found is None:
            rule = "what rounds better" if self.threshold == "auto" else f"dual from {self.threshold:g} on"
            note = f"J is the root mean square; {rule}"
            found = Exhibit("table", name, {"columns": ["layers", "J", "turned by"], "rows": [], "note": note})
            self.report.exhibits.append(found)
        rows: list[tuple[str, ...]] = found.data["rows"]
        return rows


def listen(model: ir.Model, ctx: Context, threshold: Threshold, samples: int, report: PassReport) -> Salience:
    """Run the model as it stands over calibration data, and remember what its matrix products read.

    Raises:
        BadRequest: There is no data, or nothing to run it on.
        CalibrationError: The data does not fit the model.
    """
    data, run = ctx.need("data", "rotate: option 'salient'"), ctx.need("run", "rotate: option 'salient'")
    data = data.bind(model).take(samples, ctx.seed)
    by_name = {v.input.name or "": v.input for v in layers(list(edit.nodes(model))) if v.node.op_type != "Conv"}
    found = {value: Heard(-(-len(data) // _BATCH)) for value in by_name.values()}
    for seen in stream(model, list(by_name), data, run, batch_size=_BATCH, progress=ctx.progress).batches:
        for name, array in seen.items():
            if array.size:
                found[by_name[name]].update(array)
    return Salience(threshold, found, report)


def rounding_error(rows: np.ndarray) -> float:
    """Squared error of rows [tokens, channels] in ``_BITS`` bits with a scale each."""
    scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / steps(_BITS), np.finfo(np.float32).tiny)
    rounded = np.minimum(np.rint(rows / scale), 2 ** (_BITS - 1) - 1) * scale
    return float(np.square(rounded - rows, dtype=np.float64).sum())
