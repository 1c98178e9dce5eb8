"""Latency of each format at each operator, measured on the target at real shapes; and of conversions at its edges.

Of a statically quantized operator the integer kernel alone is timed, codes in and codes out, and what it takes beside
others apart (``seams``): that depends on the neighbours. What differs in storage only (weights that are restored to
float, or widened to 8 bits, when the model is loaded) is not timed twice. Runs of all formats alternate; lower
quartiles count.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.graph.cut import cut
from graphpress.graph.grid import is_dequantize, is_quantize
from graphpress.passes.allocate import seams
from graphpress.passes.allocate.edges import Values
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.allocate.parts import CODES_OF, Parts, bare
from graphpress.passes.allocate.space import Schemes
from graphpress.passes.allocate.store import Cache
from graphpress.runner import Runner
from graphpress.types import Role

SECONDS = 0.04  # for each runner of an operator
_LEAST = 7  # runs of each
_IDLE, _SAME = "a model that does nothing", "a model that is always the same"
_SLOWER, _PAUSE, _PATIENCE = 1.15, 0.5, 15.0  # how much slower than usual counts as disturbed; seconds to wait, in all
_UP, _DOWN = "quantize input", "dequantize output"
_PACKAGE = {"ort": "onnxruntime", "fx": "torch"}


@dataclass
class Times:
    """Milliseconds.

    Attributes:
        parts: Operator -> format -> time.
        up: Value -> time to quantize it alone.
        down: Value -> time to dequantize it alone.
        seams: Value -> what it takes between its writer and its readers; absent where they were not timed together.
        cached: How many figures were known from before.
    """

    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    up: dict[str, float] = field(default_factory=dict)
    down: dict[str, float] = field(default_factory=dict)
    seams: dict[str, seams.Seamed] = field(default_factory=dict)
    cached: int = 0


@dataclass
class LatencyMeter:
    """Times the parts of a model.

    Attributes:
        parts: The operators.
        ctx: Has ``deploy``.
        store: Times known from before on this machine.
        values: What lies at the edges of the parts, on one sample.
        usual: Milliseconds of the model that is always the same where nothing disturbs it, as far as seen.
        patience: Seconds left for taking times again.
    """

    parts: Parts
    ctx: Context
    store: Cache
    values: Values
    usual: float = math.inf
    patience: float = _PATIENCE

    def run(self, wanted: Mapping[str, tuple[str, ...]]) -> Times:
        """Times of operators in the formats wanted of each, in float always."""
        times, before = Times(), self.store.found
        where = machine(self.ctx)
        for node in self.ctx.progress(wanted, "latency", len(wanted)):
            self._one(node, wanted[node], where, times)
        found = [s for s in seams.seams(self.parts) if s.source in wanted]
        for seam in self.ctx.progress(found, "neighbours", len(found)):
            self._seam(seam, where, times)
        times.cached = self.store.found - before
        self.store.save()
        return times

    def _one(self, node: str, formats: tuple[str, ...], where: str, times: Times) -> None:
        twins = self._twins(node, formats)
        timed = [FLOAT, *(f for f in formats if f not in twins)]
        keys = {f: (where, self._signature(node, f)) for f in timed}
        known = {f: self.store.get(*keys[f]) for f in timed}
        static = next((f for f in timed if _static(self.parts.schemes(node, f) if f != FLOAT else {})), None)
        edges = self._edges(node, static) if static else {}
        edge_keys = {e: (where, e, m.graph.inputs[0].shape, self._shape(v)) for e, (m, v) in edges.items()}
        known_edges = {e: self.store.get(*k) for e, k in edge_keys.items()}
        if None in known.values() or None in known_edges.values():
            runs = {f: self._made(node, f) for f in timed} | {e: self._ready(m) for e, (m, _) in edges.items()}
            got = self._quiet(runs | {_IDLE: self._ready(_idle())})
            got |= {e: max(got[e] - got[_IDLE], 0.0) for e in edges}  # of two runs, calling them cancels out
            known = {f: self.store.put(got[f], *keys[f]) for f in timed}
            known_edges = {e: self.store.put(got[e], *edge_keys[e]) for e in edges}
        row = {f: ms for f, ms in known.items() if ms is not None}
        times.parts[node] = row | {f: row[twin] for f, twin in twins.items()}
        for edge, ms in known_edges.items():
            (times.up if edge == _UP else times.down)[edges[edge][1]] = ms or 0.0

    def _seam(self, seam: seams.Seam, where: str, times: Times) -> None:
        """Time an operator with its readers, if each of them was timed alone in floats and in codes."""
        names = {n: seams.static_format(self.parts, n) for n in seam.nodes}
        rows = {n: times.parts.get(n, {}) for n in names}
        if not all(name in rows[n] for n, name in names.items()):
            return
        signed = [self._signature(n, name or FLOAT) for n, name in names.items()]
        keys = {s: (where, s, seam.readers.count(seams.OUTSIDE), signed) for s in seams.STATES}
        found = {s: self.store.get(*key) for s, key in keys.items()}
        if None in found.values():
            models = seams.states(self.parts, seam)
            if models is None:
                return
            took = self._quiet({s: self._ready(m) for s, m in models.items()})
            found = {s: self.store.put(took[s], *keys[s]) for s in seams.STATES}
        alone = {n: rows[n][name or FLOAT] - rows[n][FLOAT] for n, name in names.items()}
        times.seams[seam.value] = seams.seam_costs(seam, {s: ms or 0.0 for s, ms in found.items()}, alone)

    def _twins(self, node: str, formats: tuple[str, ...]) -> dict[str, str]:
        """Formats that differ from another one, or from float, in storage only: the same kernel at the same edges."""
        first, twins = dict[tuple[str, ...], str](), dict[str, str]()
        for name in formats:
            sites = self.parts.schemes(node, name)
            kernel = self._kernel(node, sites)
            if kernel == "":  # weights are restored when the model is loaded
                twins[name] = FLOAT
            elif kernel is not None and _static(sites):
                edges = [f"{s.slot} {v}" for s, v in sites.items() if s.role is not Role.WEIGHT]
                scales = [f"{v.granularity} {v.symmetric}" for s, v in sites.items() if s.role is Role.WEIGHT]
                twin = first.setdefault((kernel, *edges, *scales), name)
                twins |= {name: twin} if twin != name else {}
        return twins

    def _kernel(self, node: str, sites: Schemes) -> str | None:
        """The kernel that the target has for it; empty: none reads such weights; None: not known."""
        found = self.parts.space.nodes().get(node)
        if self.ctx.target is None or found is None:
            return None
        mode = "static" if _static(sites) else "weight"
        if mode == "weight" and any(s.role is not Role.WEIGHT for s in sites):
            return None
        fits = (c for c in self.ctx.target.find(found.op_type, mode) if c.violation(found, sites) is None)
        return next((c.kernel or "" for c in fits), None)

    def _made(self, node: str, name: str) -> tuple[Runner, Values]:
        return self._ready(bare(self.parts.folded(node, name)) if name != FLOAT else self.parts.parts[node].model)

    def _ready(self, model: ir.Model) -> tuple[Runner, Values]:
        """The runner on the target and its inputs; codes are those of the values that they stand for."""
        feeds = {v.name or "": self._feed(v) for v in model.graph.inputs}
        return self.ctx.need("deploy", "allocate")(model), feeds

    def _quiet(self, runs: Mapping[str, tuple[Runner, Values]]) -> dict[str, float]:
        """``alternate`` beside a model that is always the same: again, while the machine makes that one slow."""
        best = alternate({**runs, _SAME: self._same})
        self.usual = min(self.usual, best[_SAME])
        while best[_SAME] > _SLOWER * self.usual and self.patience > 0:
            start = time.perf_counter()
            time.sleep(_PAUSE)
            got = alternate({**runs, _SAME: self._same})
            best = min(best, got, key=lambda times: times[_SAME])
            self.patience -= time.perf_counter() - start
        return best

    @cached_property
    def _same(self) -> tuple[Runner, Values]:
        return self._ready(_chain())

    def _feed(self, value: ir.Value) -> np.ndarray:
        known = self.values.get(value.name or "")
        if known is not None:
            return known
        if CODES_OF not in value.metadata_props:  # of a model of ours
            return np.zeros(value.shape.numpy() if value.shape is not None else (), np.float32)
        source = self.values[value.metadata_props[CODES_OF]]
        assert value.dtype is not None
        info = np.iinfo(value.dtype.numpy())
        low, high = float(source.min(initial=0)), float(source.max(initial=0))
        steps = np.rint((source - low) / max(high - low, 1e-9) * (int(info.max) - int(info.min))) + info.min
        return steps.astype(value.dtype.numpy())

    def _edges(self, node: str, name: str) -> dict[str, tuple[ir.Model, str]]:
        """Q of the first input and DQ of the first output of the quantized part, and the values they convert."""
        model, found = self.parts.folded(node, name), {}
        for q in model.graph:
            if is_quantize(q) and q.inputs[0] in model.graph.inputs and _UP not in found:
                found[_UP] = cut(model, [_name(q.inputs[0])], [_name(q.outputs[0])]), _name(q.inputs[0])
        out = model.graph.outputs[0]
        dq = out.producer()
        codes = dq.inputs[0] if is_dequantize(dq) else None
        if codes is not None and codes.producer() is not None:
            part = cut(model, [_name(codes)], [_name(out)])
            part.graph.inputs[0].metadata_props[CODES_OF] = _name(out)
            found[_DOWN] = part, _name(out)
        return found

    def _signature(self, node: str, name: str) -> str:
        """Operator, attributes, shapes and schemes: what the time depends on."""
        model = self.parts.parts[node].model
        said = []
        for n in model.graph:
            shapes = [v.const_value.shape if v is not None and v.const_value is not None else "" for v in n.inputs]
            said.append(f"{n.op_type} {sorted(map(str, n.attributes.values()))} {shapes}")
        feeds = [self._shape(v) for v in self.parts.parts[node].inputs]
        schemes = "" if name == FLOAT else [f"{s.slot} {s.role} {v}" for s, v in self.parts.schemes(node, name).items()]
        return f"{said} {feeds} {schemes}"

    def _shape(self, value: str) -> str:
        array = self.values[value]
        return f"{array.shape} {array.dtype}"


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _static(sites: Schemes) -> bool:
    return any(s.role is not Role.WEIGHT and not v.dynamic for s, v in sites.items())


def _idle() -> ir.Model:
    """A model that does nothing: what a call costs."""
    return _small([1], lambda x, _: ir.node("Neg", [x]), 1)


def _chain() -> ir.Model:
    """Convolutions that both threads share, some 0.2 ms in all: the first to suffer where a machine is busy."""
    kernel = np.full((16, 16, 3, 3), 1 / 144, np.float32)
    weight = ir.Value(name="w", const_value=ir.tensor(kernel, name="w"))
    return _small([1, 16, 32, 32], lambda x, w: ir.node("Conv", [x, w], {"pads": [1, 1, 1, 1]}), 6, weight)


def _small(
    shape: list[int], step: Callable[[ir.Value, ir.Value | None], ir.Node], count: int, weight: ir.Value | None = None
) -> ir.Model:
    """``count`` nodes in a row on floats of one shape."""
    given = value = ir.Value(name="same_x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = []
    for i in range(count):
        nodes.append(step(value, weight))
        nodes[-1].name, value = f"same_{i}", nodes[-1].outputs[0]
        value.name, value.shape, value.type = f"same_y{i}", given.shape, given.type
    held = [weight] if weight is not None else []
    graph = ir.Graph([given], [value], nodes=nodes, initializers=held, opset_imports={"": 21}, name="same")
    return ir.Model(graph, ir_version=10)


def alternate(runners: Mapping[str, tuple[Runner, Values]], seconds: float = SECONDS) -> dict[str, float]:
    """Milliseconds of each runner, all of them run in turns: lower quartiles, as disturbances make runs longer."""
    for run, feeds in runners.values():
        run(feeds)
        run(feeds)
    seen: dict[str, list[float]] = {k: [] for k in runners}
    end = time.perf_counter() + seconds * len(runners)
    while time.perf_counter() < end or any(len(v) < _LEAST for v in seen.values()):
        for name, (run, feeds) in runners.items():
            start = time.perf_counter()
            run(feeds)
            seen[name].append(1e3 * (time.perf_counter() - start))
    return {k: statistics.quantiles(v, n=4)[0] for k, v in seen.items()}


def machine(ctx: Context) -> str:
    """What a time holds for: processor, its cores, target, version of the runtime."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = sum(line.startswith("processor") for line in lines)
    package = _PACKAGE.get(ctx.target.runtime, "") if ctx.target else ""
    version = metadata.version(package) if package else ""
    target = ctx.target.name if ctx.target else ""
    return f"{model or platform.processor()} {cores} {platform.machine()} {target} {version}"
