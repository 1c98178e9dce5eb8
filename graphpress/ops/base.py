"""What a dialect operator is, and how a model comes to know it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphpress.errors import VerifyError
from graphpress.graph import edit, opsets

DOMAIN = "graphpress"
VERSION = 1


@dataclass(frozen=True)
class Op:
    """One operator of the dialect ``graphpress::``.

    Attributes:
        name: Its op type.
        function: Builds its meaning: a model-local ONNX function in standard operators.
        opset: The lowest default-domain opset that the body needs.
        verify: Raises VerifyError on a node that is not a legal use.
        kernel: Gives the torch function of the same meaning; imports torch when it is called.
        role: ``encode`` makes codes of numbers, ``decode`` numbers of codes, as QuantizeLinear and DequantizeLinear do:
            input 0 is what is converted, input 1 its scale, attributes ``axis`` and ``block_size`` say how the scale
            lies along it, and what follows are tables of the format. "": neither.
        compute: Of an op with a role: what a node makes of arrays of any library that has the array API; takes the
            inputs, and the attributes by name.
        straight: Likewise: gives the torch function that training uses. Codes are floats; rounding passes gradients.
        levels: Of a ``decode``: the integer whose multiple of the scale each code is, from the lowest code on, as int8;
            None where a node has no such.
        macs: Multiply-adds of a node in a run whose first input has this shape; None where it has no sums of products.
    """

    name: str
    function: Callable[[], ir.Function]
    opset: int
    verify: Callable[[ir.Node], None]
    kernel: Callable[[], Callable[..., Any]]
    role: Literal["", "encode", "decode"] = ""
    compute: Callable[..., Any] | None = None
    straight: Callable[[], Callable[..., Any]] | None = None
    levels: Callable[[ir.Node], np.ndarray | None] | None = None
    macs: Callable[[ir.Node, Sequence[int]], int] | None = None


def attach(model: ir.Model, op: Op) -> None:
    """Let ``model`` carry the operator's body and import its domain, so that any runtime can run it.

    The model must import at least ``op.opset`` of the default domain.
    """
    function = op.function()
    model.opset_imports.setdefault(DOMAIN, VERSION)
    if function.identifier() not in model.functions:
        opsets.raise_function(function, edit.opset(model))
        model.functions[function.identifier()] = function


def detach_unused(model: ir.Model) -> None:
    """Let ``model`` forget the bodies of operators of the dialect that nothing calls any more."""
    used = {n.op_identifier() for n in edit.nodes(model)}
    for identifier in [i for i in model.functions if i[0] == DOMAIN and i not in used]:
        del model.functions[identifier]


def expect(node: ir.Node, holds: bool, rule: str) -> None:
    """Raise unless the rule holds.

    Raises:
        VerifyError: Names the node and the rule.
    """
    if not holds:
        raise VerifyError(rule, where=f"node {node.name!r} ({node.domain}::{node.op_type})")
