"""Keys of metadata_props, the only channel between passes that survives a file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import onnx_ir as ir

from graphpress.errors import BadRequest, InvalidModel
from graphpress.types import Role, Scheme, Site, Stage

T = TypeVar("T")
Noted: TypeAlias = ir.Node | ir.Value | ir.Model


class Key(str, Generic[T]):
    """A key whose entries have a type: written and read here, so that nobody else knows their text."""

    _write: Callable[[T], str]
    _read: Callable[[str], T]

    def __new__(cls, name: str, write: Callable[[T], str], read: Callable[[str], T]) -> Key[T]:
        made = super().__new__(cls, name)
        made._write, made._read = write, read
        return made

    def get(self, thing: Noted) -> T | None:
        """What is noted on a thing; None where nothing is.

        Raises:
            InvalidModel: The text there says nothing of the kind: somebody else wrote it.
        """
        text = thing.metadata_props.get(str(self))
        if text is None:
            return None
        try:
            return self._read(text)
        except ValueError as e:  # that of JSON too
            where = getattr(thing, "name", None) or "model"
            fix = "Remove the entry from metadata_props."
            raise InvalidModel(f"its {self!s} cannot be read: {text[:80]!r}", where=where, fix=fix) from e

    def set(self, thing: Noted, value: T) -> None:
        """Note it."""
        thing.metadata_props[str(self)] = self._write(value)


def _json(name: str) -> Key[Any]:
    return Key(name, json.dumps, json.loads)


BY = "graphpress.by"  # node: the pass that made it
ORIGIN = "graphpress.from"  # node: name of the node it was made for
SOURCE = _json("graphpress.source")  # of an initializer, as JSON: the torch parameter it was computed from, and how
SCALED = "scale"  # in SOURCE, of a parameter into which a pass has folded something
ATEN = "graphpress.aten"  # of a node that is all of one torch operator, and means a little less or more: its name
UNUSED = _json("graphpress.unused")  # of a model, as JSON: torch state that its graph does not read
ROLE = "graphpress.role"  # likewise: parameter, buffer, or temporary, which a state dict does not have
OPTION = "graphpress.option"  # of an input with a default: what callers may choose by it, such as a budget
SCOPE = "graphpress.scope"  # node: module path in the source program
STAGE: Key[Stage] = Key("graphpress.stage", str, Stage)
SIGNATURE = _json("graphpress.signature")  # model that was traced: its call; see frontends/torch_signature.py
TARGET = "graphpress.target"  # model: the target it was lowered for
SCHEME = "graphpress.scheme"  # node: the schemes applied to it; see note_schemes and schemes
QUANTIZER = "graphpress.quantizer"  # node that encodes or decodes: its number format, where that is not affine
STORED = "graphpress.stored"  # node: how its int8 weights are stored instead, for signed products saturate there
ADAPTED = _json("graphpress.adapter")  # node or initializer, as JSON: the adapter that made it, its site, its part
TURNS = "graphpress.turns"  # node: the product that all of a stream passes where it changes its basis, or changes back
CORRECTED = "graphpress.corrected"  # node: ``bias``, where that makes up for rounded weights
# node: the root mean square of what a layer read before ``smooth`` divided its channels
LOUDNESS: Key[float] = Key("graphpress.loudness", repr, float)
SPARSITY = "graphpress.sparsity"  # node: the pattern n:m that its weight keeps, such as 2:4
# model: the half type that hardly a weight lacked; initializer: the one that it had. As long as they are wide.
HALF: Key[ir.DataType] = Key("graphpress.half", lambda t: t.name, lambda text: ir.DataType[text])
NARROW = "graphpress.narrow"  # initializer: a weight that is stored in half precision, for all to read behind a Cast
# node: {"mean": [...], "std": [...]}, by output channel what training saw of the output of a folded operator.
STATISTICS = _json("graphpress.batchnorm")
PARAMETERS = "graphpress.parameters"  # in the meta of a torch module: initializer -> (its path, how it is kept there)


def steps(value: ir.Value) -> list[str]:
    """How a value came from torch's parameter, as SOURCE has it; SCALED is one of them."""
    source = SOURCE.get(value) or {}
    return [step for step in source.get("transform", "").split("+") if step]


def note_scaled(value: ir.Value) -> None:
    """Note in SOURCE that something was folded into a parameter: it is no longer the one of its name."""
    done = [step for step in steps(value) if step != SCALED]
    source = {"parameter": value.name, **(SOURCE.get(value) or {})}
    SOURCE.set(value, source | {"transform": "+".join([*done, SCALED])})


_scheme = functools.lru_cache(1 << 10)(Scheme.parse)  # a graph has few, and has them at each node
_EDGE = re.compile(r"(?P<role>weight|activation|output)\[(?P<slot>\d+)\] (?P<scheme>.+)")


def note_schemes(node: ir.Node, sites: Mapping[Site, Scheme]) -> None:
    """Let a node say how what it reads and gives is stored: ``weight[1] int8 per_channel:0 sym minmax; ...``."""
    node.metadata_props[SCHEME] = "; ".join(f"{s.role}[{s.slot}] {v}" for s, v in sorted(sites.items()))


def schemes(node: ir.Node) -> dict[Site, Scheme]:
    """What ``note_schemes`` has noted; nothing where nothing is.

    Raises:
        BadRequest: What is noted there is no schemes.
    """
    return read_schemes(node.metadata_props.get(SCHEME, ""), node.name or "")


def read_schemes(text: str, node: str = "") -> dict[Site, Scheme]:
    """Likewise from the text, as rows of reports have it.

    Raises:
        BadRequest: It is no schemes.
    """
    found = {}
    for part in filter(None, text.split("; ")):
        edge = _EDGE.fullmatch(part)
        if edge is None:
            raise BadRequest(f"{part!r} is no scheme", where=f"node {node!r}")
        found[Site(node, int(edge["slot"]), Role(edge["role"]))] = _scheme(edge["scheme"])
    return found
