"""Operators that draw random numbers."""

from __future__ import annotations

import onnx_ir as ir

from graphpress.graph import edit

_DRAWING = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def draws(model: ir.Model) -> bool:
    """Whether a model draws random numbers, so that two runs of it differ."""
    return any(n.op_type in _DRAWING and not n.domain for n in edit.nodes(model))
