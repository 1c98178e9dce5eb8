"""Keys of metadata_props, the only channel between passes that survives a file."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.types import Role, Scheme, Site

BY = "graphpress.by"  # node: the pass that made it
ORIGIN = "graphpress.from"  # node: name of the node it was made for
SOURCE = "graphpress.source"  # of an initializer, as JSON: the torch parameter it was computed from, and how
SCALED = "scale"  # in SOURCE, of a parameter into which a pass has folded something
ATEN = "graphpress.aten"  # of a node that is all of one torch operator, and means a little less or more: its name
UNUSED = "graphpress.unused"  # of a model, as JSON: torch state that its graph does not read
ROLE = "graphpress.role"  # likewise: parameter, buffer, or temporary, which a state dict does not have
OPTION = "graphpress.option"  # of an input with a default: what callers may choose by it, such as a budget
SCOPE = "graphpress.scope"  # node: module path in the source program
STAGE = "graphpress.stage"  # model: its Stage
TARGET = "graphpress.target"  # model: the target it was lowered for
SCHEME = "graphpress.scheme"  # node: the schemes applied to it; see note_schemes and schemes
QUANTIZER = "graphpress.quantizer"  # node that encodes or decodes: its number format, where that is not affine
UNSIGNED = "graphpress.unsigned"  # node: its int8 weights are stored as uint8, for signed products saturate there
ADAPTED = "graphpress.adapter"  # node or initializer, as JSON: the adapter that made it, its site, its part
SPARSITY = "graphpress.sparsity"  # node: the pattern n:m that its weight keeps, such as 2:4
PARAMETERS = "graphpress.parameters"  # in the meta of a torch module: initializer -> (its path, how it is kept there)

_EDGE = re.compile(r"(?P<role>weight|activation|output)\[(?P<slot>\d+)\] (?P<scheme>.+)")


def note_schemes(node: ir.Node, sites: Mapping[Site, Scheme]) -> None:
    """Let a node say how what it reads and gives is stored: ``weight[1] int8 per_channel:0 sym minmax; ...``."""
    node.metadata_props[SCHEME] = "; ".join(f"{s.role}[{s.slot}] {v}" for s, v in sorted(sites.items()))


def schemes(node: ir.Node) -> dict[Site, Scheme]:
    """What ``note_schemes`` has noted; nothing where nothing is.

    Raises:
        BadRequest: What is noted there is no schemes.
    """
    found = {}
    for text in filter(None, node.metadata_props.get(SCHEME, "").split("; ")):
        edge = _EDGE.fullmatch(text)
        if edge is None:
            raise BadRequest(f"{text!r} is no scheme", where=f"node {node.name!r}")
        found[Site(node.name or "", int(edge["slot"]), Role(edge["role"]))] = Scheme.parse(edge["scheme"])
    return found
