"""How the module is called: the arguments and the result of the traced module, or a graph's inputs and outputs."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.builder import Builder, identifier
from graphpress.errors import BadRequest, nearest

KEY = "graphpress.signature"  # of a traced model, as JSON: {"inputs": [[argument, tree], ...], "output": tree}
# A tree is the name of a graph input or output, {"value": constant}, {"tuple": [tree, ...]}, {"list": [...]} or
# {"dict": [[key, tree], ...]}.
Tree: TypeAlias = Any


@dataclass(frozen=True)
class Signature:
    """Arguments with the graph inputs in them, and the result with the graph outputs in it."""

    inputs: tuple[tuple[str, Tree], ...]
    output: Tree

    def bind_inputs(self, builder: Builder, model: ir.Model) -> None:
        """A placeholder for each argument; graph inputs are what lies in it."""
        values = {v.name: v for v in model.graph.inputs}
        for name, tree in self.inputs:
            made = builder.placeholder(name)
            for leaf, path in leaves(tree):
                ref = made
                for key in path:
                    ref = builder.graph.call_function(operator.getitem, (ref, key))
                value = values[leaf]
                carrier = dtypes.carrier(value.dtype.name) if value.dtype else None
                if carrier is not None and is_tensor(value):
                    ref = builder.graph.call_method("to", (ref, carrier))
                builder.bind(value, ref)

    def bind_outputs(self, builder: Builder, model: ir.Model) -> None:
        values = {v.name: v for v in model.graph.outputs}
        builder.graph.output(_map(self.output, lambda name: builder.output(values[name])))

    def filled(self, tree: Tree, tensors: Mapping[str, torch.Tensor]) -> Any:
        """An argument with tensors in the places of graph inputs."""
        return _map(tree, tensors.__getitem__)

    def named(self, result: Any) -> dict[str, torch.Tensor]:
        """The graph outputs in what the module gave."""
        found = {}
        for name, path in leaves(self.output):
            leaf = result
            for key in path:
                leaf = leaf[key]
            found[name] = leaf
        return found


def _map(tree: Tree, leaf: Callable[[str], Any]) -> Any:
    """What a tree describes, with ``leaf`` of each name in the name's place."""
    if isinstance(tree, str):
        return leaf(tree)
    kind, content = next(iter(tree.items()))
    if kind == "dict":
        return {key: _map(part, leaf) for key, part in content}
    if kind == "value":
        return content
    parts = [_map(part, leaf) for part in content]
    return parts if kind == "list" else tuple(parts)


def leaves(tree: Tree, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Graph inputs or outputs in a tree, with the keys that lead to them."""
    if isinstance(tree, str):
        yield tree, path
    elif "dict" in tree:
        for key, part in tree["dict"]:
            yield from leaves(part, (*path, key))
    else:
        for i, part in enumerate(tree.get("tuple") or tree.get("list") or ()):
            yield from leaves(part, (*path, i))


def is_tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor, as far as known; else it is a sequence or an optional value."""
    return isinstance(value.type, ir.TensorType | None)


def read(model: ir.Model) -> Signature:
    """The signature of a model: as the torch frontend noted it, or one argument for each input, in order."""
    inputs = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    outputs = [v.name or "" for v in model.graph.outputs]
    noted = json.loads(model.metadata_props.get(KEY, "{}"))
    if noted and _covers(noted, inputs, outputs):
        return Signature(tuple((name, tree) for name, tree in noted["inputs"]), noted["output"])
    result = outputs[0] if len(outputs) == 1 else {"tuple": outputs}
    return Signature(tuple((identifier(name), name) for name in inputs), result)


def _covers(noted: dict[str, Any], inputs: list[str], outputs: list[str]) -> bool:
    """Whether a note still fits the graph; somebody else may have changed its inputs since."""
    given = [leaf for _, tree in noted["inputs"] for leaf, _ in leaves(tree)]
    return sorted(given) == sorted(inputs) and {leaf for leaf, _ in leaves(noted["output"])} <= set(outputs)


@dataclass(frozen=True)
class Leaf:
    """What one graph input has to be: ``dtype`` None takes any; a float one any float, which ``module.to`` may want."""

    position: int
    path: tuple[Any, ...]
    name: str
    dtype: torch.dtype | None
    dims: tuple[int | None, ...] | None

    @classmethod
    def of(cls, position: int, path: tuple[Any, ...], value: ir.Value) -> Leaf:
        dims = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
        known = value.dtype is not None and not dtypes.carried(value.dtype.name)
        dtype = dtypes.torch_dtype(value.dtype.name) if known and value.dtype else None
        return cls(position, path, value.name or "", dtype, dims)

    def check(self, given: Sequence[Any]) -> None:
        leaf = given[self.position]
        for key in self.path:
            leaf = leaf[key]
        if not isinstance(leaf, torch.Tensor):
            raise BadRequest(f"is a {type(leaf).__name__}, not a tensor", where=f"input {self.name!r}")
        if self.dtype is not None and not _same_type(leaf.dtype, self.dtype):
            raise BadRequest(f"is {leaf.dtype}, the model wants {self.dtype}", where=f"input {self.name!r}")
        if self.dims is not None and not _fits(leaf.shape, self.dims):
            shown = ", ".join("?" if d is None else str(d) for d in self.dims)
            what = f"has shape {tuple(leaf.shape)}, the model wants ({shown})"
            raise BadRequest(what, where=f"input {self.name!r}")


class Check:
    """A hook before each call: arguments of the right names, types and fixed dimensions.

    Raises:
        BadRequest: Names the argument and what it should be.
    """

    def __init__(self, call: Signature, model: ir.Model) -> None:
        self.arguments = [name for name, _ in call.inputs]
        values = {v.name: v for v in model.graph.inputs}
        self.wanted = [
            Leaf.of(i, path, values[leaf])
            for i, (_, tree) in enumerate(call.inputs)
            for leaf, path in leaves(tree)
            if is_tensor(values[leaf])
        ]

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._by_position(args, kwargs)
        for leaf in self.wanted:
            leaf.check(given)

    def _by_position(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self.arguments):
            raise BadRequest(f"{len(args)} arguments given, the model takes {len(self.arguments)}", where="call")
        given = dict(zip(self.arguments, args, strict=False))
        for name in kwargs:
            if name not in self.arguments:
                raise BadRequest(
                    "the model has no such input", where=f"input {name!r}", fix=nearest(name, self.arguments)
                )
        given |= kwargs
        for name in self.arguments:
            if name not in given:
                fix = f"The model takes: {', '.join(self.arguments)}."
                raise BadRequest("the input is missing", where=f"input {name!r}", fix=fix)
        return [given[name] for name in self.arguments]


def _fits(shape: Sequence[int], dims: Sequence[int | None]) -> bool:
    return len(shape) == len(dims) and all(d is None or s == d for s, d in zip(shape, dims, strict=True))


def _same_type(given: torch.dtype, wanted: torch.dtype) -> bool:
    return given == wanted or (given.is_floating_point and wanted.is_floating_point)
