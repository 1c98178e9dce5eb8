"""Functions that a model brings, put in the place of their calls."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphpress.errors import Unsupported
from graphpress.graph import edit, names, opsets

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def takes_graphs(model: ir.Model) -> list[ir.Function]:
    """The functions to which a call gives a graph as an attribute: what calls them cannot be replaced."""
    calls = [(n, model.functions[n.op_identifier()]) for n in edit.nodes(model) if n.op_identifier() in model.functions]
    found = {f.identifier(): f for n, f in calls if any(a.type in _GRAPHS for a in n.attributes.values())}
    return list(found.values())


def inline(model: ir.Model, which: Callable[[ir.Function], bool]) -> int:
    """Replace the calls of the functions that ``which`` names by the nodes of their bodies; returns how many functions.

    Node and value names of a body stay unless another node or value of the model has them.

    Raises:
        Unsupported: A call gives a graph as an attribute, or a body is of another opset and means another thing there
            (see ``opsets.unify``); nothing is changed.
    """
    chosen = [f for f in model.functions.values() if which(f)]
    if not chosen:
        return 0
    wrong = [f.name for f in takes_graphs(model) if f in chosen]
    if wrong:
        raise Unsupported("it takes a graph as an attribute", where=f"function {wrong[0]!r}", fix="Write its body out.")
    for function in chosen:
        _check_domains(model, function)
    opsets.unify(model)
    InlinePass(criteria=which)(model)
    names.unique_names(model)
    edit.index(model)
    return len(chosen)


def _check_domains(model: ir.Model, function: ir.Function) -> None:
    for domain, version in function.opset_imports.items():
        known = model.opset_imports.get(domain, version)
        if domain and known != version:
            raise Unsupported(
                f"it imports version {version} of {domain!r}, and the model version {known}",
                where=f"function {function.name!r}",
                fix="Write the model with one version of each domain.",
            )
