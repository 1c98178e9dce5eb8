"""How the module is called: the arguments and the result of the traced module, or a graph's inputs and outputs."""

from __future__ import annotations

import functools
import operator
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.builder import Builder
from graphpress.backends.fx.host_nodes import Item
from graphpress.backends.fx.values import identifier
from graphpress.errors import BadRequest, nearest
from graphpress.keys import SIGNATURE

Tree: TypeAlias = Any
Path: TypeAlias = tuple[Any, ...]
_LEAVES = object()  # a step of a path: all leaves of an argument whose type only pytree knows


class Written(str):
    """A constant that JSON cannot hold, as it is written."""


@dataclass(frozen=True)
class Signature:
    """Arguments with the graph inputs in them, and the result with the graph outputs in it.

    ``optional`` are arguments that may be left out: constants, the defaults of the module that was traced.
    """

    inputs: tuple[tuple[str, Tree], ...]
    output: Tree
    optional: frozenset[str] = frozenset()

    def bind_inputs(self, builder: Builder, model: ir.Model) -> None:
        """A placeholder for each argument; graph inputs are what lies in it."""
        values = {v.name: v for v in model.graph.inputs}
        default: tuple[Any, ...] = ()
        for name, tree in self.inputs:
            if name in self.optional:
                default = (None if _parted(tree)[0] == "repr" else filled(tree, {}),)
            elif default:
                default = (None,)  # behind one that may be left out Python wants one; the check knows better
            made = builder.placeholder(name, *default)
            for leaf in leaves(tree):
                leaf.bind(builder, values[leaf.name], made)

    def bind_outputs(self, builder: Builder, model: ir.Model) -> None:
        values = {v.name: v for v in model.graph.outputs}
        builder.graph.output(_map(self.output, lambda leaf: builder.wanted(values[leaf.name], leaf.kind)))

    def named(self, result: Any) -> dict[str, Any]:
        """The graph outputs in what the module gave."""
        found = [(leaf, look(result, leaf.path)) for leaf in leaves(self.output)]
        return {leaf.name: torch.tensor(x) if leaf.kind == "Int" else x for leaf, x in found}


@dataclass(frozen=True)
class Leaf:
    """One graph input or output in an argument or result: where, and whether it is an ``Int`` or a ``Tensor`` there."""

    name: str
    kind: str
    path: Path = ()

    def bind(self, builder: Builder, value: ir.Value, ref: Any) -> None:
        for step in self.path:
            function, args = (pytree.tree_leaves, (ref,)) if step is _LEAVES else (operator.getitem, (ref, step))
            ref = builder.graph.call_function(function, args)
        if self.kind == "Int":
            builder.items[id(value)] = Item(ref, True, value.dtype.name if value.dtype else None, 0)
            return
        carrier = dtypes.carrier(value.dtype.name) if value.dtype and is_tensor(value) else None
        builder.bind(value, ref if carrier is None else builder.graph.call_method("to", (ref, carrier)))


def look(whole: Any, path: Path) -> Any:
    """What lies at the end of a path."""
    for step in path:
        whole = pytree.tree_leaves(whole) if step is _LEAVES else whole[step]
    return whole


