"""The names a traced graph gets back: outputs, dimensions and nodes, from what torch noted while tracing."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphpress.frontends import torch_results, torch_shapes
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
    found = torch_results.paths(program.call_spec.out_spec)
    returned = [s.arg for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    tensors = [p for p, arg in zip(found, returned, strict=True) if type(arg).__name__ != "ConstantArgument"]
    return [
        name or "_".join([*([] if path and str(path[0])[:1].isalpha() else ["output"]), *map(str, path)])
        for path, name in zip(tensors, torch_results.cache_names(tensors, "present"), strict=True)
    ]


def name_chosen_dimensions(model: ir.Model, program: Any, axes: Sequence[Any]) -> None:
    """Call symbols as the user called their dimensions. The exporter does, unless some argument is no tensor.

    Args:
        model: As the exporter wrote it.
        program: The ExportedProgram that it was made from.
        axes: Of each leaf of the arguments, its axes and their dimensions (see ``torch_shapes.of_leaves``).
    """
    names: dict[str, str] = {}
    for value, dims in torch_shapes.of_inputs(model, program, axes):
        for axis, name in dims.items():
            symbol = value.shape[axis] if value.shape is not None else 0
            if not isinstance(symbol, int) and _SYMBOL.fullmatch(_text(symbol)):
                names.setdefault(_text(symbol), name)
    _rename_symbols(model, names)


def name_dimensions(model: ir.Model) -> None:
    """Call symbols that torch made up after the input and the axis where they first appear: ``x_0``."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            for symbol in _SYMBOL.findall(_text(dim)):
                names.setdefault(symbol, f"{value.name}_{axis}")
    _rename_symbols(model, names)


def _rename_symbols(model: ir.Model, names: dict[str, str]) -> None:
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
