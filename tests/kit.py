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


def structure(model: ir.Model) -> list[str]:
    """Nodes with canonical value names, attributes and constants: equal for graphs equal up to renaming."""
    result: list[str] = []
    names: dict[int, str] = {}
    for graph in edit.graphs(model):
        for v in graph.inputs:
            names[id(v)] = f"in:{v.name}"
        for node in graph:
            ins = [_operand(v, names) for v in node.inputs]
            attrs = sorted(f"{k}={_attribute(a)}" for k, a in node.attributes.items())
            for i, o in enumerate(node.outputs):
                names[id(o)] = f"{node.op_type}#{len(result)}.{i}"
            result.append(f"{node.domain}::{node.op_type}({', '.join(ins)}) {attrs}")
        result.append("return " + ", ".join(f"{o.name}={_operand(o, names)}" for o in graph.outputs))
    return result


def _operand(value: ir.Value | None, names: dict[int, str]) -> str:
    if value is None:
        return "_"
    array = edit.constant(value)
    if array is not None:
        return f"{array.dtype}{list(array.shape)}{np.asarray(array, dtype=object).ravel()[:16].tolist()}"
    return names.get(id(value), value.name or "?")


def _attribute(attr: ir.Attr) -> str:
    if attr.type == ir.AttributeType.TENSOR:
        return str(attr.as_tensor().numpy().tolist())
    if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "<graph>"
    return str(attr.value)


def assert_same_structure(a: ir.Model, b: ir.Model) -> None:
    """Equal nodes in equal order, equal wiring, attributes and constants; value names do not count."""
    left, right = structure(a), structure(b)
    assert left == right, "\n".join(["", *left, "--- expected", *right])


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
