"""Graphs of one operator for tests of its function: in torch, in ONNX Runtime, in ONNX's own reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import fx

from graphpress.backends import fx as backend
from graphpress.backends import reference


def proto(
    op: str, *inputs: np.ndarray | None, opset: int = 21, outputs: int = 1, constants: Sequence[int] = (),
    domain: str = "", **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """One node. None is an input that is left out; the slots in ``constants`` are initializers."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    kinds = {i: helper.np_dtype_to_tensor_dtype(x.dtype) for i, x in enumerate(inputs) if x is not None}
    given = [helper.make_tensor_value_info(names[i], k, inputs[i].shape) for i, k in kinds.items() if i not in constants]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name=op, domain=domain, **attributes)
    graph = helper.make_graph([node], "single", given, [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)])
    graph.initializer.extend(numpy_helper.from_array(inputs[i], names[i]) for i in constants)
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def module(op: str, *inputs: np.ndarray | None, **options: Any) -> fx.GraphModule:
    """The node in torch, a module of the inputs that are no constants."""
    return backend.build(ir.from_proto(proto(op, *inputs, **options)))


def in_torch(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    """What the node gives in torch: one array, or as many as asked for."""
    return _run(backend.execute(ir.from_proto(proto(op, *inputs, **options))), inputs, options)


def in_ort(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    return _run(reference.execute(ir.from_proto(proto(op, *inputs, **options))), inputs, options)


def in_onnx(op: str, *inputs: np.ndarray | None, **options: Any) -> Any:
    evaluator = ReferenceEvaluator(proto(op, *inputs, **options))
    return _run(lambda feeds: {str(i): y for i, y in enumerate(evaluator.run(None, feeds))}, inputs, options)


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
