"""Let a Conv pad its input itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.graph import edit
from graphpress.passes.clean.constants import absent, ints, number
from graphpress.types import Numerics


@dataclass(frozen=True)
class FusePad(Pass):
    """Move a Pad with zeros of the spatial axes into the ``pads`` of the Conv that reads it."""

    name: ClassVar[str] = "fuse-pad"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in edit.nodes(model):
            pad = node.inputs[0].producer() if node.op_type == "Conv" and node.inputs[0] is not None else None
            if node.domain != "" or pad is None or pad.op_type != "Pad" or pad.domain != "":
                continue
            why_not = _fuse(pad, node)
            if why_not is None:
                report.changed += 1
            else:
                report.skip(pad, why_not)


def _fuse(pad: ir.Node, conv: ir.Node) -> str | None:
    if any(a.is_ref() for n in (pad, conv) for a in n.attributes.values()):
        return "it stands in a function"
    if pad.attributes.get_string("mode", "constant") != "constant" or _fill(pad) != 0:
        return "it does not pad with zeros"
    amounts = ints(pad, 1, "pads")
    if amounts is None or not absent(pad, 3):
        return "its amounts are not constant, or of some axes only"
    rank = len(amounts) // 2
    begin, end = amounts[:rank], amounts[rank:]
    if any(begin[:2] + end[:2]) or min(amounts) < 0:
        return "it pads batch or channels, or crops"
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"the pads of {conv.name!r} depend on its input"
    own = conv.attributes.get_ints("pads", [0] * (2 * rank - 4))
    conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, begin[2:] + end[2:], strict=True)])
    conv.attributes.pop("auto_pad", None)
    assert pad.inputs[0] is not None
    edit.set_input(conv, 0, pad.inputs[0])
    edit.remove_unused(pad.outputs)
    return None


def _fill(pad: ir.Node) -> float | None:
    """The padding value; None if it is computed."""
    return 0.0 if absent(pad, 2) and "value" not in pad.attributes else number(pad, 2, "value")
