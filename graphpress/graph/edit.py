"""The only verbs that read and change a graph. They see subgraphs, and a graph output keeps its public name."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import StaleSite, Unsupported, nearest
from graphpress.keys import BY, ORIGIN, ROLE, note_scaled

Scope: TypeAlias = ir.Graph | ir.Function
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies held by the attributes of one node (If, Loop, Scan)."""
    for attr in node.attributes.data.values():  # as UserDict has them: looked at for each node of each pass
        if attr.type in _GRAPHS and not attr.is_ref():
            yield from [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else attr.as_graphs()


def graphs(model: ir.Model) -> Iterator[Scope]:
    """The main graph, every subgraph at any depth, every function; an outer graph before its inner ones."""
    for root in _roots(model):
        yield from scopes(root)


def _roots(model: ir.Model) -> list[Scope]:
    return [model.graph, *model.functions.values()]


def scopes(root: Scope) -> Iterator[Scope]:
    """A graph or function and all bodies in it, an outer one before its inner ones."""
    pending: list[Scope] = [root]
    while pending:
        graph = pending.pop(0)
        yield graph
        pending.extend(body for node in graph if node.attributes.data for body in subgraphs(node))


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of all graphs. The list of one graph is taken when it is reached, so rewriting meanwhile is safe."""
    for graph in graphs(model):
        yield from list(graph)


def find(model: ir.Model, name: str) -> ir.Node:
    """The node of that name.

    Raises:
        StaleSite: There is none.
    """
    known = {n.name or "": n for n in nodes(model)}
    if name not in known:
        raise StaleSite("the graph has no such node", where=f"node {name!r}", fix=nearest(name, known))
    return known[name]


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads of its graph, through the bodies that it holds too."""
    found = [v for v in node.inputs if v is not None]
    for body in subgraphs(node):
        inner = [v for n in body.all_nodes() for v in n.inputs if v is not None] + list(body.outputs)
        found += [v for v in inner if v.graph is node.graph]
    return found


def opset(model: ir.Model) -> int:
    """The version of the default domain that the model imports (1 where it imports none)."""
    return model.opset_imports.get("", 1)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value as an array if it is fixed: an initializer that no caller can override, or a Constant's output."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Like ``constant``, without reading the elements."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "":
        return None
    return ir.convenience.get_const_tensor(value)


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``constant`` would give an array."""
    return constant_tensor(value) is not None


def fresh_name(scope: Scope | ir.Model, base: str) -> str:
    """A name that no value and no node of the whole model has; it is taken from now on.

    A body (of If, Loop, Scan) of a model that was never indexed is known by what it reads of the graphs around it; one
    that reads nothing of them counts as a graph of its own, so ``index`` the model before writing there.
    """
    taken = _names(scope.graph if isinstance(scope, ir.Model) else scope)
    name, i = base, 1
    while name in taken:
        name, i = f"{base}_{i}", i + 1
    taken.add(name)
    return name


def index(model: ir.Model) -> None:
    """Note which graphs belong together, and forget the names known so far.

    To be called on a copy, and after something else than these verbs has changed the graph. The pipeline does so before
    each pass.
    """
    for root in _roots(model):
        _own(root, _Names(root))


_NAMES = "graphpress.names"


class _Names:
    """The names of a graph and all its bodies, looked up when they are first asked for."""

    def __init__(self, root: Scope) -> None:
        self._root = weakref.ref(_graph(root))  # a copy inherits graph.meta, and must not keep the first model alive
        self._taken: set[str] | None = None

    def taken(self) -> set[str]:
        root = self._root()
        if self._taken is None and root is not None:
            self._taken = {name for graph in scopes(root) for name in _named(graph)}
        return self._taken or set()

    def add(self, body: ir.Graph) -> None:
        if self._taken is not None:
            self._taken.update(name for graph in scopes(body) for name in _named(graph))


def _graph(scope: Scope) -> ir.Graph:
    return scope.graph if isinstance(scope, ir.Function) else scope


def _own(scope: Scope, names: _Names) -> None:
    for graph in map(_graph, scopes(scope)):
        graph.meta[_NAMES] = (weakref.ref(graph), names)


def _index_of(scope: Scope) -> _Names | None:
    owner, names = _graph(scope).meta.get(_NAMES, (None, None))
    return names if owner is not None and owner() is _graph(scope) else None  # else it is a copy's


def _names(scope: Scope) -> set[str]:
    names = _index_of(scope)
    if names is None:
        top = _outermost(scope)
        names = _index_of(top) or _Names(top)
        _own(top, names)
        names.add(_graph(scope))
    return names.taken()


def _outermost(scope: Scope) -> Scope:
    """The graph around all graphs around this one, as far as what they read of each other tells."""
    while True:
        inner = {id(g): g for g in map(_graph, scopes(scope))}
        read = (
            v for g in inner.values() for values in (g.outputs, *(n.inputs for n in g)) for v in values if v is not None
        )
        outer = next((v.graph for v in read if v.graph is not None and id(_graph(v.graph)) not in inner), None)
        if outer is None:
            return scope
        scope = outer


def _named(graph: Scope) -> Iterator[str]:
    initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    yield from (v.name for v in (*graph.inputs, *initializers) if v.name)
    for node in graph:
        yield from (name for name in (node.name, *(o.name for o in node.outputs)) if name)


def add_const(scope: ir.Graph, data: np.ndarray | ir.TensorProtocol, name: str) -> ir.Value:
    """A new initializer of ``scope`` under a fresh name. ml_dtypes arrays give 4-bit and 2-bit tensors."""
    name = fresh_name(scope, name)
    tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray | np.generic) else data
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    scope.register_initializer(value)
    return value


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
    outputs: int | Sequence[str] = 1,
    domain: str = "",
    origin: ir.Node | None = None,
    name: str = "",
) -> ir.Node:
    """A new node, inserted next to ``before`` or ``after``, under a fresh name, stamped with what it was made for.

    Types and shapes of the outputs are the caller's to set.
    """
    anchor = before or after
    assert anchor is not None and anchor.graph is not None, "new_node needs a place"
    scope = anchor.graph
    name = fresh_name(scope, name or f"{origin.name if origin else anchor.name}_{op_type}")
    names = [f"{name}_out{i or ''}" for i in range(outputs)] if isinstance(outputs, int) else outputs
    values = [ir.Value(name=fresh_name(scope, n)) for n in names]
    attrs = ir.convenience.convert_attributes(attributes or {})
    node = ir.Node(domain, op_type, inputs, attrs, outputs=values, name=name)
    for body in subgraphs(node):
        _adopt(body, scope)
    stamp(node, origin)
    if before is not None:
        scope.insert_before(before, node)
    else:
        scope.insert_after(anchor, node)
    return node


def _adopt(body: ir.Graph, scope: Scope) -> None:
    """A body that comes into a graph shares its names from now on."""
    _names(scope)
    names = _index_of(scope)
    assert names is not None
    names.add(body)
    _own(body, names)


def stamp(node: ir.Node, origin: ir.Node | None) -> None:
    """Note on ``node`` for which node it was made; what was made for a made node counts for the first one."""
    if origin is not None:
        made = BY in origin.metadata_props or ORIGIN in origin.metadata_props
        node.metadata_props[ORIGIN] = (
            origin.metadata_props.get(ORIGIN, origin.name or "") if made else origin.name or ""
        )


def like(value: ir.Value, model_of: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
    """Give ``value`` the shape of another and its type, or ``dtype``; returns ``value``."""
    value.shape = model_of.shape
    value.type = model_of.type if dtype is None else ir.TensorType(dtype)
    return value


def replace(old: ir.Value, by: ir.Value) -> None:
    """Let every use of ``old``, subgraphs and graph outputs included, read ``by``. A public name stays with its output.

    Where ``by`` cannot take the public name (it is an input, an initializer, or public itself) an Identity carries it.
    """
    if old.is_graph_output():
        graph = old.graph
        assert graph is not None
        replacement = by
        if by.producer() is None or by.is_graph_output() or by.graph is not graph:
            anchor = old.producer()
            assert anchor is not None, "a graph output that is an input cannot be replaced"
            replacement = new_node("Identity", [by], after=anchor, origin=anchor).outputs[0]
            like(replacement, old)
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = replacement
        public = old.name
        old.name = fresh_name(graph, f"{public}_old")
        replacement.name = public
        if replacement.shape is None:
            replacement.shape = old.shape
        if replacement.type is None:
            replacement.type = old.type
    for user, slot in list(old.uses()):
        if by.producer() is not user:
            user.replace_input_with(slot, by)


def stand_for(old: ir.Value, by: ir.Value, aside: str = "old") -> None:
    """``replace``; ``by`` takes the name of ``old``, public or not, and ``old`` goes on as ``<name>_<aside>``."""
    name, public = old.name, old.is_graph_output()
    replace(old, by)
    if not public and name:
        assert by.graph is not None, "it stands in a graph"
        old.name, by.name = fresh_name(by.graph, f"{name}_{aside}"), name


def supersede(node: ir.Node, by: Sequence[ir.Value | None], *, metadata: bool = True) -> list[ir.Value | None]:
    """Let other values stand for the outputs of ``node``, which goes; what makes the first of them keeps its name.

    Args:
        node: The site: plans, reports and skips know it by its name.
        by: A value for each output, of its type and shape; None: nothing reads that output.
        metadata: Whether the node that keeps the name keeps the metadata too.

    Returns:
        What ``node`` read: the caller's to remove where nothing else does (``remove_unused``).
    """
    name, inputs = node.name, list(node.inputs)
    for old, new in zip(node.outputs, by, strict=True):
        if new is not None:
            like(new, old)
            replace(old, new)
    remove([node])
    maker = next(v for v in by if v is not None).producer()
    if maker is not None:
        maker.name = name
        if metadata:
            maker.metadata_props.update(node.metadata_props)
    return inputs


def set_input(node: ir.Node, slot: int, value: ir.Value) -> None:
    """Let input ``slot`` of ``node`` read ``value``."""
    node.replace_input_with(slot, value)


def set_constant(node: ir.Node, slot: int, array: np.ndarray, what: str) -> None:
    """Put ``array`` in place of the constant at input ``slot``, or where none is yet.

    A constant that this node alone reads keeps its name; a shared one is left to the others. A parameter that came from
    torch notes that it is no longer the one of its name.

    Args:
        array: Of the final element type.
        what: Named after the node, a constant that is new: ``<node>.<what>``.
    """
    old = node.inputs[slot] if slot < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1:
        overwrite(old, array)
        return
    assert isinstance(node.graph, ir.Graph)
    name = old.name if old is not None and old.name else f"{node.name}.{what}"
    new = add_const(node.graph, ir.Tensor(array), name)
    if slot >= len(node.inputs):
        node.resize_inputs(slot + 1)
    set_input(node, slot, new)
    if old is not None:
        remove_unused([old])


def overwrite(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer, for all its readers, another array; see ``set_constant``."""
    value.const_value = ir.Tensor(array, name=value.name)
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
    if ROLE in value.metadata_props:
        note_scaled(value)


def remove(dead: Iterable[ir.Node]) -> None:
    """Remove nodes whose outputs nobody reads any more.

    Raises:
        ValueError: One is still in use: a bug of the caller.
    """
    for node in dead:
        if node.graph is not None:
            node.graph.remove(node, safe=True)


def remove_unused(values: Iterable[ir.Value | None]) -> None:
    """Remove these values' producers and initializers if nothing reads them, and so on upwards."""
    pending = [v for v in values if v is not None]
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and not value.is_graph_input() and isinstance(value.graph, ir.Graph):
                value.graph.initializers.pop(value.name or "", None)
        elif node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            pending.extend(v for v in node.inputs if v is not None)
            node.graph.remove(node, safe=True)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, or ``default``.

    Raises:
        Unsupported: It is a reference to a function's parameter.
    """
    attr = node.attributes.get(name)
    if attr is None:
        return default
    if attr.is_ref():
        raise Unsupported(
            f"attribute {name!r} is a parameter of the function", where=f"node {node.name!r}", fix="Inline it."
        )
    return attr.value
