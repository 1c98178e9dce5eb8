"""What tests share: graphs in ONNX text, structure comparison, numeric comparison in ORT without optimisation."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphpress.borrowed import Step
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit, text
from graphpress.keys import BY, ORIGIN
from graphpress.pipeline import Pipeline


def parse(source: str) -> ir.Model:
    """A model from ONNX text; a bare graph gets opset 21. Nodes without names are called Op_0, Op_1, ..."""
    if not source.lstrip().startswith("<"):
        source = '<ir_version: 10, opset_import: ["" : 21]>\n' + source
    model = ir.from_proto(onnx.parser.parse_model(source))
    for i, node in enumerate(edit.nodes(model)):
        node.name = node.name or f"{node.op_type}_{i}"
    return model


def structure(model: ir.Model, functions: bool = True) -> list[str]:
    """Nodes with canonical value names, attributes and constants: equal for graphs equal up to renaming."""
    return [str(line) for line in _lines(model, functions)]


def _lines(model: ir.Model, functions: bool = True) -> list[tuple[object, ...]]:
    """What is compared: words, and constants as arrays."""
    result: list[tuple[object, ...]] = []
    names: dict[int, str] = {}
    if not functions:
        model = model.clone()
        model.functions.clear()
    for graph in edit.graphs(model):
        for v in graph.inputs:
            names[id(v)] = f"in:{v.name}"
        for node in graph:
            ins = [_operand(v, names) for v in node.inputs]
            attrs = sorted(f"{k}={_attribute(a)}" for k, a in node.attributes.items())
            for i, o in enumerate(node.outputs):
                names[id(o)] = f"{node.op_type}#{len(result)}.{i}"
            result.append((f"{node.domain}::{node.op_type}", *ins, *attrs))
        result.append(("return", *(x for o in graph.outputs for x in (f"{o.name}=", _operand(o, names)))))
    return result


def _operand(value: ir.Value | None, names: dict[int, str]) -> object:
    if value is None:
        return "_"
    array = edit.constant(value)
    return names.get(id(value), value.name or "?") if array is None else Constant(array)


class Constant:
    """An array that stands in a graph."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __repr__(self) -> str:
        shown = np.asarray(self.array, dtype=object).ravel()[:16].tolist()
        return f"{self.array.dtype}{list(self.array.shape)}{shown}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.near(other, 0.0)

    def near(self, other: Constant, rtol: float) -> bool:
        """Same type and shape, and all elements within ``rtol`` of the largest."""
        a, b = self.array, other.array
        if a.dtype != b.dtype or a.shape != b.shape or rtol == np.inf:
            return a.dtype == b.dtype and a.shape == b.shape
        if not rtol or a.dtype.kind not in "fV":
            return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
        u, v = a.astype(np.float64), b.astype(np.float64)
        return bool(np.allclose(u, v, rtol=0, atol=rtol * np.abs(v).max(initial=0.0)))

    __hash__ = None  # type: ignore[assignment]


def _attribute(attr: ir.Attr) -> str:
    if attr.type == ir.AttributeType.TENSOR:
        return str(attr.as_tensor().numpy().tolist())
    if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "<graph>"
    return str(attr.value)


def assert_same_structure(a: ir.Model, b: ir.Model, rtol: float = 0.0, functions: bool = True) -> None:
    """Equal nodes in equal order, equal wiring, attributes and constants; value names do not count.

    Args:
        rtol: How far the elements of float constants may lie apart, as a share of the largest; inf: constants are held
            to type and shape only.
        functions: Whether the bodies of functions are compared as well.
    """
    left, right = _lines(a, functions), _lines(b, functions)
    same = len(left) == len(right) and all(
        len(x) == len(y) and all(_same_part(u, v, rtol) for u, v in zip(x, y, strict=True))
        for x, y in zip(left, right, strict=True)
    )
    assert same, "\n".join(["", *map(str, left), "--- expected", *map(str, right)])


def _same_part(a: object, b: object, rtol: float) -> bool:
    return a.near(b, rtol) if isinstance(a, Constant) and isinstance(b, Constant) else a == b


def random_feeds(model: ir.Model, seed: int = 0, dims: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, small integers; a symbolic dimension is 2 unless ``dims`` says otherwise."""
    rng, feeds = np.random.default_rng(seed), {}
    for v in model.graph.inputs:
        if v.is_initializer():
            continue
        shape = [d if isinstance(d, int) else (dims or {}).get(str(d.value), 2) for d in v.shape or ()]
        dtype = v.dtype.numpy() if v.dtype else np.dtype(np.float32)
        values = rng.normal(size=shape) if dtype.kind in "fV" else rng.integers(0, 2, size=shape)
        feeds[v.name or ""] = values.astype(dtype)
    return feeds


def run(model: ir.Model, feeds: Mapping[str, np.ndarray], optimize: bool = False) -> dict[str, np.ndarray]:
    """Outputs by ONNX Runtime, by default with graph optimisation off."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimize else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same_outputs(
    a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray] | None = None, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Equal output names, shapes and types, and equal numbers within the stated tolerance (default: bit for bit)."""
    feeds = feeds or random_feeds(a)
    left, right = run(a, feeds), run(b, feeds)
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_allclose(left[name], right[name], rtol=rtol, atol=atol, err_msg=name)


def apply(model: ir.Model, *passes: Step, ctx: Context | None = None) -> tuple[ir.Model, list[PassReport]]:
    """Run passes through the pipeline (verified after each)."""
    return Pipeline(list(passes)).run(model, ctx)


def ops(model: ir.Model) -> list[str]:
    """Operator types of all graphs in order."""
    return [n.op_type for n in edit.nodes(model)]


def made_by(model: ir.Model) -> Sequence[tuple[str, str]]:
    """(pass, origin) of each node that a pass made."""
    return [
        (n.metadata_props[BY], n.metadata_props.get(ORIGIN, "")) for n in edit.nodes(model) if BY in n.metadata_props
    ]


def show(model: ir.Model) -> str:
    """The listing, for a failing test's message."""
    return "\n".join(text.lines(model))


def calls(work: Callable[[], object]) -> int:
    """How many Python functions ``work`` calls: what it costs, whatever the machine is busy with."""
    seen = itertools.count()
    sys.setprofile(lambda _frame, event, _arg: next(seen) if event == "call" else None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return next(seen)
