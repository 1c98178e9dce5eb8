"""SmoothQuant: channels whose activations are loud are made quiet, and their weights louder by as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import LOUDNESS
from graphpress.observe.inner import stream
from graphpress.observe.observers import OBSERVERS
from graphpress.passes.equalize.factors import OutputError, SeenRows, columns, factors, taps
from graphpress.passes.equalize.rehearsal import Rehearsal, Rounded, rehearsable
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.structure.channels.ledger import Ledger, factor
from graphpress.passes.structure.channels.moves import WRITER
from graphpress.passes.structure.layers.factor_places import FactorPlace, before_layers, factor_places
from graphpress.passes.structure.layers.linear import Linear
from graphpress.passes.structure.layers.outermost import first_layers
from graphpress.typed import Known
from graphpress.types import PER_TOKEN, Kind, Numerics, Scheme, Stage, per_channel, per_group

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
GAIN = 0.9  # of the squared error without factors, at most: what gains less is as likely chance
NO_RANGE = 0.97  # likewise where every row has a scale of its own, so that none can lie beyond a range
OVERALL = 0.8  # likewise of the outputs' error, which is the sum of little luck too: 1 dB
NOTICED = 0.1  # of the outputs' error when all is quantized, at least: half a dB; less drowns in the luck of rounding
REHEARSED = 32  # samples
Cost: TypeAlias = Callable[[float | None], float]


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the channels of what linear layers read by factors, and multiply their weights' columns with them.

    ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` over all readers of X. The division goes into what makes X: the gain
    of a norm, the rows of a layer before, also through an elementwise product and attention's values; where it cannot,
    the layers are a Skip, or a Mul before them takes it (``insert``). So AdaLN's own modulation takes the factors
    exactly (shift and scale have a layer for each block), and one that blocks share (adaLN-single) does not: the
    static half of ViDiT-Q's balancing (arXiv:2406.02540), with ``rotate`` behind it. Exact in real arithmetic. Source:
    Xiao et al., "SmoothQuant", 2022, eq. 4.

    Attributes:
        alpha: How much of the loudness goes to the weights, 0 to 1; ``auto``: for each X what leaves the least error at
            the outputs of its readers, quantized as the options below say, of 0, 0.1, .. 1 and no factors at all, which
            stay where nothing leaves a tenth less (per_token 3 %: there no row lies beyond a range). The error is of
            samples that chose neither the maxima nor the range of X: each quarter of them is held out once, for the
            maxima of few samples say little of the next. With one scale for X, what may lie beyond all that was seen
            counts against factors too, and all factors go where the model's outputs do not come out 1 dB nearer for
            them, nearer for each quarter, and by a tenth of what they lose when all is quantized, which must be less
            with them. It leaves X behind a pool alone, for the map before the pool is quantized too: with factors the
            classifiers of MLPerf Tiny's ResNet-8 and DS-CNN lost 0.39 and 0.64 times as much, and both models more
            (0.24, 0.04 dB).
        insert: Put a Mul where nothing can take the division, before convolutions without groups too; not before the
            first layers.
        activation: Storage type of activations that the search assumes.
        activation_granularity: Likewise: per_tensor (static), per_token.
        observer: How the range of activations per tensor is found, likewise.
        weight: Storage type of weights, likewise.
        group_size: Elements that share a scale of a weight, likewise; 0: one scale for each channel.
        samples: Of the calibration data.
        batch_size: Samples at a time.
    """

    alpha: float | Literal["auto"] = "auto"
    insert: bool = False
    activation: Literal["int8", "uint8", "int4"] = "uint8"
    activation_granularity: Literal["per_tensor", "per_token"] = "per_tensor"
    observer: Annotated[str, Known(lambda: OBSERVERS)] = "mse"
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
        choices = self._choices(model, ctx, report)
        if self.alpha == "auto" and not self._gains(model, ctx, choices, report):
            choices = [replace(c, alpha=None) for c in choices]
        for choice in choices:
            choice.write()
            alpha = choice.alpha
            report.changed += alpha is not None
            said = f"places with {'no factors' if alpha is None else f'alpha {alpha:g}'}"
            report.metrics[said] = float(report.metrics.get(said, 0)) + 1

    def _choices(self, model: ir.Model, ctx: Context, report: PassReport) -> list[Choice]:
        """For each place that was seen what is best for its own layers."""
        places, found = find_places(model, report, insert=self.insert), list[Choice]()
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
            found.append(self._choice(place, rows))
        return found

    def _gains(self, model: ir.Model, ctx: Context, choices: Sequence[Choice], report: PassReport) -> bool:
        """Whether the model's outputs lose less with the factors: what a layer gains may be lost behind it.

        Or may be nothing beside what all the others lose, or be what others' errors had cancelled.
        """
        schemes, execute = self._schemes(), ctx.need("run", "smooth")
        if all(c.alpha is None for c in choices) or not rehearsable(model, schemes[0]):
            return True
        data = ctx.need("data", "smooth").bind(model).take(self.samples, ctx.seed)
        rehearsal = Rehearsal(model, schemes, data, execute, self.batch_size, -(-REHEARSED // self.batch_size))
        most = max(choices, key=lambda c: c.seen.count)
        plans = {p: [[c.rounded(p, f) for c in choices] for f in (False, True)] for p, _ in most.seen.held_out()}
        errors = rehearsal.errors(plans)
        without, with_ = errors.sum(axis=0)
        report.metrics["error of the outputs without factors, with"] = f"{without:.3g}, {with_:.3g}"
        if not (with_ < OVERALL * without and (errors[:, 1] < errors[:, 0]).all()):
            return False
        forms = (model, self._smoothed(model, choices))
        whole, smoothed = (rehearsal.whole(form, self._quantize(), ctx, plans) for form in forms)
        report.metrics["likewise when all is quantized"] = f"{whole:.3g}, {smoothed:.3g}"
        return bool(without - with_ > NOTICED * whole and smoothed < whole)

    def _smoothed(self, model: ir.Model, choices: Sequence[Choice]) -> ir.Model:
        """A copy with the factors."""
        copy = model.clone()
        edit.index(copy)
        places = {p.value.name: p for p in find_places(copy, PassReport(), insert=self.insert)}
        for choice in choices:
            replace(choice, place=places[choice.place.value.name]).write()
        return copy

    def _observe(self, model: ir.Model, ctx: Context, places: Sequence[FactorPlace]) -> dict[str, SeenRows]:
        data, run = ctx.need("data", "smooth").bind(model).take(self.samples, ctx.seed), ctx.need("run", "smooth")
        names = [p.value.name or "" for p in places]
        batches = -(-len(data) // self.batch_size)
        seen: dict[str, SeenRows] = {}
        axes = {p.value.name: p.axis for p in places}
        for values in stream(model, names, data, run, batch_size=self.batch_size, progress=ctx.progress).batches:
            for name, array in values.items():
                if array.size:
                    seen.setdefault(name, SeenRows(batches)).update(np.moveaxis(array, axes[name], -1))
        return seen

    def _choice(self, place: FactorPlace, rows: SeenRows) -> Choice:
        """Choose alpha for one place; None: no factors."""
        weights = _stacked(place)
        weight = np.concatenate([taps(w) for w in weights])
        _, alike = np.unique(place.carried.alike, return_inverse=True)  # copies of a channel have one factor
        heavy = _of_copies(np.abs(weight).max(axis=0), alike)
        none = Choice(place, rows, alike, heavy)
        trials = [self._trial(none, w, *part) for part in rows.held_out() for w in weights]
        tested, power = sum(len(held) for _, held in rows.held_out()), np.square(weight, dtype=np.float64).sum(axis=0)
        return replace(none, alpha=self._best(trials, lambda alpha: tested * self._beyond(none, power, alpha)))

    def _trial(self, none: Choice, weight: np.ndarray, part: int, held: np.ndarray) -> Cost:
        """What an alpha (None: no factors) costs on rows that are held out, where the others chose all else."""
        largest, seen = none.seen.without(part)
        error = OutputError(seen, held, weight, *self._schemes(none.place))
        return lambda alpha: error(replace(none, alpha=alpha).factor(largest))

    def _beyond(self, none: Choice, power: np.ndarray, alpha: float | None) -> float:
        """What an alpha costs, for each row, where rows lie beyond all that was seen."""
        activation, _ = self._schemes()
        if activation.granularity.kind is Kind.TOKEN:
            return 0.0
        return float(none.seen.beyond(replace(none, alpha=alpha).factor(none.seen.largest), activation) @ power)

    def _best(self, trials: Sequence[Cost], beyond: Cost = lambda alpha: 0.0) -> float | None:
        """The alpha that costs least, of those that gain enough even with what may lie beyond the range.

        Only factors answer for that: without them one loud channel alone would tell it, which is no measurement.
        """
        if self.alpha != "auto":
            return self.alpha
        limit = (NO_RANGE if self.activation_granularity == "per_token" else GAIN) * sum(t(None) for t in trials)
        best, least = None, limit
        for alpha in ALPHAS if trials else ():
            found = sum(trial(alpha) for trial in trials)
            if found < least and found + beyond(alpha) < limit:
                best, least = alpha, found
        return best

    def _quantize(self) -> Quantize:
        grain: Literal["per_group", "per_channel"] = "per_group" if self.group_size else "per_channel"
        return Quantize(
            weight=self.weight, weight_granularity=grain, group_size=self.group_size or 64,
            weight_observer=self._schemes()[1].observer, activation=self.activation, observer=self.observer,
            fallback=("dynamic", "weight"),
        )  # fmt: skip

    def _schemes(self, place: FactorPlace | None = None) -> tuple[Scheme, Scheme]:
        """Of activations and weights; what a convolution reads has no tokens, and gets 8 bits at run time instead."""
        if self.activation_granularity == "per_token" and place is not None and place.axis == 1:
            activation = Scheme("uint8", symmetric=False, dynamic=True, observer="minmax")
        elif self.activation_granularity == "per_token":
            activation = Scheme(self.activation, PER_TOKEN, dynamic=True)
        else:
            activation = Scheme(self.activation, symmetric=False, observer=self.observer)
        grain = per_group(1, self.group_size) if self.group_size else per_channel(0)
        weight = Scheme(self.weight, grain)
        return activation, weight if weight.bits >= 8 else replace(weight, observer="mse")


@dataclass(frozen=True, eq=False)
class Choice:
    """What a place gets.

    Attributes:
        place: The value and its readers.
        seen: What is remembered of the value.
        alike: [C]: the number of the channels that have one factor.
        heavy: Their largest weights.
        alpha: None: no factors.
    """

    place: FactorPlace
    seen: SeenRows
    alike: np.ndarray
    heavy: np.ndarray
    alpha: float | None = None

    def factor(self, largest: np.ndarray) -> np.ndarray:
        """[C], of the largest magnitudes of the channels."""
        if self.alpha is None:
            return np.ones(len(self.alike))
        return factors(_of_copies(largest, self.alike), self.heavy, self.alpha)[self.alike]

    def rounded(self, part: int, smoothed: bool) -> Rounded:
        """Its layers as quantization would leave them if that part of the samples had not been seen."""
        largest, rows = self.seen.without(part)
        chosen = self if smoothed else replace(self, alpha=None)
        return Rounded(tuple(r.node.name or "" for r in self.place.readers), rows, chosen.factor(largest))

    def write(self) -> None:
        """Divide what makes the value, and multiply the columns of what reads it."""
        if self.alpha is None:
            return
        by_channel = self.factor(self.seen.largest)
        ledger, divided, multiplied = Ledger(), factor(by_channel, np.divide), factor(by_channel)
        for holder in [h for h in self.place.carried.holders if h.side == WRITER]:
            ledger.add(holder, divided)
        for holder in self.place.carried.readers:
            ledger.add(holder, multiplied)
        ledger.write()
        for reader in self.place.readers:
            if LOUDNESS.get(reader.node) is None:
                LOUDNESS.set(reader.node, self.seen.loudness)
        if self.place.inserted:
            _insert(self.place, 1 / by_channel)


def _stacked(place: FactorPlace) -> list[np.ndarray]:
    """The weights [O, C, *kernel] of the readers, those of one kernel in one array."""
    kernels = dict.fromkeys(r.shape[2:] for r in place.readers)
    return [
        np.concatenate([r.weight() for r in place.readers if r.shape[2:] == kernel]).astype(np.float32)
        for kernel in kernels
    ]


def _of_copies(largest: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """The largest of all copies of a channel."""
    found = np.zeros(alike.max() + 1, np.float32)
    np.maximum.at(found, alike, largest)
    return found


def _insert(place: FactorPlace, by: np.ndarray) -> None:
    """A Mul before the layers, for them alone."""
    value, nodes, dtype = place.value, [r.node for r in place.readers], place.readers[0].weight_value.dtype
    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph) and dtype is not None
    first = min(nodes, key=list(graph).index)
    by = columns(by, len(place.readers[0].shape))
    held = edit.add_const(graph, by.astype(dtype.numpy()), f"{value.name}_smooth")
    mul = edit.new_node("Mul", [value, held], before=first, origin=first)
    edit.like(mul.outputs[0], value)
    for node in nodes:
        edit.set_input(node, 0, mul.outputs[0])


def find_places(model: ir.Model, report: PassReport, *, insert: bool = False) -> list[FactorPlace]:
    """Places in order of the graph; a Skip for each layer that has none.

    Args:
        insert: The place right before matrix products is one where there is no other.
    """
    found, bare = factor_places(edit.nodes(model)), dict[ir.Value, list[Linear]]()
    first = {n for g in edit.graphs(model) for n in first_layers(list(g))} if insert else set()
    maps = {layer.input for layer, _ in found.refused if layer.node.op_type == "Conv"}
    rows = {layer.input for layer, _ in found.refused if layer.node.op_type != "Conv"}
    for layer, why in found.refused:
        if insert and layer.groups == 1 and layer.node not in first and layer.input not in maps & rows:
            bare.setdefault(layer.input, []).append(layer)
        else:
            report.skip(layer.node, why)
    return found.places + [before_layers(readers) for readers in bare.values()]
