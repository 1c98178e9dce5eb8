"""Ask the installed ONNX Runtime: build the smallest graph that uses a capability, lower it, see what it became.

The target's table says nothing that a probe did not see: ``disagreements`` is empty on the version that it names.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

from graphpress import ops
from graphpress.backends.ort import onednn
from graphpress.backends.ort.lower import lower
from graphpress.backends.ort.session import SessionOptions, open_session
from graphpress.capability import AttributeIs, Capability, GroupSizes
from graphpress.ops import dynamic_quantize_token
from graphpress.target import Fact, Target
from graphpress.types import Kind, Scheme


@dataclass(frozen=True)
class Example:
    """The smallest use of an operator: shapes of inputs, attributes, inputs neither weight nor activation."""

    shapes: tuple[tuple[int, ...], ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[int, np.ndarray] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 13


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_IMAGE, _ROWS = (1, 8, 6, 6), (4, 32)
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}
EXAMPLES: dict[str, Example] = {
    "Conv": Example((_IMAGE, (16, 8, 3, 3)), {"pads": [1, 1, 1, 1]}),
    "ConvTranspose": Example((_IMAGE, (8, 16, 3, 3))),
    "MatMul": Example(((4, 256), (256, 32))),
    "Gemm": Example(((4, 256), (256, 32))),
    "Concat": Example((_ROWS, _ROWS), {"axis": 0}),
    "AveragePool": Example((_IMAGE,), {"kernel_shape": [2, 2]}),
    "GlobalAveragePool": Example((_IMAGE,)),
    "MaxPool": Example((_IMAGE,), {"kernel_shape": [2, 2]}),
    "Where": Example((_ROWS, _ROWS, _ROWS), given={0: np.ones(_ROWS, np.bool_)}),
    "DepthToSpace": Example((_IMAGE,), {"blocksize": 2}),
    "SpaceToDepth": Example((_IMAGE,), {"blocksize": 2}),
    "Expand": Example((_ROWS, (3,)), given={1: _ints(2, 4, 32)}),
    "Gather": Example(((64, 256), (3,)), given={1: _ints(0, 5, 63)}),
    "GatherElements": Example((_ROWS, (1, 1)), given={1: _ints(0).reshape(1, 1)}),
    "ReduceMax": Example((_ROWS,), {"axes": [1]}),
    "ReduceMin": Example((_ROWS,), {"axes": [1]}),
    "Reshape": Example((_ROWS, (1,)), given={1: _ints(128)}),
    "Slice": Example((_ROWS, (1,), (1,)), given={1: _ints(0), 2: _ints(2)}),
    "Split": Example((_ROWS, (2,)), given={1: _ints(1, 3)}, outputs=2),
    "Squeeze": Example(((1, 32), (1,)), given={1: _ints(0)}),
    "Unsqueeze": Example((_ROWS, (1,)), given={1: _ints(0)}),
    "Tile": Example((_ROWS, (2,)), given={1: _ints(2, 2)}),
    "Pad": Example((_ROWS, (4,)), given={1: _ints(0, 0, 1, 1)}),
    "Resize": Example((_IMAGE, (0,), (4,)), given={1: np.zeros(0, np.float32), 2: np.array([1, 1, 2, 2], np.float32)}),
    **{op: Example((_ROWS, _ROWS)) for op in ("Add", "Mul", "Sub", "Div", "Max", "Min")},
    **{
        op: Example(((3, 2, 32), (1, gates * 32, 32), (1, gates * 32, 32)), {"hidden_size": 32})
        for op, gates in _RECURRENT.items()
    },
}
_UNARY = Example((_ROWS,))
_MERGED = {"MatMulIntegerToFloat": "DynamicQuantizeMatMul"}  # what ONNX Runtime makes of a kernel and its neighbour


@dataclass(frozen=True)
class Variant:
    """One point of a capability: the types and granularities chosen of those it offers."""

    activation: str = ""
    activation_kind: str = ""
    weight: str = ""
    weight_kind: str = ""
    group: int = 0


def variants(c: Capability) -> Iterator[Variant]:
    """Every combination that a capability claims. At run time signed activations are per token, uint8 per tensor."""
    activations = [] if c.mode == "weight" else list(itertools.product(c.activation, c.activation_granularity))
    for (a, kind), w, g in itertools.product(
        activations or [("", "")], c.weight or ("",), c.weight_granularity or ("",)
    ):
        if c.mode == "static" or not a or (kind == Kind.TOKEN) == (a != "uint8"):
            yield from (Variant(a, kind, w, g, n) for n in (_groups(c) if g == Kind.GROUP else [0]))


def _groups(c: Capability) -> list[int]:
    return next((list(t.sizes) for t in c.conditions if isinstance(t, GroupSizes)), [16])


def build(c: Capability, v: Variant, opset: int | None = None, largest: int | None = None) -> ir.Model:
    """The capability's canonical graph: float inputs ``x0``, ..., quantized as ``v`` says, float outputs ``y0``, ...

    ``largest`` is how far the weight's codes may be from their zero point.
    """
    return _Builder(c, v, opset, largest).model()


def kernels(model: ir.Model, target: Target) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a lowered model, main graph only."""
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, None, SessionOptions(save_optimised=str(path), threads=1), target)
        return Counter(n.op_type for n in onnx.load(path).graph.node)


