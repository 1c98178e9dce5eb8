"""SmoothQuant: channels whose activations are loud are made quiet, and their weights louder by as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.inner import stream
from graphpress.passes.equalize.factors import OutputError, SeenRows, factors
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import Carried, follow
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import WRITER, Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.passes.structure.layers.linear import Linear, layers
from graphpress.types import PER_TOKEN, Numerics, Scheme, Stage, per_channel, per_group

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the channels of what linear layers read by factors, and multiply their weights' columns with them.

    ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` over all readers of X. The division goes into what makes X: the gain
    of a norm, the rows of a layer before, also through an elementwise product and attention's values; where it cannot,
    the layers are a Skip. Exact in real arithmetic. Source: Xiao et al., "SmoothQuant", 2022, eq. 4.

    Attributes:
        alpha: How much of the loudness goes to the weights, 0 to 1; ``auto``: for each X what leaves the least error at
            the outputs of its readers, quantized as the options below say, of 0, 0.1, .. 1 and no factors at all. It
            leaves X behind a pool alone, for the map before the pool is quantized too: with factors the classifiers of
            MLPerf Tiny's ResNet-8 and DS-CNN lost 0.39 and 0.64 times as much, and both models more (0.24, 0.04 dB).
        activation: Storage type of activations that the search assumes.
        activation_granularity: Likewise: per_tensor (static), per_token.
        observer: How the range of activations per tensor is found, likewise.
        weight: Storage type of weights, likewise.
        group_size: Elements that share a scale of a weight, likewise; 0: one scale for each channel.
        samples: Of the calibration data.
        batch_size: Samples at a time.
    """

    alpha: float | Literal["auto"] = "auto"
    activation: Literal["int8", "uint8", "int4"] = "uint8"
    activation_granularity: Literal["per_tensor", "per_token"] = "per_tensor"
    observer: str = "mse"
    weight: Literal["int8", "uint8", "int4", "uint4", "int3", "int2", "uint2"] = "int8"
    group_size: int = 0
    samples: int = 128
    batch_size: int = 8

    name = "smooth"
    numerics = Numerics.CLOSE
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite weights and gains of ``model``.

        Raises:
            BadRequest: There is no data or nothing to run it on; an alpha out of range.
            CalibrationError: The data does not fit the model.
        """
        ctx.need("data", "smooth", "needs to see activations", "leave smooth out of the recipe")
        if self.alpha != "auto" and not 0 <= self.alpha <= 1:
            raise BadRequest(f"{self.alpha} is not between 0 and 1", where="smooth: option 'alpha'")
        places = find_places(model, report)
        seen = self._observe(model, ctx, places) if places else {}
        for place in ctx.progress(places, "smooth", len(places)):
            rows = seen.get(place.value.name or "")
            if rows is None or not rows.count:
                report.skip(place.value, "it was never seen: it is in a body that repeats, or that never ran")
                continue
            if self.alpha == "auto" and (pool := place.condensed) is not None:
                what = (
                    f"{pool.op_type} {pool.name!r} condenses what is quantized before it, which the search does not see"
                )
                report.skip(place.value, what)
                continue
            alpha = self._settle(place, rows)
            report.changed += alpha is not None
            said = f"places with {'no factors' if alpha is None else f'alpha {alpha:g}'}"
            report.metrics[said] = float(report.metrics.get(said, 0)) + 1

    def _observe(self, model: ir.Model, ctx: Context, places: Sequence[Place]) -> dict[str, SeenRows]:
        data, run = ctx.need("data", "smooth").bind(model).take(self.samples, ctx.seed), ctx.need("run", "smooth")
        names = [p.value.name or "" for p in places]
        batches = -(-len(data) // self.batch_size)
        seen: dict[str, SeenRows] = {}
        for values in stream(model, names, data, run, batch_size=self.batch_size, progress=ctx.progress).batches:
            for name, array in values.items():
                if array.size:
                    seen.setdefault(name, SeenRows(batches)).update(array)
        return seen

    def _settle(self, place: Place, rows: SeenRows) -> float | None:
        """Choose alpha and rewrite one place; None: left as it is."""
        weight = np.concatenate([r.weight() for r in place.readers]).astype(np.float32)
        _, alike = np.unique(place.carried.alike, return_inverse=True)  # copies of a channel have one factor
        loud, heavy = np.zeros((2, len(alike)), np.float32)
        np.maximum.at(loud, alike, rows.largest)
        np.maximum.at(heavy, alike, np.abs(weight).max(axis=0))

        def spread(alpha: float) -> np.ndarray:
            """The factor of each channel of the value."""
            return factors(loud, heavy, alpha)[alike]

        alpha = self._best(OutputError(np.concatenate(rows.kept), weight, *self._schemes()), spread)
        if alpha is not None:
            ledger, by_channel = Ledger(), spread(alpha)
            divided, multiplied = factor(by_channel, np.divide), factor(by_channel)
            for holder in [h for h in place.carried.holders if h.side == WRITER]:
                ledger.add(holder, divided)
            for holder in place.carried.readers:
                ledger.add(holder, multiplied)
            ledger.write()
        return alpha

    def _best(self, loss: OutputError, spread: Callable[[float], np.ndarray]) -> float | None:
        if self.alpha != "auto":
            return self.alpha
        best, least = None, loss(np.ones(loss.rows.shape[1]))
        for alpha in ALPHAS:
            if (found := loss(spread(alpha))) < least:
                best, least = alpha, found
        return best

    def _schemes(self) -> tuple[Scheme, Scheme]:
        if self.activation_granularity == "per_token":
            activation = Scheme(self.activation, PER_TOKEN, dynamic=True)
        else:
            activation = Scheme(self.activation, symmetric=False, observer=self.observer)
        grain = per_group(1, self.group_size) if self.group_size else per_channel(0)
        weight = Scheme(self.weight, grain)
        return activation, weight if weight.bits >= 8 else replace(weight, observer="mse")


@dataclass(frozen=True, eq=False)
class Place:
    """A value that only linear layers read, and what can divide its channels."""

    value: ir.Value
    readers: tuple[Linear, ...]
    carried: Carried

    @property
    def condensed(self) -> ir.Node | None:
        """What makes one number of many on the way to the value, the nearest there is."""
        return next(
            (n for n in reversed(self.carried.passed) if n.op_type.endswith("Pool") or "Reduce" in n.op_type), None
        )


def find_places(model: ir.Model, report: PassReport) -> list[Place]:
    """Places in order of the graph; a Skip for each layer that has none."""
    by_value: dict[ir.Value, list[Linear]] = {}
    for layer in layers(list(edit.nodes(model))):
        by_value.setdefault(layer.input, []).append(layer)
    channels = {g: survey(g or (), Move.SCALE) for g in {v.graph for v in by_value}}
    found = []
    for value, readers in by_value.items():
        made = _carried(value, readers, channels[value.graph])
        if isinstance(made, str):
            for layer in readers:
                report.skip(layer.node, made)
        else:
            found.append(Place(value, tuple(readers), made))
    return found


def _carried(value: ir.Value, readers: Sequence[Linear], channels: Survey) -> Carried | str:
    if any(r.node.op_type == "Conv" for r in readers):
        return "channels of a convolution do not stand on the last axis"
    nodes = {r.node for r in readers}
    other = next((u.node for u in value.uses() if u.node not in nodes), None)
    if other is not None:
        return f"{other.op_type} {other.name!r} reads {value.name!r} too"
    carried = follow(channels, value)
    if carried.blocks:
        return f"{carried.blocks[0].where}: {carried.blocks[0].why}"
    spread = len(np.unique(carried.alike)) < len(carried.alike)
    if spread and any(w.node.op_type in ("Conv", "BatchNormalization") for w in carried.writers):
        return "several of its places are one channel of a map"
    return carried if carried.writers else f"no constant makes the channels of {value.name!r}"
