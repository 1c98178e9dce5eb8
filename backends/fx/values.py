"""What stands for the values of one ONNX graph in one fx graph: fx nodes, numbers on the host, stored tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from graphpress.backends.fx import dtypes, host, host_nodes, precision, shelf
from graphpress.backends.fx.host_nodes import Item
from graphpress.backends.fx.operands import HOST as HOST_KINDS
from graphpress.backends.fx.options import Options
from graphpress.errors import GraphpressError
from graphpress.graph import edit

NODE = "graphpress.node"  # key in the meta of an fx node: name of the graph's node
VALUE = "graphpress.value"  # likewise: name of the graph's value that it gives
_MODULE_ATTRIBUTES = frozenset(dir(torch.nn.Module()))


class Values:
    """The values of a graph; those of a subgraph capture what it reads of the graph around it, the parent's."""

    def __init__(self, options: Options, parent: Values | None = None) -> None:
        self.options, self.parent = options, parent
        self.graph = fx.Graph()
        self.shelf = shelf.Shelf(options.learned)
        self.items: dict[int, Item] = {}
        self.captured: dict[int, ir.Value] = {}
        self.local: set[int] = set()  # constants that live in this graph, not in one around it
        self.conversions: dict[tuple[ir.Node, int], ir.Value] = {}
        self.made: dict[tuple[int, str], Any] = {}
        self._first: ir.Value | None = None  # the tensor whose device is that of tensors made on the way

    def bind(self, value: ir.Value, ref: Any, *, dtype: str | None = None) -> None:
        """Let a value be what an fx node gives."""
        self.items[id(value)] = Item(ref, dtype=dtype or (value.dtype.name if value.dtype else None))
        if isinstance(ref, fx.Node) and self.parent is None:
            ref.meta[VALUE] = value.name
        if self._first is None and isinstance(value.type, ir.TensorType | None):
            self._first = value

    def item(self, value: ir.Value) -> Item | None:
        """A computed value, captured from a graph around this one if need be; None for a constant."""
        found = self.items.get(id(value))
        if found is not None or edit.is_constant(value) or value.is_initializer():
            return found
        return self.capture(value)

    def capture(self, value: ir.Value) -> Item:
        if self.parent is None:
            raise GraphpressError("is read before it is defined", where=f"value {value.name!r}")
        outer = self.parent.item(value)
        if outer is not None and outer.fixed:
            self.items[id(value)] = outer
            return outer
        self.captured[id(value)] = value
        ref = self.placeholder(value.name or "captured")
        if outer is not None and outer.host:
            self.items[id(value)] = dataclasses.replace(outer, ref=ref)
        else:
            self.bind(value, ref, dtype=outer.dtype if outer else None)
        return self.items[id(value)]

    def given(self, value: ir.Value) -> Any:
        """A value for a body that captures it: on the host if it is there."""
        item = self.item(value)
        return item.ref if item is not None and item.host else self.wanted(value, "Tensor")

    def source(self) -> ir.Value | None:
        """The tensor whose device is the module's: the first of the outermost graph that has one."""
        return (self.parent.source() if self.parent is not None else None) or self._first

    def placeholder(self, name: str, *default: Any) -> fx.Node:
        """A further argument of the module, behind those there are; it keeps a name that Python can have."""
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        target = name if name.isidentifier() and not keyword.iskeyword(name) else identifier(name)
        with contextlib.nullcontext() if first is None else self.graph.inserting_before(first):
            made = self.graph.create_node("placeholder", target, default, name=identifier(name))
        if self.parent is not None:
            made.target = made.name  # free among those that there are; the outermost ones are the call's
        return made

    def wanted(self, value: ir.Value | None, kind: str) -> Any:
        """A value in the form that a function wants of it."""
        if value is None:
            return None
        if kind == "Index":
            kind = "Int" if self._is_number(value) else "Tensor"
        if kind == "Number":
            kind = "Int" if self._on_the_host(value) else "Tensor"
        key = (id(value), "host" if kind in HOST_KINDS else "number" if kind == "Operand" else "tensor")
        if key not in self.made:
            self.made[key] = self._converted(value, kind)
        made = self.made[key]
        if kind in HOST_KINDS:
            return self._as_number(value, made) if kind in ("Int", "Float") else self._as_list(value, made)
        return made

    def operand(self, node: ir.Node, slot: int, kind: str) -> Any:
        """An input of a node, in the type of the others where it was made of integers."""
        found, like = self.wanted(node.inputs[slot], kind), self.conversions.get((node, slot))
        if like is None or not isinstance(found, fx.Node):
            return found
        return self.graph.call_function(precision.as_type, (found, self.wanted(like, "Tensor")))

    def _rank(self, value: ir.Value) -> int | None:
        item = self.item(value)
        if item is not None and item.host:
            return item.rank
        return len(value.shape) if value.shape is not None else None

    def _on_the_host(self, value: ir.Value) -> bool:
        """Whether a value is on the host or a constant."""
        item = self.item(value)
        return item is None or item.host

    def _is_number(self, value: ir.Value) -> bool:
        """Whether a value is a number on the host, or a constant of rank 0."""
        return self._on_the_host(value) and self._rank(value) == 0

    def _as_number(self, value: ir.Value, made: Any) -> Any:
        if not isinstance(made, fx.Node):
            return host.number(made)
        rank = self._rank(value)
        if rank == 0:
            return made
        function, rest = (operator.getitem, (0,)) if rank == 1 else (host.number, ())
        return self.graph.call_function(function, (made, *rest))

    def _as_list(self, value: ir.Value, made: Any) -> Any:
        if not isinstance(made, fx.Node):
            return host.numbers(made)
        return made if self._rank(value) == 1 else self.graph.call_function(host.numbers, (made,))

    def _converted(self, value: ir.Value, kind: str) -> Any:
        item = self.item(value)
        if item is None:
            return self._constant(value, kind)
        if kind in HOST_KINDS:
            item = item if item.host else self._before_cast(value) or item
            return item.ref if item.host else self.graph.call_function(host.ints, (item.ref,))
        if item.host:
            dtype = dtypes.torch_dtype(item.dtype or "INT64")
            return self.graph.call_function(host.tensor, (item.ref, dtype, self.wanted(self.source(), "Tensor")))
        return item.ref

    def _before_cast(self, value: ir.Value) -> Item | None:
        """The number on the host that was cast to a float, if it was one."""
        cast = value.producer()
        if cast is None or cast.domain or cast.op_type != "Cast" or cast.inputs[0] is None:
            return None
        return self.host_item(cast.inputs[0])

    def _constant(self, value: ir.Value, kind: str) -> Any:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        if kind in HOST_KINDS:
            return tensor.numpy().tolist()
        if kind == "Operand" and tensor.size == 1 and not shelf.trainable(value, self.options.learned):
            return tensor.numpy().item()
        return self._stored(value)

    def _stored(self, value: ir.Value) -> fx.Node:
        """A constant as an attribute of the module that has it, handed down to subgraphs."""
        if self.parent is not None and id(value) not in self.local:
            return self.capture(value).ref
        return shelf.restored(self.graph, self.parameter(value), value)

    def parameter(self, value: ir.Value) -> fx.Node:
        """A constant of this graph as torch's modules keep it: a linear layer's weight is (out, in)."""
        key = (id(value), "parameter")
        if key not in self.made:
            path = self.shelf.path(value)
            made = self.graph.create_node("get_attr", path, name=identifier(value.name or path))
            if (step := self.shelf.step(value)) is not None:
                steps = self.graph.create_node("get_attr", step, name=identifier(step))
                made = self.graph.call_function(shelf.stepped, (made, steps))
            self.made[key] = made
        return self.made[key]

    def call(
        self, node: ir.Node, function: Callable[..., Any], args: Any, kwargs: Any, of: ir.Node | None = None
    ) -> fx.Node:
        """An fx call named after the node; it computes that node, or ``of``."""
        made = self.graph.create_node(
            "call_function", function, tuple(args), kwargs, name=identifier(node.name or node.op_type)
        )
        made.meta[NODE] = (of or node).name
        return made

    def host_item(self, value: ir.Value) -> Item | None:
        """A value if it lives on the host or is a small integer constant."""
        item = self.item(value)
        if item is None:
            return host_nodes.constant(value)
        return item if item.host else None


def identifier(name: str) -> str:
    """A name as Python can have it."""
    name = re.sub(r"\W", "_", name).strip("_") or "value"
    return f"_{name}" if name[0].isdigit() or name in _MODULE_ATTRIBUTES or keyword.iskeyword(name) else name
