"""A graph as a ``torch.fx.GraphModule``: the original call signature, the original parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import fx

from graphpress.backends.fx import choice, gradients, shelf, signature
from graphpress.backends.fx.builder import Builder
from graphpress.backends.fx.options import Kernels, Options
from graphpress.backends.fx.values import identifier
from graphpress.errors import BadRequest, nearest
from graphpress.graph import edit, half_storage
from graphpress.graph.inline import inline
from graphpress.keys import PARAMETERS, UNUSED
from graphpress.ops import packing
from graphpress.ops.base import DOMAIN
from graphpress.target import Target

_LEARNED = {"exact": "", "straight-through": "", "learnable": "steps", "scales": "scales"}


def build(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    *,
    quantizers: str = "exact",
    target: Target | None = None,
    device: str = "cpu",
) -> fx.GraphModule:
    """The graph as a module in evaluation mode: differentiable, on any device, with static or dynamic shapes.

    Parameters and buffers have the names of the graph's initializers; those of a traced module are its own, a linear
    layer's weight is (out, in). They share the graph's memory until a gradient, ``load_state_dict`` or a move to
    another device gives them their own; call ``shelf.disown`` before writing to one by hand. The module and its
    source take each other's ``state_dict``, but for what was computed from several parameters, such as a weight with a
    BatchNorm in it (``trace(..., fold_batchnorm=False)`` keeps those apart): a state dict has it as ``<name>_folded``,
    so that neither takes it for its own.

    ``train()`` lets BatchNormalization use and update its statistics and Dropout drop, where the graph has them.

    Args:
        model: Any valid model; it is not changed.
        outputs: Values of the main graph to give, as a tuple, instead of the graph's outputs.
        quantizers: ``exact``: Q gives integers, which no gradient passes. ``straight-through``: Q gives the same codes
            as floats and passes gradients on; scales and zero points stay. ``learnable``: these learn too (LSQ,
            arXiv:1902.08153; LSQ+, arXiv:2004.09576), scales in a form whose steps are relative: the parameter
            ``<name>_log`` is the logarithm of what ``<name>``, a buffer, is multiplied by: 1e-4 is 0.01 % of any scale;
            zero points are floats, where they may move (``shelf.movable``). ``scales``: scales and zero points
            are parameters as they stand, for an engine that gives each a rate of its own.
        target: Choose this target's kernels for quantized products (with ``exact`` only); none are chosen without it.
        device: Where the module will run: what a kernel is chosen for. The module is built on the CPU.

    Raises:
        Unsupported: An operator without a function; names the operator, its version, the node and the nearest one.
        BadRequest: ``outputs`` names a value that the main graph lacks, or ``quantizers`` is none of the four.
    """
    if quantizers not in _LEARNED:
        what, where = "is no way to treat quantizers", f"quantizers={quantizers!r}"
        raise BadRequest(what, where=where, fix=nearest(quantizers, _LEARNED))
    model = _prepared(packing.unpacked(half_storage.taken_back(model)))
    kernels = choice.kernels_for(model, target, device) if target is not None and quantizers == "exact" else Kernels()
    wanted = [_value(model, name) for name in outputs] if outputs is not None else None
    options = Options(edit.opset(model), quantizers != "exact", _LEARNED[quantizers], kernels, wanted or ())
    builder = Builder(options)
    call = signature.read(model)
    call.bind_inputs(builder, model)
    builder.fill(model.graph)
    if wanted is not None:
        builder.graph.output(tuple(builder.output(v) for v in wanted))
    else:
        call.bind_outputs(builder, model)
    name = identifier(model.graph.name or "GraphModule")
    module = builder.shelf.module(builder.graph, name, UNUSED.get(model))
    module.register_load_state_dict_pre_hook(_before_load)
    # A module with kernels is no student: nobody goes backward through it.
    hooks = signature.Check(call, model), gradients.Guard(model) if target is None else None
    _watch(module, *hooks)
    module._register_deepcopy_hook(lambda copy: _watch(copy, *hooks))
    module.meta |= {choice.REFUSED: dict(kernels.refused), choice.DENSE: dict(kernels.dense)}
    module.meta[PARAMETERS] = builder.shelf.kept
    return module.eval()


def _watch(module: fx.GraphModule, check: signature.Check, guard: gradients.Guard | None) -> None:
    """Hooks around each call, which a copy of a GraphModule does not take with it."""
    module.register_forward_pre_hook(check, with_kwargs=True)
    if guard is not None:
        module.register_forward_hook(guard)


def _before_load(module: torch.nn.Module, *_: object) -> None:
    shelf.disown(module)


def _prepared(model: ir.Model) -> ir.Model:
    """The model in topological order, with the types of all values, without calls of its own functions but for
    operators of the dialect.
    """
    inlined = all(f.domain == DOMAIN for f in model.functions.values())
    if inlined and _sorted(model.graph) and _typed(model.graph):
        return model
    model = model.clone()
    inline(model, lambda f: f.domain != DOMAIN)
    model.graph.sort()
    if not _typed(model.graph):  # an unsigned type that torch holds in a wider one has functions of its own
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    return model


def _typed(graph: ir.Graph) -> bool:
    """Whether the types of all values are known, in subgraphs too."""
    return all(v.type is not None for node in graph.all_nodes() for v in node.outputs if v.name)


def _sorted(graph: ir.Graph) -> bool:
    """Whether each node of the main graph stands behind those that it reads, in its subgraphs too."""
    place = {node: i for i, node in enumerate(graph)}
    return all(
        place[maker] < i
        for node, i in place.items()
        for reader in (node, *(inner for body in edit.subgraphs(node) for inner in body.all_nodes()))
        for value in reader.inputs
        if value is not None and (maker := value.producer()) in place
    )


def _value(model: ir.Model, name: str) -> ir.Value:
    graph = model.graph
    known = {v.name: v for v in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))}
    if name not in known:
        what = "the main graph has no such value"
        raise BadRequest(what, where=f"output {name!r}", fix=nearest(name, [n for n in known if n]))
    return known[name]
