"""The oracle: ONNX Runtime with graph optimisation off, so that every node means what the standard says."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphpress.backends.ort.session import Session, SessionOptions, open_session


def execute(model: ir.Model, outputs: Sequence[str] | None = None) -> Session:
    """A runner that executes the nodes one by one, as written.

    Args:
        model: Any valid model.
        outputs: Values of the main graph to give instead of the graph's outputs.

    Raises:
        BadRequest: ``outputs`` names a value that the main graph lacks.
        Unsupported: ONNX Runtime refuses the model; the message names the node.
    """
    return open_session(model, outputs, SessionOptions(optimise=False))
