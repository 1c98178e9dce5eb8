"""Scales of static activations by the step of a diffusion model (TALSQ of EfficientDM, arXiv:2310.03270, section 3.4).

The step is an input of the model: its range is an index, and scales and zero points are gathered from tables by it.
Where each sample has a step of its own, each has a scale of its own (QuantizeLinear along axis 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.observe.steps import StepRanges

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(eq=False)
class StepTables:
    """Chooses by the step of a model.

    Attributes:
        model: Gets the nodes that find the range.
        steps: The ranges.
    """

    model: ir.Model
    steps: StepRanges

    @property
    def input(self) -> ir.Value:
        """The step."""
        return next(v for v in self.model.graph.inputs if v.name == self.steps.input)

    @property
    def one(self) -> bool:
        """Whether a run has one step, not one for each sample."""
        shape = self.input.shape
        return shape is not None and all(isinstance(d, int) for d in shape) and math.prod(shape.numpy()) == 1

    def unfit(self, value: ir.Value) -> str:
        """Why a value has one scale for all steps, or ""."""
        if self.one:
            return ""
        rows, own = self.input.shape, value.shape
        known = rows is not None and own is not None and len(rows) > 0 and len(own) > 0
        if known and isinstance(own[0], ir.SymbolicDim) and own[0].value is not None and own[0] == rows[0]:  # type: ignore[index]
            return ""
        return f"one range for all steps: the first axis of {value.name!r} is not that of {self.steps.input!r}"

    @cached_property
    def index(self) -> ir.Value:
        """The range of the step, int64: a number, or [samples]. A step in none gets one beyond the tables, which Gather
        refuses when the model runs."""
        graph, step = self.model.graph, self.input
        assert step.dtype is not None
        wide = ir.DataType.FLOAT if step.dtype in _FLOATS else ir.DataType.DOUBLE
        bounds = self.steps.limits(step.dtype.numpy()).astype(wide.numpy())

        def node(op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
            made = edit.new_node(op, list(inputs), attributes, before=first, name=f"{step.name}_{op}")
            return made.outputs[0]

        def held(array: np.ndarray, name: str) -> ir.Value:
            return edit.add_const(graph, array, f"{step.name}_{name}")

        first = graph.node(0)
        rows = node("Reshape", step, held(np.array([-1, 1]), "column"))
        rows = rows if step.dtype == wide else node("Cast", rows, to=wide)
        begun = node("GreaterOrEqual", rows, held(bounds[:-1], "starts"))
        count = node("ReduceSum", node("Cast", begun, to=ir.DataType.INT64), held(np.array([1]), "axis"), keepdims=1)
        after = node("GreaterOrEqual", rows, held(bounds[:1], "first"))
        known = node("And", after, node("LessOrEqual", rows, held(bounds[-1:], "last")))
        last = node("Sub", count, held(np.array([1]), "one"))
        place = node("Where", known, last, held(np.array([len(self.steps)]), "none"))
        shape = np.zeros(0, np.int64) if self.one else np.array([-1])
        found = node("Reshape", place, held(shape, "index_shape"))
        found.shape, found.type = ir.Shape([] if self.one else [step.shape[0]]), ir.TensorType(ir.DataType.INT64)  # type: ignore[index]
        return found

    def gather(self, table: ir.Value, name: str) -> ir.Value:
        """What a table [ranges] holds for the step."""
        maker = self.index.producer()
        assert maker is not None and table.dtype is not None
        made = edit.new_node("Gather", [table, self.index], {"axis": 0}, after=maker, name=name).outputs[0]
        made.shape, made.type = self.index.shape, ir.TensorType(table.dtype)
        return made
