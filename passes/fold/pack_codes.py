"""Store codes of few values without idle bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphpress import keys
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.movement import rearranges
from graphpress.graph.quantized import decodes
from graphpress.ops import dense_packing
from graphpress.types import Numerics, Role, Storage


@dataclass(frozen=True)
class PackCodes(Pass):
    """Pack the codes of weights that have fewer values than the type that they stand in.

    In a file 3-bit weights then take 3 bits instead of 4, ternary ones 1.6, binary ones 1. For size: runtimes unpack
    once, at load, to what their kernels read, so nothing runs slower for it; targets unpack before they choose kernels
    and pack what is left. Where that saves less than 512 bytes a tensor stays as it is.
    """

    name = "pack-codes"
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        before = after = 0
        for value in dict.fromkeys(_codes(model)):
            tensor = edit.constant_tensor(value)
            wide = tensor.nbytes if tensor is not None else 0
            if size := dense_packing.pack(model, value):
                report.changed += 1
                before, after = before + wide, after + size
        if report.changed:
            report.metrics |= {"bytes of codes": float(before), "bytes packed": float(after)}


def _codes(model: ir.Model) -> Iterator[ir.Value]:
    """Constants of codes, of weights whose noted scheme packs them denser than their type."""
    for node in list(edit.nodes(model)):
        try:
            noted = keys.schemes(node)
        except BadRequest:  # written by somebody else
            continue
        for site, scheme in noted.items():
            if site.role is Role.WEIGHT and Storage.of(scheme.dtype).dense and site.slot < len(node.inputs):
                value = _held(node.inputs[site.slot])
                if value is not None and value.dtype == scheme.ir_dtype:
                    yield value


def _held(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind decoding and movement."""
    while value is not None and (node := value.producer()) is not None:
        if not decodes(node) and not rearranges(node):
            return None
        value = node.inputs[0]
    return value if value is not None and value.is_initializer() else None