@functools.cache
def works(c: Capability, v: Variant, target: Target, opset: int | None = None) -> bool:
    """Whether the installed ONNX Runtime runs this variant on the kernel that the capability names."""
    if Fact.KEEPS_KERNELS_TO_ITSELF in target.facts:
        return _told(c, v, target, opset)
    found = kernels(lower(build(c, v, opset), target), target)
    if c.output == "same":  # runs on integers: nothing is dequantized before it
        return found[c.kernel] == 1 and found["QuantizeLinear"] == 1
    if c.output == "absorbed":
        return found[c.op] == 0 and found["QLinearAdd"] == 1
    if not c.kernel:  # restored at load: nothing is left to compute in each run
        return found["DequantizeLinear"] == found["Cast"] == 0
    return found[c.kernel] + found[_MERGED.get(c.kernel, "")] > 0


def _told(c: Capability, v: Variant, target: Target, opset: int | None) -> bool:
    """By what the provider's oneDNN logs: a product of the capability's kind, of integers or of stored weights."""
    lowered = lower(build(c, v, opset, largest=target.exact_codes), target)
    rng = np.random.default_rng(0)
    feeds = {x.name or "": rng.normal(size=x.shape.numpy()).astype(np.float32) for x in lowered.graph.inputs if x.shape}
    wanted = "weight-only" if c.mode == "weight" else "integer"
    made = [p for p in onednn.primitives(lowered, target, feeds) if p.work]
    return bool(made) and all(p.verdict == wanted and f"onednn::{p.kind}" == c.kernel for p in made)


def disagreements(target: Target) -> list[str]:
    """Claims of the target's table that the installed ONNX Runtime does not keep."""
    return [f"{c.op} {c.mode} {v}" for c in target.capabilities for v in variants(c) if not works(c, v, target)]


