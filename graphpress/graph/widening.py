"""A model in half precision as one that computes in float32.

Runtimes on a CPU round to half after each operator or have no kernel at all (ONNX Runtime 1.32 has nearly none for
bfloat16). Every half is a float32, so the wide model loses nothing; it only leaves out the roundings in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.half import HALVES, TYPE_NAMES, attribute_type, element_type, found
from graphpress.keys import HALF, NARROW

_FLOAT = ir.DataType.FLOAT
_KNOWN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "graphpress")  # domains whose operators take float32 as well
_LAZY = 1 << 16  # elements from which on a wide weight is made when it is read, so that memory holds one at a time


@dataclass
class Widened:
    """What ``widen`` did: how many weights, values and ends there were of each type."""

    weights: Counter[ir.DataType] = field(default_factory=Counter)
    values: Counter[ir.DataType] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)  # inputs and outputs, which keep their type
    refused: str = ""  # why it was left as it is

    def __bool__(self) -> bool:
        return bool(self.weights or self.values or self.ends)

    def __str__(self) -> str:
        """``float16 computed in float32: 12 weights, 30 values; inputs and outputs keep their types``."""
        types = "/".join(t.name.lower() for t in HALVES if self.weights[t] or self.values[t])
        counts = [
            f"{n} {what}{'s' * (n != 1)}" for c, what in ((self.weights, "weight"), (self.values, "value"))
            if (n := c.total())
        ]  # fmt: skip
        kept = "; inputs and outputs keep their types" if self.ends else ""
        return f"{types or 'half'} computed in float32: {', '.join(counts) or 'no weight'}{kept}"


def widened(model: ir.Model) -> ir.Model:
    """A copy that computes in float32; a model without halves itself."""
    if not found(model):
        return model
    copy = model.clone()
    edit.index(copy)
    widen(copy)
    return copy


def widen(model: ir.Model) -> Widened:
    """Let a model compute in float32 what it computes in half precision, in place.

    Inputs and outputs keep their types: a Cast stands behind the one and before the other, and around operators of
    domains that nobody knows. Casts between half and float32 go. Weights become float32, and are marked for
    ``half_storage.store``.
    """
    done = Widened()
    ends = [v for v in (*model.graph.inputs, *model.graph.outputs) if element_type(v.type) in HALVES]
    if odd := next((v for v in ends if not isinstance(v.type, ir.TensorType)), None):
        done.refused = f"{odd.name!r} is a {odd.type}, which no Cast takes"
        return done
    if strange := next((n for n in edit.nodes(model) if _strange(n, model) and not _is_typed(n)), None):
        done.refused = f"the types around {strange.name!r}, an operator of {strange.domain!r}, are not known"
        return done
    types = {v: t for v in _values(model) if (t := element_type(v.type)) in HALVES}
    _mark(model)
    kept, own = set(model.graph.inputs), {i: _type_parameters(f) for i, f in model.functions.items()}
    for scope in list(edit.graphs(model)):
        for value in list(scope.initializers.values()) if isinstance(scope, ir.Graph) else ():
            if value not in kept and (tensor := value.const_value) is not None and tensor.dtype in HALVES:
                done.weights[tensor.dtype] += 1
                widen_weight(value)
        for node in scope:
            _widen_attributes(node, own.get(node.op_identifier()))
    for value, kind in types.items():
        if value not in kept and not value.is_initializer():
            done.values[kind] += 1
            value.type = _wide(value.type)
    _close(model, types, done)
    _drop_casts(model)
    return done


def _strange(node: ir.Node, model: ir.Model) -> bool:
    """Whether nobody knows the operator: it takes the types that it takes."""
    return node.domain not in _KNOWN and node.op_identifier() not in model.functions


def _is_typed(node: ir.Node) -> bool:
    return all(v is None or not v.name or v.type is not None for v in (*node.inputs, *node.outputs))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for scope in edit.graphs(model):
        yield from scope.inputs
        yield from (v for node in scope for v in node.outputs)


def _wide(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner = _wide(kind.elem_type)
        assert inner is not None
        return type(kind)(inner)
    return kind if kind is None else type(kind)(_FLOAT)  # type: ignore[call-arg]


def _mark(model: ir.Model) -> None:
    """Note the type of most halves, where hardly a weight has another: what passes make is then of that type too."""
    sizes: Counter[ir.DataType] = Counter()
    for scope in edit.graphs(model):
        for value in scope.initializers.values() if isinstance(scope, ir.Graph) else ():
            if (tensor := value.const_value) is not None and tensor.dtype.is_floating_point():
                sizes[tensor.dtype] += tensor.size
    most = max(HALVES, key=lambda t: sizes[t])
    if sizes[most] > 0.9 * sizes.total():
        HALF.set(model, most)


def widen_weight(value: ir.Value) -> None:
    """Make an initializer of halves float32, and mark it with the type that it had."""
    tensor, name = value.const_value, value.name or ""
    assert tensor is not None
    if tensor.size < _LAZY:
        value.const_value = ir.Tensor(tensor.numpy().astype(np.float32), name=name)
    else:
        value.const_value = ir.LazyTensor(
            lambda: ir.Tensor(tensor.numpy().astype(np.float32)), _FLOAT, ir.Shape(tensor.shape.numpy()), name=name
        )
    value.type = ir.TensorType(_FLOAT)
    value.metadata_props.pop(NARROW, None)
    HALF.set(value, tensor.dtype)


def _type_parameters(function: ir.Function) -> set[str]:
    """The attributes of a function that its body takes for element types."""
    attributes = (a for n in function for a in n.attributes.values())
    return {a.ref_attr_name or "" for a in attributes if a.is_ref() and a.name in TYPE_NAMES}


def _widen_attributes(node: ir.Node, parameters: Collection[str] | None) -> None:
    """Of a call of the model's own function, what the body takes for types; None: it is no such call."""
    if parameters is None and node.domain not in _KNOWN:
        return
    names = TYPE_NAMES if parameters is None else parameters
    for name, attr in list(node.attributes.items()):
        kind = attribute_type(attr, names)
        if kind not in HALVES:
            continue
        if attr.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attr.as_tensor().numpy().astype(np.float32)))
        else:
            node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))