def filled(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    """An argument with tensors in the places of graph inputs."""
    return _map(tree, lambda leaf: tensors[leaf.name].item() if leaf.kind == "Int" else tensors[leaf.name])


def _map(tree: Tree, leaf: Callable[[Leaf], Any]) -> Any:
    """What a tree describes, with ``leaf`` of each name in the name's place."""
    kind, content = _parted(tree)
    if kind in ("Tensor", "Int"):
        return leaf(Leaf(content, kind))
    if kind in ("value", "repr"):
        return content if kind == "value" else Written(content)
    if kind == "dict":
        return {key: _map(part, leaf) for key, part in content}
    if kind == "named":
        return _named(content[0], tuple(content[1]))(*(_map(part, leaf) for part in content[2]))
    parts = [_map(part, leaf) for part in content]
    return parts if kind == "list" else tuple(parts)


@functools.cache
def _named(name: str, fields: tuple[str, ...]) -> Callable[..., Any]:
    """A named tuple like the one that the traced module returned."""
    return namedtuple(name, fields)


def _parted(tree: Tree) -> tuple[str, Any]:
    """(kind, content) of a tree."""
    if isinstance(tree, str):
        return "Tensor", tree
    kind, content = next(iter(tree.items()))
    return ("Int" if kind == "int" else kind), content


def _parts(tree: Tree) -> Iterator[tuple[Path, Tree]]:
    """The trees right under a tree, with the steps that lead to them."""
    kind, content = _parted(tree)
    if kind == "dict":
        yield from (((key,), part) for key, part in content)
    elif kind == "named":
        yield from (((i,), part) for i, part in enumerate(content[2]))
    elif kind in ("tuple", "list", "leaves"):
        yield from (((_LEAVES, i) if kind == "leaves" else (i,), part) for i, part in enumerate(content))


def leaves(tree: Tree, path: Path = ()) -> Iterator[Leaf]:
    """Graph inputs or outputs in a tree."""
    kind, content = _parted(tree)
    if kind in ("Tensor", "Int"):
        yield Leaf(content, kind, path)
    for steps, part in _parts(tree):
        yield from leaves(part, path + steps)


def is_tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor, as far as known; else it is a sequence or an optional value."""
    return isinstance(value.type, ir.TensorType | None)


def read(model: ir.Model) -> Signature:
    """The signature of a model: as the torch frontend noted it, or one argument for each input, in order."""
    inputs = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
    outputs = [v.name or "" for v in model.graph.outputs]
    noted = SIGNATURE.get(model)
    if noted and _covers(noted, inputs, outputs):
        optional = frozenset(name for name, _, may_go in noted["inputs"] if may_go)
        return Signature(tuple((name, tree) for name, tree, _ in noted["inputs"]), noted["output"], optional)
    result = outputs[0] if len(outputs) == 1 else {"tuple": outputs}
    return Signature(tuple((identifier(name), name) for name in inputs), result)


def _covers(noted: dict[str, Any], inputs: list[str], outputs: list[str]) -> bool:
    """Whether a note still fits the graph; somebody else may have changed its inputs since."""
    given = [leaf.name for _, tree, _ in noted["inputs"] for leaf in leaves(tree)]
    return sorted(given) == sorted(inputs) and {leaf.name for leaf in leaves(noted["output"])} <= set(outputs)


@dataclass(frozen=True)
class Wanted:
    """What one part of an argument has to be.

    Attributes:
        where: The graph input, or the argument.
        path: How it is reached: the argument's position first.
        tree: What it is.
        dtype: Of a tensor; None takes any, a float one any float, which ``module.to`` may want.
        dims: Its fixed dimensions; None where the rank is open.
    """

    where: str
    path: Path
    tree: Tree
    dtype: torch.dtype | None = None
    dims: tuple[int | None, ...] | None = None

    def check(self, given: Sequence[Any]) -> None:
        found = look(given, self.path)
        kind, content = _parted(self.tree)
        if kind == "Tensor":
            self._check_tensor(found)
        elif kind == "Int":
            if not isinstance(found, int | torch.SymInt):
                self._refuse(f"is a {type(found).__name__}, not an int")
        elif kind in ("value", "repr"):
            self._check_constant(found, kind, content)
        elif kind == "dict":
            if not isinstance(found, Mapping) or set(found) != {key for key, _ in content}:
                shown = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
                self._refuse(f"is {shown}, the model wants a dict with the keys {[key for key, _ in content]}")
        else:
            self._check_length(found, kind, len(content))

    def _check_tensor(self, found: Any) -> None:
        if not isinstance(found, torch.Tensor):
            self._refuse(f"is a {type(found).__name__}, not a tensor")
        if self.dtype is not None and not _same_type(found.dtype, self.dtype):
            self._refuse(f"is {found.dtype}, the model wants {self.dtype}")
        if self.dims is not None and not _fits(found.shape, self.dims):
            shown = ", ".join("?" if d is None else str(d) for d in self.dims)
            self._refuse(f"has shape {tuple(found.shape)}, the model wants ({shown})")

    def _check_constant(self, found: Any, kind: str, content: Any) -> None:
        if isinstance(found, Written):
            return
        if isinstance(found, torch.Tensor) or (repr(found) != content if kind == "repr" else found != content):
            shown = "a tensor" if isinstance(found, torch.Tensor) else repr(found)
            self._refuse(f"is {shown}, and was {content!r} when the module was traced", "Trace it with this value.")

    def _check_length(self, found: Any, kind: str, length: int) -> None:
        found = pytree.tree_leaves(found) if kind == "leaves" else found
        if not isinstance(found, tuple | list) or len(found) != length:
            shown = f"has {len(found)} parts" if isinstance(found, tuple | list) else f"is a {type(found).__name__}"
            self._refuse(f"{shown}, the model wants a {'list' if kind == 'list' else 'tuple'} of {length}")

    def _refuse(self, what: str, fix: str = "") -> None:
        raise BadRequest(what, where=f"input {self.where!r}", fix=fix)


class Check:
    """A hook before each call: arguments of the right names, types and fixed dimensions, constants as when traced.

    Raises:
        BadRequest: Names the argument and what it should be.
    """

    def __init__(self, call: Signature, model: ir.Model) -> None:
        self.arguments = [name for name, _ in call.inputs]
        self.defaults = {name: filled(tree, {}) for name, tree in call.inputs if name in call.optional}
        values = {v.name: v for v in model.graph.inputs}
        self.wanted = [w for i, (name, tree) in enumerate(call.inputs) for w in _wanted(name, (i,), tree, values)]

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._by_position(args, kwargs)
        for part in self.wanted:
            part.check(given)

    def _by_position(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self.arguments):
            raise BadRequest(f"{len(args)} arguments given, the model takes {len(self.arguments)}", where="call")
        given = dict(zip(self.arguments, args, strict=False))
        for name in kwargs:
            if name not in self.arguments:
                raise BadRequest(
                    "the model has no such input", where=f"input {name!r}", fix=nearest(name, self.arguments)
                )
        given = self.defaults | given | kwargs
        for name in self.arguments:
            if name not in given:
                fix = f"The model takes: {', '.join(self.arguments)}."
                raise BadRequest("the input is missing", where=f"input {name!r}", fix=fix)
        return [given[name] for name in self.arguments]


def _wanted(name: str, path: Path, tree: Tree, values: Mapping[str | None, ir.Value]) -> Iterator[Wanted]:
    """All that an argument has to be, the containers before what is in them."""
    kind, content = _parted(tree)
    if kind == "Tensor":
        value = values[content]
        if not is_tensor(value):
            return
        dims = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
        known = value.dtype is not None and not dtypes.carried(value.dtype.name)
        yield Wanted(content, path, tree, dtypes.torch_dtype(value.dtype.name) if known and value.dtype else None, dims)
        return
    yield Wanted(name, path, tree)
    for steps, part in _parts(tree):
        yield from _wanted(name, path + steps, part, values)


def _fits(shape: Sequence[int], dims: Sequence[int | None]) -> bool:
    return len(shape) == len(dims) and all(d is None or s == d for s, d in zip(shape, dims, strict=True))


def _same_type(given: torch.dtype, wanted: torch.dtype) -> bool:
    return given == wanted or (given.is_floating_point and wanted.is_floating_point)
