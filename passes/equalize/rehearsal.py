"""What rounding costs at the outputs of a whole model: that of some layers, with factors and without, and all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit, randomness
from graphpress.observe.binding import Mode
from graphpress.observe.data import CalibrationData
from graphpress.passes.equalize.factors import columns, grid, part_of, rounded_weight
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.structure.layers.linear import Linear, linear
from graphpress.runner import Arrays, Executor, Runner, quiet
from graphpress.types import Kind, Scheme

OPSET = 11  # of Round


@dataclass(frozen=True, eq=False)
class Rounded:
    """Layers of one input that are rounded as if their channels were divided by factors.

    Attributes:
        layers: The names of their nodes.
        rows: [T, C] of what they read.
        factor: [C].
    """

    layers: tuple[str, ...]
    rows: np.ndarray
    factor: np.ndarray


def rehearsable(model: ir.Model, activation: Scheme) -> bool:
    """Whether two runs are alike, and the graph can be written with one scale for what each layer reads."""
    plain = edit.opset(model) >= OPSET and activation.granularity.kind is Kind.TENSOR
    return plain and not randomness.draws(model)


@dataclass(frozen=True)
class Rehearsal:
    """Runs a model on some batches, with all plans on the samples of a part.

    Attributes:
        model: Not changed.
        schemes: Of activations and weights.
        data: Bound to the model, in the order in which parts were told.
        execute: Builds the runner.
        batch_size: Samples at a time.
        batches: How many, at most.
    """

    model: ir.Model
    schemes: tuple[Scheme, Scheme]
    data: CalibrationData
    execute: Executor
    batch_size: int
    batches: int
    _wanted: dict[int, dict[str, list[np.ndarray]]] = field(default_factory=dict, init=False)

    def errors(self, plans: Mapping[int, Sequence[Sequence[Rounded]]]) -> np.ndarray:
        """[parts, plans]: squared error of the outputs over their power, summed over outputs of floats.

        Args:
            plans: For each part the plans, which that part had no share in.
        """
        found = []
        for part, several in plans.items():
            runs = [self.execute(written(self.model, plan, self.schemes)) for plan in several]
            found.append([self._lost(run, part) for run in runs])
        return np.array(found)

    def whole(self, model: ir.Model, options: Quantize, ctx: Context, parts: Iterable[int]) -> float:
        """The same, summed over parts, of a form of the model as ``quantize`` leaves it, all layers and joints."""
        copy, execute = model.clone(), ctx.oracle or self.execute
        size = (self.data.binding.exact if self.data.binding is not None else None) or self.batch_size
        few = self.data.pick(range(min(len(self.data), self.batches * size)))
        options.run(copy, replace(ctx, data=few, state=None, calibrate=None, progress=quiet), PassReport())
        run = execute(copy)
        return sum(self._lost(run, part) for part in parts)

    def _lost(self, run: Runner, part: int) -> float:
        if part not in self._wanted:
            self._wanted[part] = self._outputs(self.execute(self.model), part)
        got = self._outputs(run, part)
        return sum(_relative(got[name], arrays) for name, arrays in self._wanted[part].items())

    def _outputs(self, run: Runner, part: int) -> dict[str, list[np.ndarray]]:
        found = dict[str, list[np.ndarray]]()
        for feeds, batch in self._samples(part):
            for name, array in run(feeds).items():
                if array.dtype.kind == "f":
                    mine = ... if batch is None or not array.ndim else part_of(len(array), batch) == part
                    found.setdefault(name, []).append(array[mine])
        return found

    def _samples(self, part: int) -> Iterator[tuple[Arrays, int | None]]:
        """Feeds with the samples of a part alone; where the model fixes the size of a batch all, and its number."""
        binding = self.data.binding
        assert binding is not None
        rows = {
            s.name for s in binding.slots if s.mode is Mode.ROWS or (s.mode is Mode.ZEROS and s.dims[:1] == (None,))
        }
        for i, feeds in enumerate(islice(self.data.batches(self.batch_size), self.batches)):
            if binding.exact is not None or not rows:
                yield feeds, i
            elif (mine := part_of(binding.count(feeds), i) == part).any():
                yield {n: a[mine] if n in rows else a for n, a in feeds.items()}, None


def _relative(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Outputs whose size depends on the data may come out in another: they say nothing here."""
    lost = power = 0.0
    for a, b in zip(got, wanted, strict=True):
        if a.shape == b.shape:
            with np.errstate(all="ignore"):
                lost += float(np.nansum(np.square(a - b, dtype=np.float64)))
                power += float(np.nansum(np.square(b, dtype=np.float64)))
    return lost / power if power > 0 and np.isfinite(lost) else 0.0


def written(model: ir.Model, plan: Sequence[Rounded], schemes: tuple[Scheme, Scheme]) -> ir.Model:
    """A copy in which the layers read and hold what is on the grids."""
    activation, stored = schemes
    copy = model.clone()
    edit.index(copy)
    known = {n.name or "": n for n in edit.nodes(copy)}
    for place in plan:
        views = [v for name in place.layers if isinstance(v := linear(known[name]), Linear)]
        for view in views:
            weight = view.weight()
            by = columns(place.factor, weight.ndim).astype(weight.dtype)
            held = rounded_weight(weight * by, stored) / by
            view.set_weight(held.astype(weight.dtype))
        _round_input(views, place, activation)
    return copy


def _round_input(views: Sequence[Linear], place: Rounded, scheme: Scheme) -> None:
    params = grid((place.rows / place.factor).astype(np.float32), scheme)
    scale, zero = float(params.scale.reshape(-1)[0]), int(np.reshape(params.zero_point, -1)[0])
    node, x = views[0].node, views[0].input
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    step = columns(place.factor, len(views[0].shape)) * scale
    steps: Mapping[str, np.ndarray] = {
        "Div": step, "Max": np.array(scheme.qmin - zero), "Min": np.array(scheme.qmax - zero), "Mul": step,
    }  # fmt: skip
    value = x
    for op, array in steps.items():
        held = edit.add_const(graph, array.astype(dtype), f"{node.name}_grid")
        value = edit.new_node(op, [value, held], before=node).outputs[0]
        if op == "Div":
            value = edit.new_node("Round", [value], before=node).outputs[0]
    for view in views:
        edit.set_input(view.node, 0, value)
