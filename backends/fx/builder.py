"""One ONNX graph as one fx graph: a node becomes a call of its function, under its own name."""

from __future__ import annotations

import contextlib
import dataclasses
import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphpress import edit
from graphpress.backends.fx import bodies, dtypes, host, host_nodes, modes, peepholes, precision, table, weights
from graphpress.backends.fx.host_nodes import Item
from graphpress.backends.fx.operands import HOST as HOST_KINDS
from graphpress.backends.fx.operands import Signature, signature
from graphpress.backends.fx.options import Chosen, Options
from graphpress.base import SCOPE
from graphpress.errors import GraphpressError, Unsupported

NODE = "graphpress.node"  # key in the meta of an fx node: name of the graph's node
VALUE = "graphpress.value"  # likewise: name of the graph's value that it gives
_MODULE_ATTRIBUTES = frozenset(dir(torch.nn.Module()))


class Builder:
    """Fills one fx graph; a subgraph has a builder of its own that captures what it reads of this one."""

    def __init__(self, options: Options, parent: Builder | None = None) -> None:
        self.options, self.parent = options, parent
        self.graph = fx.Graph()
        self.shelf = weights.Shelf(options.learnable)
        self.items: dict[int, Item] = {}
        self.captured: dict[int, ir.Value] = {}
        self.local: set[int] = set()  # constants that live in this graph, not in one around it
        self.conversions: dict[tuple[ir.Node, int], ir.Value] = {}
        self._made: dict[tuple[int, str], Any] = {}
        self._first: ir.Value | None = None  # the tensor whose device is that of tensors made on the way

    # -- values ------------------------------------------------------------------------------------------------------

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
        if key not in self._made:
            self._made[key] = self._converted(value, kind)
        made = self._made[key]
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
        return self._host_item(cast.inputs[0])

    def _constant(self, value: ir.Value, kind: str) -> Any:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        if kind in HOST_KINDS:
            return tensor.numpy().tolist()
        if kind == "Operand" and tensor.size == 1 and not weights.trainable(value, self.options.learnable):
            return tensor.numpy().item()
        return self._stored(value)

    def _stored(self, value: ir.Value) -> fx.Node:
        """A constant as an attribute of the module that has it, handed down to subgraphs."""
        if self.parent is not None and id(value) not in self.local:
            return self.capture(value).ref
        return weights.restored(self.graph, self.parameter(value), value)

    def parameter(self, value: ir.Value) -> fx.Node:
        """A constant of this graph as torch's modules keep it: a linear layer's weight is (out, in)."""
        key = (id(value), "parameter")
        if key not in self._made:
            path = self.shelf.path(value)
            self._made[key] = self.graph.create_node("get_attr", path, name=identifier(value.name or path))
        return self._made[key]

    # -- nodes -------------------------------------------------------------------------------------------------------

    def add(self, node: ir.Node) -> None:
        """Add the call of one node.

        Raises:
            Unsupported: There is no function for it, or none for one of its attributes.
        """
        if node.op_type == "Constant" and node.domain == "":
            self.local.update(id(v) for v in node.outputs)
            return
        if not self._on_host(node):
            function = table.find(node, self.options.opset, straight_through=self.options.straight_through)
            call = Call(self, node, function)
            make = self.switched if "training" in call.signature.facts else self.call
            self._bind_outputs(node, make(node, function, call.args(), call.kwargs()), call.signature)

    def add_kernel(self, tail: ir.Node, chosen: Chosen) -> None:
        """Add the kernel that stands for the nodes of a site, under the product's name, in the place of the last."""
        node = chosen.node
        path = weights.place_module(self.shelf.root, node.metadata_props.get(SCOPE) or node.name or "", chosen.module)
        args = [self.wanted(chosen.source, "Tensor")]
        if chosen.quantizer is not None:
            maker, quantize = chosen.quantizer
            key = (id(maker), "quantized")
            if key not in self._made:
                self._made[key] = self.call(maker, quantize, args, {})
            args.append(self._made[key])
        made = self.graph.create_node("call_module", path, tuple(args), name=identifier(node.name or node.op_type))
        made.meta[NODE] = node.name
        self.bind(tail.outputs[0], made)

    def call(
        self, node: ir.Node, function: Callable[..., Any], args: Any, kwargs: Any, of: ir.Node | None = None
    ) -> fx.Node:
        """An fx call named after the node; it computes that node, or ``of``."""
        made = self.graph.create_node(
            "call_function", function, tuple(args), kwargs, name=identifier(node.name or node.op_type)
        )
        made.meta[NODE] = (of or node).name
        return made

    def switched(self, node: ir.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        """As ``call``, of a function that is told whether the module trains."""
        path = weights.place_module(self.shelf.root, identifier(node.name or ""), modes.Switched(function, kwargs))
        made = self.graph.create_node("call_module", path, tuple(args), name=identifier(node.name or node.op_type))
        made.meta[NODE] = node.name
        return made

    def _bind_outputs(self, node: ir.Node, made: fx.Node, spec: Signature) -> None:
        for i, value in enumerate(node.outputs):
            if not value.name or not (spec.many and (value.uses() or value.is_graph_output())):
                continue
            self.bind(value, self.graph.call_function(operator.getitem, (made, i)))
        if not spec.many:
            self.bind(node.outputs[0], made)

    def _on_host(self, node: ir.Node) -> bool:
        """Compute a node of shape arithmetic in Python; False where it is none."""
        call = host_nodes.plan(node, self._host_item)
        if call is None and host_nodes.reads_shape(node):
            call = host_nodes.reading(node, self.wanted(node.inputs[0], "Tensor"))
        if call is None:
            return False
        ref = self.call(node, call.function, call.args, call.kwargs) if call.result is None else call.result
        self.items[id(node.outputs[0])] = call.item(ref)
        return True

    def _host_item(self, value: ir.Value) -> Item | None:
        """A value if it lives on the host or is a small integer constant."""
        item = self.item(value)
        if item is None:
            return host_nodes.constant(value)
        return item if item.host else None

    # -- the whole ---------------------------------------------------------------------------------------------------

    def fill(self, graph: ir.Graph) -> None:
        """Add every node of a graph whose inputs are bound."""
        self.local.update(id(v) for v in graph.initializers.values())
        kernels, linear = self.options.kernels, peepholes.find(graph, self)
        self.conversions = precision.conversions(graph)
        for node in graph:
            try:
                if node in kernels.at:
                    self.add_kernel(node, kernels.at[node])
                elif (found := linear.get(node)) is not None:
                    found.add(self)
                elif node not in kernels.replaced and node not in linear:
                    self.add(node)
            except GraphpressError as e:
                if not e.where:
                    raise type(e)(e.what, where=f"node {node.name!r} ({node.op_type})", fix=e.fix) from e
                raise

    def output(self, value: ir.Value) -> Any:
        """A value as the module gives it: a tensor of its type."""
        return self.wanted(value, "Tensor")


class Call:
    """The arguments of one node's function."""

    def __init__(self, builder: Builder, node: ir.Node, function: Callable[..., Any]) -> None:
        self.builder, self.node, self.signature = builder, node, signature(function)

    def args(self) -> list[Any]:
        """The inputs, each in the form that is wanted of it."""
        inputs = list(self.node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        kinds = [self.signature.wants(i) or "Tensor" for i in range(len(inputs))]
        if self.signature.inputs and not self.signature.rest and len(inputs) > len(self.signature.inputs):
            raise Unsupported(f"has {len(inputs)} inputs, torch's form takes {len(self.signature.inputs)}")
        kinds = [self._kind(v, k) for v, k in zip(inputs, kinds, strict=True)]
        found = [self.builder.operand(self.node, i, kind) for i, kind in enumerate(kinds)]
        if found and not any(isinstance(f, fx.Node) for f in found) and "Operand" in kinds:
            found[0] = self.builder.wanted(inputs[0], "Tensor")  # a function of torch wants one tensor at least
        return found

    def _kind(self, value: ir.Value | None, kind: str) -> str:
        """A constant of one element is a number only where that cannot change the rank of the result."""
        if kind != "Operand" or value is None or not value.shape:
            return kind
        ranks = [len(v.shape) if v is not None and v.shape is not None else 0 for v in self.node.inputs]
        others = [r for r, v in zip(ranks, self.node.inputs, strict=True) if v is not value]
        return kind if others and len(value.shape) <= max(others) else "Tensor"

    def kwargs(self) -> dict[str, Any]:
        """Attributes, subgraphs and facts."""
        kwargs: dict[str, Any] = {}
        names = self.signature.keywords | set(self.signature.names[len(self.node.inputs) :])
        for attr in self.node.attributes.values():
            if attr.name == "consumed_inputs":
                continue  # a hint of the first opsets for reusing memory
            if attr.name not in names:
                raise Unsupported(f"torch's form has no attribute {attr.name!r}")
            kwargs[attr.name] = self._attribute(attr)
        return kwargs | self._facts()

    def _attribute(self, attr: ir.Attr) -> Any:
        if attr.is_ref():
            raise Unsupported(f"attribute {attr.name!r} is a parameter of a function", fix="Inline it.")
        if attr.type == ir.AttributeType.GRAPH:
            return self._submodule(attr)
        if attr.type == ir.AttributeType.TENSOR:
            return _scalar(attr.as_tensor()) if attr.as_tensor().size == 1 else _tensor_attribute(attr.as_tensor())
        if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            return list(attr.value)
        if attr.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            return attr.value
        if attr.type == ir.AttributeType.TYPE_PROTO:
            return str(attr.value)
        raise Unsupported(f"torch's form takes no attribute {attr.name!r} of type {attr.type.name}")

    def _submodule(self, attr: ir.Attr) -> Any:
        """A body as (module, what it captures, types and shapes of its results)."""
        body = bodies.build(attr.as_graph(), self.builder, self.node.op_type)
        name = f"{identifier(self.node.name or self.node.op_type)}_{attr.name}"
        path = weights.place_module(self.builder.shelf.root, name, body.module)
        ref = self.builder.graph.create_node("get_attr", path)
        return (ref, [self.builder.given(v) for v in body.captured], body.results)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if "outputs" in self.signature.facts:
            facts["outputs"] = len(self.node.outputs)
        if "in_types" in self.signature.facts:
            facts["in_types"] = tuple(_type(v) for v in self.node.inputs)
        if "out_types" in self.signature.facts:
            facts["out_types"] = tuple(_type(v) for v in self.node.outputs)
        if "opset" in self.signature.facts:
            facts["opset"] = self.builder.options.opset
        if "like" in self.signature.facts:
            source = self.builder.source()
            facts["like"] = self.builder.wanted(source, "Tensor")
        return facts


def identifier(name: str) -> str:
    """A name as Python can have it."""
    name = re.sub(r"\W", "_", name).strip("_") or "value"
    return f"_{name}" if name[0].isdigit() or name in _MODULE_ATTRIBUTES or keyword.iskeyword(name) else name


def _type(value: ir.Value | None) -> str | None:
    return value.dtype.name if value is not None and value.dtype is not None else None


def _scalar(tensor: ir.TensorProtocol) -> Any:
    return tensor.numpy().reshape(-1)[0].item()


def _tensor_attribute(tensor: ir.TensorProtocol) -> Any:
    return np.asarray(tensor.numpy()).tolist()
