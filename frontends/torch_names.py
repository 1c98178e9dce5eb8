"""The names a traced graph gets back: outputs, dimensions and nodes, from what torch noted while tracing."""

from __future__ import annotations

import ast
import re
from typing import Any

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.keys import ATEN, SCOPE, STATISTICS

TRACE = "pkg.torch.onnx.stack_trace"
_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = "pkg.torch.onnx.fx_node"
_TARGET = re.compile(r"target=torch\.ops\.aten\.([a-z]+)")
_WHOLE = {"Gather": "embedding", "TopK": "topk", "Resize": "upsample"}  # nodes that are all of one operator
_RULE = "pkg.onnxscript.rewriter.rule_name"
_SYMBOL = re.compile(r"\bs\d+\b")


def unique(name: str, taken: set[str]) -> str:
    """``name``, or with the first number behind it that makes it new; it is taken from now on."""
    base, i = name, 1
    while name in taken:
        name, i = f"{base}_{i}", i + 1
    taken.add(name)
    return name


def name_outputs(model: ir.Model, program: Any) -> None:
    """Call outputs after their place in what the module returns: ``output``, ``output_1``, ``logits``, ``state_h``.

    Each must be a value of its own.
    """
    taken = {v.name or "" for v in model.graph.inputs}
    wanted = [unique(name, taken) for name in _output_names(program)]
    values = {v.name: v for node in model.graph.all_nodes() for v in node.outputs} | dict(model.graph.initializers)
    taken |= {name or "" for name in values}
    for output, name in zip(model.graph.outputs, wanted, strict=True):
        if (other := values.get(name)) is not None and other is not output:
            other.name = unique(f"{name}_value", taken)
        output.name = name
        values[name] = output


def _output_names(program: Any) -> list[str]:
    """One name for each tensor that the module returns, in order."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.out_spec
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    tensors = [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    return [
        "_".join([*([] if path and _key(path[0])[0].isalpha() else ["output"]), *map(_key, path)])
        for (path, _), out in zip(leaves, tensors, strict=True) if type(out.arg).__name__ != "ConstantArgument"
    ]  # fmt: skip


def _key(entry: Any) -> str:
    """One step of a path into a nest of containers."""
    found = [str(getattr(entry, a)) for a in ("key", "idx", "name") if hasattr(entry, a)]
    return found[0] if found else str(entry)


def name_dimensions(model: ir.Model) -> None:
    """Call symbols that torch made up after the input and the axis where they first appear: ``x_0``."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            for symbol in _SYMBOL.findall(_text(dim)):
                names.setdefault(symbol, f"{value.name}_{axis}")
    if names:
        for value in _values(model):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _text(dim: int | ir.SymbolicDim) -> str:
    return "" if isinstance(dim, int) else dim.value or ""


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return _SYMBOL.sub(lambda m: names.get(m[0], m[0]), dim.value)


def _values(model: ir.Model) -> list[ir.Value]:
    found: list[ir.Value] = []
    for graph in edit.graphs(model):
        found += list(graph.inputs)
        found += [v for node in graph for v in node.outputs]
    return found


def name_nodes(model: ir.Model) -> None:
    """Call nodes ``<module path>/<operator>`` and note the path; of torch's own notes only the stack trace is kept."""
    taken: set[str] = set()
    for graph in edit.graphs(model):
        graph.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()
        for node in graph:
            scope, trace = _scope(node), node.metadata_props.get(TRACE)
            aten = _TARGET.search(node.metadata_props.get(_FX_NODE, ""))
            known = node.metadata_props.get(STATISTICS)
            node.metadata_props.clear()
            if known is not None:
                node.metadata_props[STATISTICS] = known
            if aten is not None and aten[1] == _WHOLE.get(node.op_type):
                node.metadata_props[ATEN] = aten[1]
            if trace:
                node.metadata_props[TRACE] = trace
            if scope:
                node.metadata_props[SCOPE] = scope
            node.name = unique(f"{scope}/{node.op_type}" if scope else node.op_type, taken)
            for output in node.outputs:
                output.metadata_props.clear()


def _scope(node: ir.Node) -> str:
    """Path of the module that a node comes from; "" is the module traced."""
    props = node.metadata_props
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if "BatchNorm" in props.get(_RULE, "") and weight is not None and "." in (weight.name or ""):
        return (weight.name or "").rpartition(".")[0]  # a rule notes the norm's place, but this is the layer
    scopes = ast.literal_eval(props.get(_SCOPES, "[]"))[:-1]  # the last is torch's name for the node
    path = scopes[-1] if scopes else ""
    return "" if path.startswith("_empty_nn_module_stack") else re.sub(r"^L\['self'\]\.?", "", path)
