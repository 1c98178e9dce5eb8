"""Which function an operator is: the tables ``OPS`` of the files in ``ops``, found by walking them."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from graphpress import catalog
from graphpress.backends.fx import dtypes
from graphpress.backends.fx.ops import quantization
from graphpress.errors import GraphpressError, Unsupported
from graphpress.graph.quantized import dialect as dialect_op
from graphpress.keys import ATEN
from graphpress.ops.base import DOMAIN

_STANDARD = ("", "ai.onnx", "ai.onnx.preview")  # no operator is in two of them
Function: TypeAlias = Callable[..., Any]


@functools.cache
def functions() -> dict[str, dict[int, Function]]:
    """By op type of the default domain: functions by the first opset they are for.

    Raises:
        GraphpressError: Two files have the same operator.
    """
    found: dict[str, dict[int, Function]] = {}
    package = importlib.import_module("graphpress.backends.fx.ops")
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for key, function in getattr(module, "OPS", {}).items():
            name, _, since = key.partition("@")
            versions = found.setdefault(name, {})
            if versions.setdefault(int(since or 0), function) is not function:
                raise GraphpressError(f"two functions for {key}", where=f"backends/fx/ops/{info.name}.py")
    return {name: dict(sorted(v.items(), reverse=True)) for name, v in found.items()}


@functools.cache
def dialect() -> dict[str, Function]:
    """The torch kernels of ``graphpress::`` operators."""
    return {name: op.kernel() for name, op in catalog.ops().items()}


def function_of(node: ir.Node, opset: int, *, straight_through: bool = False) -> Function:
    """The function of a node; ``straight_through`` prefers the form that passes gradients through rounding.

    Raises:
        Unsupported: There is none; the message names operator, version, node and the nearest one there is.
    """
    ours = node.domain in (*_STANDARD, DOMAIN)
    if straight_through and ours and node.op_type in quantization.STRAIGHT_THROUGH:
        return quantization.STRAIGHT_THROUGH[node.op_type]
    if straight_through and (op := dialect_op(node)) is not None and op.straight is not None:
        return op.straight()
    if node.domain in _STANDARD:
        kinds = (node.metadata_props.get(ATEN, ""), _kind(node))
        for name in (*(f"{node.op_type}:{k}" for k in kinds if k), node.op_type):
            for since, function in functions().get(name, {}).items():
                if since <= opset:
                    return function
    elif node.domain == DOMAIN and node.op_type in dialect():
        return dialect()[node.op_type]
    known = [*(n for n in functions() if ":" not in n), *dialect()]
    close = difflib.get_close_matches(node.op_type, known, n=1)
    fix = f"The nearest there is: {close[0]}." if close else "`graphpress conformance` lists what there is."
    what = f"unsupported: {node.domain or 'ai.onnx'}::{node.op_type} of version {_since(node, opset)}"
    raise Unsupported(what, where=f"node {node.name!r}", fix=fix)


def _kind(node: ir.Node) -> str:
    """What sets the types of the inputs apart: one is ``carried`` in a wider type, or the first is an ``integer``."""
    types = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
    if any(dtypes.carried(t.name) for t in types):
        return "carried"
    return "integer" if types and types[0].is_integer() else "plain"


def _since(node: ir.Node, opset: int) -> int:
    """The opset that defined the operator as the node uses it."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)
    except onnx.defs.SchemaError:
        return opset
