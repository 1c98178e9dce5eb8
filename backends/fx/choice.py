"""Which kernel computes a quantized product: by the target's table, then by the kernel's own word."""

from __future__ import annotations

import onnx_ir as ir

from graphpress import edit
from graphpress.backends.fx import sites
from graphpress.backends.fx.builder import Kernels
from graphpress.target import Target

REFUSED = "graphpress.refused"  # key in the meta of a module: Kernels.refused


def choose(model: ir.Model, target: Target, device: str) -> Kernels:
    """The kernels for a model, and why a quantized product has none."""
    found = {node: site for node in edit.nodes(model) if (site := sites.find(node)) is not None}
    return Kernels({}, frozenset(), {n.name or "": "no kernels yet" for n in found})
