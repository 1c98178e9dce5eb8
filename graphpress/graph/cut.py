"""Parts of a model as models of their own: what lies between some values, and what a value still has to go through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphpress.errors import BadRequest, StaleSite, nearest
from graphpress.graph import edit
from graphpress.keys import HALF, STAGE


@dataclass(frozen=True)
class Boundary:
    """Where the rest of a graph behind some values begins and ends. All names are of the main graph.

    Attributes:
        inputs: The values themselves, then every other value that the rest reads without making it.
        outputs: Those outputs of the graph that depend on the values.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The nodes between ``inputs`` and ``outputs`` as a model; names, constants (shared, not copied) and opsets stay.

    Args:
        model: Not changed.
        inputs: Values of the main graph that the new model is given.
        outputs: Values of the main graph that it gives.

    Raises:
        StaleSite: There is no such value.
        BadRequest: An output depends on an input of the graph that is not among ``inputs``, or a type is not known.
    """
    known = _values(model)
    for name in (*inputs, *outputs):
        if name not in known:
            raise StaleSite("the main graph has no such value", where=f"value {name!r}", fix=nearest(name, known))
        if known[name].type is None:
            raise BadRequest("its type is not known", where=f"value {name!r}", fix="Run infer-shapes first.")
    try:
        graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    except ValueError as e:
        raise BadRequest(f"the inputs do not bound the part: {e}", where=f"outputs {', '.join(outputs)}") from e
    part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    part.metadata_props.update({k: v for k, v in model.metadata_props.items() if k in (STAGE, HALF)})
    return part.clone()


def boundary(model: ir.Model, values: Collection[str]) -> Boundary:
    """What has to be known besides ``values`` to compute the outputs of the graph that depend on them."""
    known = _values(model)
    changed = {known[name] for name in values}
    inputs: dict[str, None] = dict.fromkeys(values)
    for node in model.graph:
        reads = [v for v in edit.reads(node) if not edit.is_constant(v)]
        if any(v in changed for v in reads) and not any(o.name in values for o in node.outputs):
            changed.update(node.outputs)
            inputs.update(dict.fromkeys(v.name or "" for v in reads))
    makers = (v.producer() for v in changed)
    made = {o.name for maker in makers if maker is not None for o in maker.outputs} - set(values)
    outputs = tuple(o.name or "" for o in model.graph.outputs if o in changed)
    return Boundary(tuple(n for n in inputs if n not in made), outputs)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    graph = model.graph
    values = (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))
    return {v.name: v for v in values if v.name}
