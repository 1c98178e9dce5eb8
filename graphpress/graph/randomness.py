"""Operators that draw random numbers: what two runs give of a graph that has one says nothing of what changed in it."""

from __future__ import annotations

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit

_DRAWING = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")

DIFFER = "it draws random numbers, and no two runs are alike"
WAY_OUT = "Make what is drawn an input of the model, or trace the model with its noise turned off"


def draws(model: ir.Model) -> bool:
    """Whether a model draws random numbers, so that two runs of it differ."""
    return any(n.op_type in _DRAWING and not n.domain for n in edit.nodes(model))


def check_comparable(model: ir.Model, where: str, fix: str = "") -> None:
    """Raise where two runs of a model differ.

    Args:
        model: Of which two forms are to be compared.
        where: Who compares them.
        fix: What else can be done, in words that follow on "or".

    Raises:
        BadRequest: The model draws random numbers.
    """
    if draws(model):
        what = "the outputs of two models cannot be compared: the graph draws random numbers, and no two runs are alike"
        raise BadRequest(what, where=where, fix=f"{WAY_OUT}{f', or {fix}' if fix else ''}.")
