"""How the traced module is called and what it returns, noted on the graph for a backend that gives a module back."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from graphpress.errors import Unsupported
from graphpress.frontends import torch_results
from graphpress.frontends.torch_names import unique
from graphpress.keys import SIGNATURE

Tree: TypeAlias = Any
_PLAIN = (bool, int, float, str, type(None))


def note(model: ir.Model, program: Any, module: Any, constants: Mapping[int, Any]) -> None:
    """Note arguments and result as ``metadata_props["graphpress.signature"]``.

    It is JSON: ``{"inputs": [[argument, tree, may be left out], ...], "output": tree}``. A tree is the name of a graph
    input or output, ``{"int": name}`` where the module has an int and the graph a tensor of rank 0, ``{"value": x}`` or
    ``{"repr": text}`` for a constant, ``{"tuple": [...]}``, ``{"list": [...]}``, ``{"dict": [[key, tree], ...]}``,
    ``{"named": [type, fields, [...]]}`` for a named tuple that is returned, or ``{"leaves": [...]}`` for an argument of
    another type that torch.utils._pytree knows; a result of such a type is a tuple.

    Args:
        model: With the names of inputs and outputs that it is to keep.
        program: The ExportedProgram that it was made from.
        module: What was traced.
        constants: What the module returns besides tensors, by place (see ``plain_outputs``).

    Raises:
        Unsupported: A dict among arguments or results has a key that JSON cannot hold.
    """
    signature, spec = program.graph_signature, program.call_spec
    names = iter([v.name or "" for v in model.graph.inputs])
    inputs = [s.arg for s in signature.input_specs if s.kind.name == "USER_INPUT"]
    args, kwargs = (t[_kind(t)] for t in _tree(spec.in_spec, iter([_leaf(a, names) for a in inputs]), True)["tuple"])
    names = iter([v.name or "" for v in model.graph.outputs])
    outputs = [s.arg for s in signature.output_specs if s.kind.name == "USER_OUTPUT"]
    found = [_constant(constants[i]) if i in constants else _leaf(a, names) for i, a in enumerate(outputs)]
    noted = {
        "inputs": _arguments(program, module, args, dict(kwargs)),
        "output": _tree(spec.out_spec, iter(found), False),
    }
    SIGNATURE.set(model, noted)


@contextlib.contextmanager
def plain_outputs(torch: Any, module: Any) -> Iterator[dict[int, Any]]:
    """Numbers, strings and the like that the module returns, by place; the exporter, which fails on them, sees None."""
    constants: dict[int, Any] = {}
    if isinstance(module, torch.export.ExportedProgram):
        (node,) = (n for n in module.graph.nodes if n.op == "output")
        before = node.args
        node.args = (_without(before[0], constants),)
        try:
            yield constants
        finally:
            node.args = before
    else:
        from torch.utils import _pytree as pytree

        def forget(_module: Any, _args: Any, result: Any) -> Any:
            leaves, spec = pytree.tree_flatten(torch_results.plain(result, module))
            return pytree.tree_unflatten(_without(leaves, constants), spec)

        handle = module.register_forward_hook(forget)
        try:
            yield constants
        finally:
            handle.remove()


def _without(leaves: Sequence[Any], constants: dict[int, Any]) -> tuple[Any, ...]:
    """The leaves with None for constants, which are noted."""
    constants.update({i: leaf for i, leaf in enumerate(leaves) if leaf is not None and isinstance(leaf, _PLAIN)})
    return tuple(None if i in constants else leaf for i, leaf in enumerate(leaves))


def _leaf(argument: Any, names: Iterator[str]) -> Tree:
    """What torch's signature says of one leaf."""
    kind = type(argument).__name__
    if kind == "ConstantArgument":
        return _constant(argument.value)
    return next(names) if kind == "TensorArgument" else {"int": next(names)}


def _constant(value: Any) -> Tree:
    return {"value": value} if isinstance(value, _PLAIN) else {"repr": repr(value)}


def _kind(tree: Tree) -> str:
    return str(next(iter(tree)))


def _tree(spec: Any, found: Iterator[Tree], argument: bool) -> Tree:
    """A TreeSpec with what was found in the places of its leaves; ``argument`` or result."""
    if spec.type is None:
        return next(found)
    parts = [_tree(child, found, argument) for child in spec.children()]
    if not isinstance(spec.type, type):  # what pytree calls a named tuple is a function
        names = [spec.context.__name__, list(spec.context._fields)]
        return {"tuple": parts} if argument else {"named": [*names, parts]}
    if issubclass(spec.type, Mapping):
        keys = spec.context if isinstance(spec.context, list) and len(spec.context) == len(parts) else spec.context[1]
        return {"dict": [[_key(k), part] for k, part in zip(keys, parts, strict=True)]}
    if issubclass(spec.type, tuple | list):
        return {"list" if issubclass(spec.type, list) else "tuple": parts}
    return {"leaves": [leaf for part in parts for leaf in _leaves(part)]} if argument else {"tuple": parts}


def _leaves(tree: Tree) -> Iterator[Tree]:
    kind = "" if isinstance(tree, str) else _kind(tree)
    if kind == "dict":
        for _, part in tree["dict"]:
            yield from _leaves(part)
    elif kind in ("tuple", "list", "leaves"):
        for part in tree[kind]:
            yield from _leaves(part)
    else:
        yield tree


def _key(key: Any) -> Any:
    if not isinstance(key, _PLAIN):
        what, fix = f"a dict has the key {key!r} of type {type(key).__name__}", "Use strings or numbers as keys."
        raise Unsupported(what, where="arguments and results", fix=fix)
    return key


def _arguments(program: Any, module: Any, args: list[Tree], kwargs: dict[str, Tree]) -> list[list[Any]]:
    """[name, tree, whether it may be left out] of each argument, in the order of the module's ``forward``."""
    try:
        forward = inspect.signature(module.forward)
        bound = forward.bind(*args, **kwargs).arguments
    except (AttributeError, TypeError, ValueError):  # an ExportedProgram has none, a wrapped one may hide it
        names = program.module_call_graph[0].signature.forward_arg_names or [f"arg_{i}" for i in range(len(args))]
        return [[n, t, False] for n, t in (*zip(names, args, strict=False), *kwargs.items())]
    taken = set(forward.parameters)
    found: list[list[Any]] = []
    for name, parameter in forward.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            found += [[unique(f"{name}_{i}", taken), tree, False] for i, tree in enumerate(bound.get(name, ()))]
        elif parameter.kind is parameter.VAR_KEYWORD:
            found += [[key, tree, False] for key, tree in bound.get(name, {}).items()]
        elif name not in bound:
            found.append([name, _constant(parameter.default), True])
        else:
            tree, default = bound[name], parameter.default
            found.append([name, tree, default is not parameter.empty and tree == _constant(default)])
    return found
