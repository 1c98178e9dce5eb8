"""Store pruned weights as values and 2-bit places."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import Unsupported
from graphpress.graph import edit, opsets
from graphpress.graph.quantized import unquantized
from graphpress.keys import SPARSITY
from graphpress.ops import packing
from graphpress.ops.sparse_codes import GROUP
from graphpress.types import Numerics

_OPSET = 18  # of the bodies


@dataclass(frozen=True)
class PackSparse(Pass):
    """Pack the weights of layers that note an n:4 pattern, float or 8-bit: n (b + 2) / 4 bits an element.

    For size: ONNX Runtime unpacks once, at load, and multiplies dense. The last pass of a recipe, after the weights
    were made integers; targets unpack before they choose kernels and pack what they save.
    """

    name = "pack-sparse"
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        layers = [n for n in edit.nodes(model) if SPARSITY in n.metadata_props and not n.domain]
        if not layers:
            report.skip("model", "no layer notes an n:m pattern")
            return
        try:
            opsets.require(model, _OPSET)
        except Unsupported as e:
            report.skip("model", f"packed weights need opset {_OPSET}: {e}")
            return
        before = after = 0
        for node in layers:
            found = packing.pattern_of(node)
            value = _stored(node)
            if found is None or value is None or value.const_value is None:
                report.skip(node, "its weight is no constant")
                continue
            n, m, axis = found
            dense = value.const_value.nbytes
            if m != GROUP:
                report.skip(node, f"{n}:{m} has no 2-bit places")
            elif size := packing.pack(model, value, axis, n):
                report.changed += 1
                before, after = before + dense, after + size
            else:
                report.skip(node, f"packing {dense} bytes of {value.dtype} saves nothing, or the type has no form")
        report.metrics |= {"bytes dense": float(before), "bytes packed": float(after)}


def _stored(node: ir.Node) -> ir.Value | None:
    """The constant that holds the weight, behind a DequantizeLinear where there is one."""
    value = unquantized(node.inputs[1])
    return value if value is not None and value.is_initializer() else None
