"""Operators that onnx's own converter converts wrongly, or not at all: what stands for them at a newer opset.

Each rule gives the nodes of one old node; a rule that finds no equal form raises. Where the specification is silent
(nearest places of Resize 10, masks of Dropout) equal means: to what ONNX Runtime computes at the old opset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import Unsupported
from graphpress.graph import edit

# The version from which on ONNX Runtime has no kernel for an operator: a node that is older stays so.
WITHOUT_KERNEL = {
    "Bernoulli": 22, "GlobalLpPool": 22, "MaxRoiPool": 22, "Multinomial": 22, "RandomNormal": 22,
    "RandomNormalLike": 22, "RandomUniform": 22, "RandomUniformLike": 22, "RoiAlign": 22,
}  # fmt: skip


class Draft:
    """The nodes that shall stand for ``node``: a graph with its input and output names.

    Attributes:
        inputs: A copy of each of the node's inputs; None where one is left out.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        known: dict[str, ir.Value] = {}
        for v in node.inputs:
            if v is not None:
                known.setdefault(v.name or "", ir.Value(name=v.name, shape=v.shape, type=v.type))
        self.inputs = [None if v is None else known[v.name or ""] for v in node.inputs]
        self._graph = ir.Graph(list(known.values()), [], nodes=[], opset_imports={"": opset}, name="draft")
        self._made = 0

    def constant(self, array: np.ndarray, what: str) -> ir.Value:
        tensor = ir.tensor(array)
        value = ir.Value(
            name=f"{self.node.name}_{what}",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        result: int = -1,
    ) -> ir.Value:
        """One more node; ``result``: which output of the node it gives, if one."""
        self._made += 1
        name = self.node.outputs[result].name if result >= 0 else f"{self.node.name}_draft_{self._made}"
        value = ir.Value(name=name)
        made = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes or {}), outputs=[value])
        self._graph.append(made)
        if result >= 0:
            self._graph.outputs.append(value)
        return value

    def same(self, inputs: Sequence[ir.Value | None], **changed: Any) -> ir.Graph:
        """The node itself with other inputs and attributes (None: without that one)."""
        kept = {n: a.value for n, a in self.node.attributes.items() if n not in changed}
        self.op(self.node.op_type, inputs, kept | {n: v for n, v in changed.items() if v is not None}, 0)
        return self.graph

    def resize(self, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Graph:
        """A Resize that gives the node's output."""
        self.op("Resize", inputs, attributes, 0)
        return self.graph

    @property
    def graph(self) -> ir.Graph:
        return self._graph


Rule: TypeAlias = Callable[[Draft, int, int], ir.Graph]


def rule(node: ir.Node, old: int, new: int) -> Rule | None:
    """The rule by which a node of opset ``old`` is converted; None where the schemas and onnx's converter are right.

    Raises:
        Unsupported: ONNX Runtime would have no kernel for it.
    """
    lost = WITHOUT_KERNEL.get(node.op_type, new + 1)
    if old < lost <= new:
        raise _stays(node, f"ONNX Runtime has no kernel for it from opset {lost} on", old, new)
    return next((r for op, v, applies, r in _RULES if node.op_type == op and old < v <= new and applies(node)), None)


def _upsample(draft: Draft, old: int, new: int) -> ir.Graph:
    """Upsample takes its places in the source as Resize 10 does. It only grows."""
    if old >= 9:
        return _asymmetric(draft, draft.inputs[1], np.ones(1), new)
    scales = np.asarray(edit.attribute(draft.node, "scales"), np.float32)
    return _asymmetric(draft, draft.constant(scales, "scales"), scales, new)


def _resize_10(draft: Draft, old: int, new: int) -> ir.Graph:
    return _asymmetric(draft, draft.inputs[1], edit.constant(draft.node.inputs[1]), new)


def _asymmetric(draft: Draft, scales: ir.Value | None, factors: np.ndarray | None, new: int) -> ir.Graph:
    """Resize at the places ``i / scale``. The nearest is the one before where an axis grows, the next where it shrinks:
    two nodes where both happen, or may, as each axis is resized by itself."""
    x, mode = draft.inputs[0], edit.attribute(draft.node, "mode", "nearest")
    if new == 10:
        return draft.resize([x, scales], mode=mode)
    given = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    roi = draft.constant(np.zeros(0, np.float32), "roi") if new < 13 else None
    if mode != "nearest":
        return draft.resize([x, roi, scales], **given)
    grows, shrinks = (factors is None or bool(f(factors, 1).any()) for f in (np.greater, np.less))
    if grows and shrinks:
        one = draft.constant(np.ones(1, np.float32), "one")
        up, scales = (draft.op(op, [scales, one]) for op in ("Max", "Min"))
        x = draft.op("Resize", [x, roi, up], given | {"nearest_mode": "floor"})
    return draft.resize([x, roi, scales], **given, nearest_mode="ceil" if shrinks else "floor")


def _resize_11(draft: Draft, old: int, new: int) -> ir.Graph:
    """From opset 13 on scales and sizes are not both written, and one way to count places is gone."""
    node = draft.node
    x, roi, scales, sizes = [*draft.inputs, None][:4]
    changed: dict[str, Any] = {}
    if edit.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn":
        nearest = edit.attribute(node, "nearest_mode", "round_prefer_floor")
        if edit.attribute(node, "mode", "nearest") != "nearest" or nearest != "floor":
            raise _stays(node, "coordinates tf_half_pixel_for_nn went with opset 13", old, new)
        # floor((i + 0.5) / s) is what (i + 0.5) / s - 0.5 rounds to with halves upwards.
        changed = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    if edit.attribute(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        roi = None
    return draft.same([x, roi, scales] if sizes is None else [x, roi, None, sizes], **changed)


def _roi_align(draft: Draft, old: int, new: int) -> ir.Graph:
    """Opset 16 brought the shift by half a pixel, and made it the default."""
    return draft.same(draft.inputs, coordinate_transformation_mode="output_half_pixel")


def _hardmax(draft: Draft, old: int, new: int) -> ir.Graph:
    """Up to opset 12 it works on a matrix: the axes before ``axis`` and the rest."""
    x, axis, source = draft.inputs[0], edit.attribute(draft.node, "axis", 1), draft.node.inputs[0]
    shape = None if source is None else source.shape
    if shape is not None and axis in (-1, len(shape) - 1):
        return draft.same(draft.inputs, axis=-1)
    matrix = draft.op("Flatten", [x], {"axis": axis})
    hard = draft.op("Hardmax", [matrix], {"axis": -1})
    draft.op("Reshape", [hard, draft.op("Shape", [x])], None, 0)
    return draft.graph


def _dropout(draft: Draft, old: int, new: int) -> ir.Graph:
    """Outside training it drops nothing, whatever the ratio; the mask that came with it was all zeros."""
    x = draft.inputs[0]
    draft.op("Identity", [x], None, 0)
    kind = np.dtype(bool) if old >= 10 else (_dtype(draft.node.inputs[0]) or ir.DataType.FLOAT).numpy()
    draft.op("ConstantOfShape", [draft.op("Shape", [x])], {"value": ir.tensor(np.zeros(1, kind))}, 1)
    return draft.graph


def _group_norm(draft: Draft, old: int, new: int) -> ir.Graph:
    """Opset 21 wants a scale and a bias for each channel instead of each group: each is repeated."""
    x, groups = draft.node.inputs[0], edit.attribute(draft.node, "num_groups")
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    arrays = [a for v in draft.node.inputs[1:] if (a := edit.constant(v)) is not None]
    if isinstance(channels, int) and len(arrays) == 2:
        terms = [
            draft.constant(np.repeat(a, channels // groups), w) for a, w in zip(arrays, ("scale", "bias"), strict=True)
        ]
        return draft.same([draft.inputs[0], *terms])
    one, flat = draft.constant(np.array([1], np.int64), "one"), draft.constant(np.array([-1], np.int64), "flat")
    found = draft.op("Gather", [draft.op("Shape", [draft.inputs[0]]), one])
    times = draft.op(
        "Concat", [one, draft.op("Div", [found, draft.constant(np.array([groups], np.int64), "groups")])], {"axis": 0}
    )
    column = draft.constant(np.array([-1, 1], np.int64), "column")
    repeated = [draft.op("Tile", [draft.op("Reshape", [v, column]), times]) for v in draft.inputs[1:]]
    return draft.same([draft.inputs[0], *(draft.op("Reshape", [v, flat]) for v in repeated)])


def _scan(draft: Draft, old: int, new: int) -> ir.Graph:
    raise _stays(draft.node, "its batch axis went with opset 9", old, new)


def _attention(draft: Draft, old: int, new: int) -> ir.Graph:
    raise _stays(
        draft.node, "scores that are an output hold another value where they are masked from opset 24 on", old, new
    )


def _batch_norm(draft: Draft, old: int, new: int) -> ir.Graph:
    raise _stays(draft.node, "statistics for each place (spatial=0) went with opset 9", old, new)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _stays(node: ir.Node, why: str, old: int, new: int) -> Unsupported:
    return Unsupported(
        f"{node.op_type} cannot be converted from opset {old} to {new}: {why}",
        where=f"node {node.name!r}",
        fix=f"Export the model at opset {new} or higher.",
    )


def _always(node: ir.Node) -> bool:
    return True


def _has_mask(node: ir.Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


def _has_places(node: ir.Node) -> bool:
    return not edit.attribute(node, "spatial", 1)


def _shows_masked(node: ir.Node) -> bool:
    shown = len(node.outputs) > 3 and bool(node.outputs[3].name)
    return shown and edit.attribute(node, "qk_matmul_output_mode", 0) in (1, 2)


def _went(node: ir.Node) -> bool:
    """Whether a Resize of opset 11 or 12 says something that later ones do not take."""
    coordinates = edit.attribute(node, "coordinate_transformation_mode", "half_pixel")
    return coordinates == "tf_half_pixel_for_nn" or (len(node.inputs) > 3 and node.inputs[3] is not None)


# (operator, the version that changed it, which nodes, rule)
_RULES: tuple[tuple[str, int, Callable[[ir.Node], bool], Rule], ...] = (
    ("Upsample", 10, _always, _upsample),
    ("Resize", 11, _always, _resize_10),
    ("Resize", 13, _went, _resize_11),
    ("RoiAlign", 16, _always, _roi_align),
    ("Hardmax", 13, _always, _hardmax),
    ("Dropout", 12, _has_mask, _dropout),
    ("GroupNormalization", 21, _always, _group_norm),
    ("BatchNormalization", 9, _has_places, _batch_norm),
    ("Scan", 9, _always, _scan),
    ("Attention", 25, _shows_masked, _attention),
)
