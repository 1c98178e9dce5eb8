"""The module path of every node: as the exporter noted it, as its name spells it, or as its neighbours have it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import ORIGIN, SCOPE

Path = tuple[str, ...]  # modules, the outermost first
_SCOPES = "pkg.torch.onnx.name_scopes"
_DOT = re.compile(r"\.(?!\d+(?:\.|$))")  # layers.0.mlp -> layers.0, mlp
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"


def paths(model: ir.Model, earlier: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Node name -> path, of the main graph and the bodies in it; () where nothing tells.

    Args:
        model: Its nodes have names.
        earlier: The paths of the model that it was made from: nodes keep their names or say what they were made for.
    """
    earlier, found = earlier or {}, {}
    nodes = [n for graph in edit.scopes(model.graph) for n in graph]
    for node in nodes:
        own = _own(node) or earlier.get(node.name or "") or earlier.get(node.metadata_props.get(ORIGIN, ""))
        if own:
            found[node.name or ""] = own
    for node in nodes:
        origin = node.metadata_props.get(ORIGIN, "")
        if node.name not in found and origin in found:
            found[node.name or ""] = found[origin]
    for node in reversed(nodes):
        _take(node, [u for o in node.outputs for u, _ in o.uses()], found)
    for node in nodes:
        _take(node, [p for v in node.inputs if v is not None and (p := v.producer()) is not None], found)
    return {n.name or "": found.get(n.name or "", ()) for n in nodes}


def _take(node: ir.Node, near: Iterable[ir.Node], found: dict[str, Path]) -> None:
    """Give a node without a path what its neighbours have in common."""
    known = [found[n.name or ""] for n in near if n.name in found]
    if node.name not in found and known and (shared := _shared(known)):
        found[node.name or ""] = shared


def _shared(paths: Sequence[Path]) -> Path:
    """The outer modules that all have in common."""
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in levels)


def _own(node: ir.Node) -> Path:
    notes = node.metadata_props
    if SCOPE in notes:
        return tuple(filter(None, _DOT.split(notes[SCOPE])))
    if _SCOPES in notes:
        return _nested(_listed(notes[_SCOPES])[:-1])
    if "namespace" in notes:  # `: model.CodeLM/layers.0: model.Block/...`; the last is torch's name for the node
        return _nested([part.partition(":")[0] for part in notes["namespace"].split("/")][:-1])
    return _nested([part for part in (node.name or "").split("/") if part][:-1])


def _listed(text: str) -> list[str]:
    """A Python list of texts; nothing where it is no such thing."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [str(part) for part in found] if isinstance(found, list | tuple) else []


def _nested(scopes: Iterable[str]) -> Path:
    """Each without what the one around it says: layer1, layer1.0, layer1.0.bn1 -> layer1, layer1.0, bn1."""
    path: list[str] = []
    around = ""
    for scope in scopes:
        if not scope or scope == _NOWHERE:
            continue
        inner = scope.removeprefix(f"{around}.") if around else scope
        path += [scope] if inner[:1].isdigit() else filter(None, _DOT.split(inner))
        around = scope
    return tuple(path)
