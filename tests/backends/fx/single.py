"""Graphs of one operator for tests of its function: in torch, in ONNX Runtime, in ONNX's own reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from torch import fx

from graphpress.backends import fx as backend
from graphpress.backends import reference


def model(
    op: str, *inputs: np.ndarray | None, opset: int = 21, outputs: int = 1, constants: Sequence[int] = (),
    shapes: Mapping[int, Sequence[int | str]] | None = None, domain: str = "", **attributes: Any,
) -> ir.Model:  # fmt: skip
    """One node. None is an input left out; slots in ``constants`` are initializers, ``shapes`` opens some shapes."""
    given, stored, values = [], [], []
    for i, x in enumerate(inputs):
        value = None
        if x is not None:
            tensor = ir.tensor(x, name=f"x{i}")
            shape = ir.Shape((shapes or {}).get(i, x.shape))
            value = ir.Value(name=f"x{i}", shape=shape, type=ir.TensorType(tensor.dtype))
            if i in constants:
                value.const_value = tensor
            (stored if i in constants else given).append(value)
        values.append(value)
    results = [ir.Value(name=f"y{i}") for i in range(outputs)]
    node = ir.Node(domain, op, values, ir.convenience.convert_attributes(attributes), outputs=results, name=op)
    opsets = {"": opset, **({domain: 1} if domain else {})}
    graph = ir.Graph(given, results, nodes=[node], initializers=stored, opset_imports=opsets, name="single")
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def module(op: str, *inputs: np.ndarray | None, **options: Any) -> fx.GraphModule:
    """The node in torch, a module of the inputs that are no constants."""
    return backend.build(model(op, *inputs, **options))


def in_torch(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    """What the node gives in torch: one array, or as many as asked for."""
    return _run(backend.execute(model(op, *inputs, **options)), inputs, options)


def in_ort(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    return _run(reference.execute(model(op, *inputs, **options)), inputs, options)


def in_onnx(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    evaluator = ReferenceEvaluator(ir.to_proto(model(op, *inputs, **options)))
    return _run(lambda feeds: dict(enumerate(evaluator.run(None, feeds))), inputs, options)


def _run(runner: Any, inputs: Sequence[np.ndarray | None], options: dict[str, Any]) -> Any:
    constants = options.get("constants", ())
    found = list(runner({f"x{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}).values())
    return found[0] if options.get("outputs", 1) == 1 else found


def same(given: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal types and shapes, and equal numbers within the stated tolerance."""
    assert given.dtype == expected.dtype
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, rtol=rtol, atol=atol)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    """What ``torch.autograd.gradcheck`` wants."""
    return torch.from_numpy(normal(*shape, seed=seed, dtype=np.float64)).requires_grad_()
