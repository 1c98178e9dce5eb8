"""What the tests of rotation share: models in double precision, and the largest deviation between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from tests import kit

Run = Callable[[ir.Model, Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def clean(model: ir.Model, *without: str) -> ir.Model:
    """Tidied and fused, as every recipe begins, without some of the passes."""
    return Pipeline([p for p in Recipe.load("clean").passes if p.name not in without]).run(model)[0]


def double(model: ir.Model) -> ir.Model:
    """The model with every float32 tensor in float64."""
    wide = model.clone()
    swap = {ir.DataType.FLOAT: ir.DataType.DOUBLE}
    for graph in edit.graphs(wide):
        constants = list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []
        for value in constants:
            if value.dtype in swap:
                edit.overwrite(value, value.const_value.numpy().astype(np.float64))
        for value in [*graph.inputs, *(o for n in graph for o in n.outputs)]:
            if value.dtype in swap:
                value.type = ir.TensorType(swap[value.dtype])
        for node in graph:
            for name in ("stash_type", "to"):
                if node.attributes.get_int(name, 0) == ir.DataType.FLOAT:
                    node.attributes.add(ir.AttrInt64(name, int(ir.DataType.DOUBLE)))
    return wide


def feeds(model: ir.Model, batch: int = 2, length: int = 12, top: int = 250) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, integers below ``top``."""
    rng, made = np.random.default_rng(0), {}
    for v in model.graph.inputs:
        shape = [d if isinstance(d, int) else (length if i else batch) for i, d in enumerate(v.shape or ())]
        floats = v.dtype is not None and v.dtype.numpy().kind == "f"
        values = rng.normal(size=shape) if floats else rng.integers(0, top, size=shape)
        made[v.name or ""] = values.astype(v.dtype.numpy() if v.dtype else np.float32)
    return made


def context(model: ir.Model, given: Mapping[str, np.ndarray]) -> Context:
    """An oracle and the given inputs as data."""
    return Context(data=CalibrationData.from_arrays(given).bind(model), oracle=reference.execute)


def deviation(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The largest difference as a share of the RMS of its output, without a floor."""
    assert list(a) == list(b)
    pairs = [(a[n].astype(np.float64), b[n].astype(np.float64)) for n in a]
    return max(float(np.max(np.abs(x - y)) / np.sqrt(np.mean(x**2))) for x, y in pairs)


def torch_run(model: ir.Model, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by the torch backend, which has all of ONNX in double precision."""
    import torch

    from graphpress.backends.fx import build

    with torch.no_grad():
        out = build(model)(*(torch.from_numpy(given[v.name or ""]) for v in model.graph.inputs))
    outs = out if isinstance(out, tuple | list) else [out]
    return {v.name or "": o.numpy() for v, o in zip(model.graph.outputs, outs, strict=True)}


def gap(model: ir.Model, passes: str, run: Run = kit.run) -> tuple[float, ir.Model]:
    """(largest deviation of the outputs after some passes, the rewritten model)."""
    after = Pipeline(parse_passes(passes)).run(model)[0]
    given = feeds(model)
    return deviation(run(model, given), run(after, given)), after


def weighted(body: str, weights: Mapping[str, Sequence[int]], inputs: str, opset: int = 23) -> ir.Model:
    """A model from ONNX text with shapes inferred; seeded weights are initializers, ``y`` is the output."""
    sizes = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    model = kit.parse(f"{head} g ({inputs}, {sizes}) => (float y) {{ {body} }}")
    model.graph.outputs[0].shape = None
    rng = np.random.default_rng(0)
    for value in [v for v in model.graph.inputs if v.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = ir.Tensor(rng.normal(size=weights[value.name or ""]).astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return kit.apply(model, *parse_passes("lift-constants,infer-shapes"))[0]