def _close(model: ir.Model, types: dict[ir.Value, ir.DataType], done: Widened) -> None:
    """Casts where halves must stay halves: at the model's ends, and around operators nobody knows."""
    for node in list(edit.nodes(model)):
        if _strange(node, model):
            _surround(node, types)
    first = next(iter(model.graph), None)
    for value in model.graph.inputs:
        if types.get(value) in HALVES and first is not None and value.uses():
            wide = _cast(value, _FLOAT, before=first)
            _redirect(model, value, wide)
            done.ends.append(value.name or "")
    for value in list(model.graph.outputs):
        kind = types.get(value) or (value.is_initializer() and HALF.get(value)) or None
        if kind is not None and not value.is_graph_input():
            _narrow_output(model.graph, value, kind)
            done.ends.append(value.name or "")


def _surround(node: ir.Node, types: dict[ir.Value, ir.DataType]) -> None:
    for slot, value in enumerate(node.inputs):
        kind = value is not None and (types.get(value) or HALF.get(value))
        if value is not None and kind and not value.is_graph_input():
            edit.set_input(node, slot, _cast(value, kind, before=node))
    for value in node.outputs:
        if (kind := types.get(value)) and not value.is_graph_output():
            value.type = ir.TensorType(kind)
            uses = list(value.uses())
            wide = _cast(value, _FLOAT, after=node)
            for user, slot in uses:
                user.replace_input_with(slot, wide)


def _cast(
    value: ir.Value, kind: ir.DataType, *, before: ir.Node | None = None, after: ir.Node | None = None
) -> ir.Value:
    name = f"{value.name}_{kind.name.lower()}"
    made = edit.new_node("Cast", [value], {"to": int(kind)}, before=before, after=after, name=name)
    return edit.like(made.outputs[0], value, kind)


def _redirect(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let all nodes but the maker of ``new`` read it, and bodies give it."""
    for user, slot in list(old.uses()):
        if user is not new.producer():
            user.replace_input_with(slot, new)
    for scope in edit.graphs(model):
        if scope is not model.graph:
            for i, output in enumerate(scope.outputs):
                if output is old:
                    scope.outputs[i] = new


def _narrow_output(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> None:
    last = value.producer() or next(iter(graph))
    public = value.name
    value.name = edit.fresh_name(graph, f"{public}_wide")
    made = _cast(value, kind, after=last)
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = made
    made.name = public
    value.type = ir.TensorType(_FLOAT)


def _drop_casts(model: ir.Model) -> None:
    """Casts to the type that is there already go, but where only they carry a public name."""
    for node in edit.nodes(model):
        if node.op_type != "Cast" or node.domain or node.attributes["to"].is_ref():
            continue
        source, value = node.inputs[0], node.outputs[0]
        if source is None or source.dtype != node.attributes["to"].as_int():
            continue
        if not value.is_graph_output() or _can_be_given(source, value.graph):
            edit.replace(value, source)
            edit.remove([node])


def _can_be_given(value: ir.Value, graph: edit.Scope | None) -> bool:
    return value.producer() is not None and not value.is_graph_output() and value.graph is graph


def opened(model: ir.Model) -> ir.Model:
    """A copy that gives in float32 what it casts to half precision only to give it; a model without that itself."""
    if not any(_rounds(v) for v in model.graph.outputs):
        return model
    copy = model.clone()
    edit.index(copy)
    for i, value in enumerate(copy.graph.outputs):
        if _rounds(value):
            maker, public = value.producer(), value.name
            assert maker is not None
            wide = maker.inputs[0]
            assert wide is not None
            value.name = edit.fresh_name(copy, f"{public}_half")
            copy.graph.outputs[i], wide.name = wide, public
            if not value.uses():
                edit.remove([maker])
    return copy


def _rounds(value: ir.Value) -> bool:
    """Whether a graph output is only a Cast to half of a float32 that is computed there and not given itself."""
    maker = value.producer()
    if value.dtype not in HALVES or maker is None or maker.op_type != "Cast" or maker.domain:
        return False
    source = maker.inputs[0]
    return source is not None and source.dtype == _FLOAT and _can_be_given(source, value.graph)