class _Builder:
    def __init__(self, c: Capability, v: Variant, opset: int | None, largest: int | None) -> None:
        self.c, self.v, self.largest = c, v, largest
        self.example = EXAMPLES.get(c.op, _UNARY)
        weight_opset = Scheme(v.weight).opset if v.weight else 13
        group_opset = 21 if v.weight_kind == Kind.GROUP else 13
        self.opset = opset or max(
            self.example.opset, weight_opset, group_opset, 18 if v.activation_kind == Kind.TOKEN else 13
        )
        self.tape = Tape()
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.rng = np.random.default_rng(0)

    def op(
        self, name: str, inputs: Sequence[ir.Value | None], outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        made = self.tape.op_multi_out(name, inputs, attributes, num_outputs=outputs, domain=domain)
        for i, value in enumerate(made):
            value.name = f"v{len(list(self.tape.nodes))}_{i}"
        return list(made)

    def const(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def model(self) -> ir.Model:
        operands = [self.operand(i) for i in range(len(self.example.shapes))]
        attributes = dict(self.example.attributes) | _wanted_attributes(self.c)
        if self.c.output == "absorbed":  # only something quantized can be clipped by the Q behind
            operands = self.op("Add", [operands[0], operands[0]])
        results = self.op(self.c.op, operands, self.example.outputs, **attributes)
        results = [self.finish(y, i) for i, y in enumerate(results)]
        graph = ir.Graph(
            self.inputs, results, nodes=self.tape.nodes, initializers=self.initializers,
            opset_imports={"": self.opset}, name="probe",
        )  # fmt: skip
        for i, node in enumerate(graph):
            node.name = self.c.op if node.op_type == self.c.op else f"{node.op_type}_{i}"
        model = ir.Model(graph, ir_version=10 if self.opset < 23 else 11)
        if self.v.activation_kind == Kind.TOKEN:
            ops.base.attach(model, dynamic_quantize_token.OP)
        return model

    def operand(self, slot: int) -> ir.Value:
        shape = self.example.shapes[slot]
        if slot == 1 and AttributeIs("transB", "1") in self.c.conditions:
            shape = shape[::-1]
        if slot in self.c.weight_slots:
            return self.weight(slot, shape)
        if slot in self.example.given:
            return self.const(self.example.given[slot], f"given{slot}")
        x = ir.Value(name=f"x{slot}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.inputs.append(x)
        return self.activation(x, slot) if self.c.mode != "weight" else x

    def activation(self, x: ir.Value, slot: int) -> ir.Value:
        if self.c.mode == "static":
            return self.quantize(x, 0.03, f"x{slot}")
        if self.v.activation_kind == Kind.TOKEN:
            bits = Scheme(self.v.activation).bits
            q, scale = self.op("DynamicQuantizeToken", [x], 2, domain=ops.base.DOMAIN, bits=bits)
            (floats,) = self.op("Cast", [q], to=int(ir.DataType.FLOAT))
            return self.op("Mul", [floats, scale])[0]
        return self.op("DequantizeLinear", list(self.op("DynamicQuantizeLinear", [x], 3)))[0]

    def quantize(self, x: ir.Value, scale: float, name: str) -> ir.Value:
        low = 0 if self.c.output == "absorbed" and name != "x0" else 128
        zero = np.array(0 if self.v.activation == "int8" else low, self.v.activation)
        pair = [self.const(np.array(scale, np.float32), f"{name}_scale"), self.const(zero, f"{name}_zero")]
        return self.op("DequantizeLinear", [*self.op("QuantizeLinear", [x, *pair]), *pair])[0]

    def weight(self, slot: int, shape: tuple[int, ...]) -> ir.Value:
        scheme = Scheme(self.v.weight)
        zero = 0 if scheme.signed else 1 << (scheme.bits - 1)
        codes = self.rng.integers(scheme.qmin, scheme.qmax + 1, shape)
        if self.largest is not None:
            codes = codes.clip(zero - self.largest, zero + self.largest)
        axis = (
            None if self.v.weight_kind == Kind.TENSOR else (self.c.weight_axis if self.c.weight_axis is not None else 1)
        )
        attributes: dict[str, Any] = {}
        scale_shape: tuple[int, ...] = ()
        if axis is not None:
            axis %= len(shape)
            attributes["axis"] = axis
            scale_shape = (shape[axis],)
        if axis is not None and self.v.weight_kind == Kind.GROUP:
            size = min(self.v.group, shape[axis])
            attributes["block_size"] = size
            scale_shape = tuple(d // size if i == axis else d for i, d in enumerate(shape))
        storage = getattr(ml_dtypes, self.v.weight, None) or np.dtype(self.v.weight)
        parts = [
            self.const(codes.astype(np.int16).astype(storage), f"w{slot}"),
            self.const((self.rng.uniform(0.1, 0.3, scale_shape) / scheme.qmax).astype(np.float32), f"w{slot}_scale"),
            self.const(np.full(scale_shape, zero).astype(storage), f"w{slot}_zero"),
        ]
        return self.op("DequantizeLinear", list(parts), **attributes)[0]

    def finish(self, y: ir.Value, i: int) -> ir.Value:
        if self.c.output in ("required", "same", "absorbed"):
            if self.c.output == "same":
                pair = [v for v in self.initializers if v.name in ("x0_scale", "x0_zero")]
                y = self.op("DequantizeLinear", [*self.op("QuantizeLinear", [y, *pair]), *pair])[0]
            else:
                y = self.quantize(y, 0.05, f"y{i}")
        elif self.c.output == "optional" and self.c.kernel == "QLinearMatMul":
            y = self.quantize(y, 0.05, f"y{i}")
        y.name, y.type = f"y{i}", ir.TensorType(ir.DataType.FLOAT)
        return y


def _wanted_attributes(c: Capability) -> dict[str, Any]:
    pairs = [(t.name, t.value) for t in c.conditions if isinstance(t, AttributeIs)]
    return {n: float(v) if n in ("alpha", "beta") else int(v) if v.isdigit() else v for n, v in pairs}
