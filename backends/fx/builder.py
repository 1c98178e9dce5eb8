"""One ONNX graph as one fx graph: a node becomes a call of its function, under its own name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from graphpress.backends.fx import bodies, host_nodes, modes, op_table, peepholes, precision, shelf
from graphpress.backends.fx.operands import Operands, signature
from graphpress.backends.fx.options import Chosen
from graphpress.backends.fx.values import NODE, Values, identifier
from graphpress.errors import GraphpressError, Unsupported
from graphpress.keys import SCOPE


class Builder(Values):
    """Fills one fx graph; a subgraph has a builder of its own."""

    def add(self, node: ir.Node) -> None:
        """Add the call of one node.

        Raises:
            Unsupported: There is no function for it, or none for one of its attributes.
        """
        if node.op_type == "Constant" and node.domain == "":
            self.local.update(id(v) for v in node.outputs)
            return
        if not self._on_host(node):
            function = op_table.function_of(node, self.options.opset, straight_through=self.options.straight_through)
            call = Call(self, node, function)
            make = self.switched if "training" in call.signature.facts else self.call
            self._bind_outputs(node, make(node, function, call.args(), call.kwargs()), call.signature)

    def add_kernel(self, tail: ir.Node, chosen: Chosen) -> None:
        """Add the kernel that stands for the nodes of a site, under the product's name, in the place of the last."""
        node = chosen.node
        path = shelf.place_module(self.shelf.root, node.metadata_props.get(SCOPE) or node.name or "", chosen.module)
        args = [self.wanted(chosen.source, "Tensor")]
        if chosen.quantizer is not None:
            maker, quantize = chosen.quantizer
            key = (id(maker), "quantized")
            if key not in self.made:
                self.made[key] = self.call(maker, quantize, args, {})
            args.append(self.made[key])
        made = self.graph.create_node("call_module", path, tuple(args), name=identifier(node.name or node.op_type))
        made.meta[NODE] = node.name
        self.bind(tail.outputs[0], made)

    def switched(self, node: ir.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        """As ``call``, of a function that is told whether the module trains."""
        path = shelf.place_module(self.shelf.root, identifier(node.name or ""), modes.Switched(function, kwargs))
        made = self.graph.create_node("call_module", path, tuple(args), name=identifier(node.name or node.op_type))
        made.meta[NODE] = node.name
        return made

    def _bind_outputs(self, node: ir.Node, made: fx.Node, spec: Operands) -> None:
        for i, value in enumerate(node.outputs):
            if not value.name or not (spec.many and (value.uses() or value.is_graph_output())):
                continue
            self.bind(value, self.graph.call_function(operator.getitem, (made, i)))
        if not spec.many:
            self.bind(node.outputs[0], made)

    def _on_host(self, node: ir.Node) -> bool:
        """Compute a node of shape arithmetic in Python; False where it is none."""
        call = host_nodes.plan(node, self.host_item)
        if call is None and host_nodes.reads_shape(node):
            call = host_nodes.reading(node, self.wanted(node.inputs[0], "Tensor"))
        if call is None:
            return False
        ref = self.call(node, call.function, call.args, call.kwargs) if call.result is None else call.result
        self.items[id(node.outputs[0])] = call.item(ref)
        return True

    def fill(self, graph: ir.Graph) -> None:
        """Add every node of a graph whose inputs are bound."""
        self.local.update(id(v) for v in graph.initializers.values())
        kernels, linear = self.options.kernels, peepholes.linear_calls(graph, self)
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
        inner = Builder(self.builder.options, self.builder)
        body = bodies.build(attr.as_graph(), inner, self.node.op_type, inner.fill)
        name = f"{identifier(self.node.name or self.node.op_type)}_{attr.name}"
        path = shelf.place_module(self.builder.shelf.root, name, body.module)
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


def _type(value: ir.Value | None) -> str | None:
    return value.dtype.name if value is not None and value.dtype is not None else None


def _scalar(tensor: ir.TensorProtocol) -> Any:
    return tensor.numpy().reshape(-1)[0].item()


def _tensor_attribute(tensor: ir.TensorProtocol) -> Any:
    return np.asarray(tensor.numpy()).tolist()
