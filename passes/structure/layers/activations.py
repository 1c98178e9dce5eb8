"""The activation that a value is of another, found by what its operators compute, however they spell it out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit

_POINTS = np.linspace(-4, 4, 17)
_LARGEST = 12  # nodes of an activation that is spelled out, at most
_CLOSE = 2e-5  # gelu and its tanh form differ by up to 5e-4


@dataclass(frozen=True)
class Activated:
    """What an activation reads, its name as ``graphpress::ACM`` has it, and its nodes."""

    source: ir.Value
    kind: str
    nodes: tuple[ir.Node, ...]


def activated(value: ir.Value | None) -> Activated | None:
    """The activation that gives ``value``: relu, relu-squared, gelu, gelu-tanh, quick-gelu, silu, tanh, sigmoid,
    or hard-swish.

    By values: the one function of x that a tree of pointwise operators computes is compared on a few points.
    """
    node = value.producer() if value is not None else None
    tree = _tree(node) if node is not None and _pointwise(node) else None
    if tree is None or value is None:
        return None
    x, nodes = tree
    got = _evaluate(value, x)
    if got is None:
        return None
    wanted = _functions(_POINTS)
    kind = next((k for k, w in wanted.items() if np.allclose(got, w, rtol=0, atol=_CLOSE)), None)
    return None if kind is None else Activated(x, kind, nodes)


def _functions(x: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "relu": np.maximum(x, 0),
        "relu-squared": np.maximum(x, 0) ** 2,
        "gelu": _gelu(x),
        "gelu-tanh": _gelu_tanh(x),
        "quick-gelu": x * _sigmoid(1.702 * x),
        "silu": x * _sigmoid(x),
        "tanh": np.tanh(x),
        "sigmoid": _sigmoid(x),
        "hard-swish": _hard_swish(x),
    }


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x])


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / 2 * (1 + _erf(x / math.sqrt(2))))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


_PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Erf": _erf, "Tanh": np.tanh, "Sigmoid": _sigmoid, "Relu": lambda v: np.maximum(v, 0), "Exp": np.exp,
    "Neg": np.negative, "Reciprocal": lambda v: 1 / v, "Identity": np.copy, "Dropout": np.copy,
    "HardSwish": _hard_swish,
}  # fmt: skip
_PAIRS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Mul": np.multiply, "Div": np.divide, "Add": np.add, "Sub": np.subtract, "Pow": np.power, "Max": np.maximum,
}  # fmt: skip
_ONE = (*_PLAIN, "Gelu", "Swish", "HardSigmoid")
_TWO = (*_PAIRS, "Clip")
_CONTRIB = ("Gelu", "FastGelu", "QuickGelu")


def _pointwise(node: ir.Node) -> bool:
    if node.domain == "com.microsoft":
        return node.op_type in _CONTRIB and len(node.inputs) == 1
    if node.op_type == "Dropout" and len(node.inputs) > 2 and _number(node.inputs[2]) != 0:
        return False  # it may be in training mode
    return node.domain == "" and node.op_type in (*_ONE, *_TWO) and not _adds_bias(node)


def _adds_bias(node: ir.Node) -> bool:
    """Whether a node adds a constant vector: not of the formula, which adds 1 to erf and x to 0.044 x^3."""
    return node.op_type == "Add" and any(edit.is_constant(v) and _number(v) is None for v in node.inputs)


def _tree(last: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """(the only value that is read from outside, the pointwise nodes between) or None."""
    nodes, pending, outside = [last], [last], set()
    while pending:
        for value in pending.pop().inputs:
            maker = value.producer() if value is not None else None
            if value is None or _number(value) is not None:
                continue
            if maker is None or not _pointwise(maker):
                outside.add(value)
            elif maker not in nodes:
                nodes.append(maker)
                pending.append(maker)
        if len(nodes) > _LARGEST:
            return None
    return (outside.pop(), tuple(nodes)) if len(outside) == 1 else None


def _number(value: ir.Value | None) -> float | None:
    tensor = edit.constant_tensor(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _evaluate(value: ir.Value | None, x: ir.Value) -> np.ndarray | None:
    """What the tree gives at the points; None where it is not of the simple kind."""
    if value is x:
        return _POINTS
    if (number := _number(value)) is not None:
        return np.full_like(_POINTS, number)
    node = value.producer() if value is not None else None
    if node is None:
        return None
    given = [None if v is None else _evaluate(v, x) for v in node.inputs]
    if any(g is None and v is not None for g, v in zip(given, node.inputs, strict=True)) or not given:
        return None
    with np.errstate(all="ignore"):
        return _apply(node, given)


def _apply(node: ir.Node, given: list[np.ndarray | None]) -> np.ndarray | None:
    first = given[0]
    if first is None:
        return None
    if node.op_type == "Clip":
        bounds = zip(("min", "max"), _two(given), strict=True)
        low, high = (edit.attribute(node, name) if b is None else b for name, b in bounds)
        return np.clip(first, -np.inf if low is None else low, np.inf if high is None else high)
    if node.op_type in _ONE or node.domain:
        return _of_one(node, first)
    second = _two(given)[0]
    return None if second is None or len(given) > 2 else np.asarray(_PAIRS[node.op_type](first, second))


def _two(given: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """The second and third operand."""
    return [*given[1:3], None, None][:2]


def _of_one(node: ir.Node, a: np.ndarray) -> np.ndarray:
    match node.op_type:
        case "Gelu":
            return _gelu_tanh(a) if edit.attribute(node, "approximate", "none") == "tanh" else _gelu(a)
        case "FastGelu":
            return _gelu_tanh(a)
        case "HardSigmoid":
            return np.clip(edit.attribute(node, "alpha", 0.2) * a + edit.attribute(node, "beta", 0.5), 0, 1)
        case "QuickGelu":
            return a * _sigmoid(edit.attribute(node, "alpha", 1.702) * a)
        case "Swish":
            return a * _sigmoid(edit.attribute(node, "alpha", 1.0) * a)
    return np.asarray(_PLAIN[node.op_type](a))
