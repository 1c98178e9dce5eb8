"""What an adapter is: a trainable addition to the graph that ``fold`` takes out again, exactly or not at all.

It is made of standard operators, so any backend runs a model that has one. Every node and constant that it makes says
whose it is (``keys.ADAPTED``): a saved model, loaded again, can be trained further and folded. What is left behind by a
fold, if anything, is found by ``gone.py``.

In sizes an adapter counts with the elements that it stores (``Attached.bits``) until it is folded, then with nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress import catalog
from graphpress.context import Context
from graphpress.errors import BadRequest, StaleSite, nearest
from graphpress.graph import edit
from graphpress.keys import ADAPTED
from graphpress.observe.inner import InnerValues
from graphpress.passes.structure.layers.linear import Linear


@dataclass(frozen=True)
class Attached:
    """One adapter in a graph, known by what its nodes and constants note.

    Attributes:
        adapter: Its name in the catalog.
        site: Name of the node of the layer that it belongs to.
        nodes: Its nodes by what they are to it: name of the node.
        constants: Its constants likewise: name of the initializer.
        trained: Names of those of its constants that training changes.
    """

    adapter: str
    site: str
    nodes: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    trained: tuple[str, ...] = ()

    def node(self, model: ir.Model, part: str) -> ir.Node:
        """The node that is this part.

        Raises:
            StaleSite: The graph has it no longer.
        """
        return edit.find(model, self.nodes.get(part, part))

    def value(self, model: ir.Model, part: str) -> ir.Value:
        """The constant that is this part.

        Raises:
            StaleSite: The graph has it no longer.
        """
        name = self.constants.get(part, part)
        if name not in model.graph.initializers:
            raise StaleSite("the graph has no such constant", where=f"{self.adapter} at {self.site!r}: {name!r}")
        return model.graph.initializers[name]

    def array(self, model: ir.Model, part: str) -> np.ndarray:
        """The elements of the constant that is this part."""
        array = edit.constant(self.value(model, part))
        assert array is not None
        return array

    def bits(self, model: ir.Model) -> int:
        """What its constants take in the model as it stands."""
        tensors = [edit.constant_tensor(self.value(model, part)) for part in self.constants]
        return sum(8 * t.nbytes for t in tensors if t is not None)


class Adapter(ABC):
    """A kind of addition. Subclasses are frozen dataclasses; their fields are their options.

    Law: a fresh one changes no output; folded untouched, it leaves the very model that was there before.

    Attributes:
        splits: Whether it takes a part of the weight over: that comes back to its last bits but one, as float sums do.
    """

    name: ClassVar[str]
    splits: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, model: ir.Model, layer: Linear) -> str | None:
        """Why it cannot stand at this layer; None where it can."""

    @abstractmethod
    def write(self, model: ir.Model, layer: Linear, ctx: Context) -> None:
        """Put it there; ``insert`` has asked ``refusal``. What is drawn follows from ``ctx.seed`` and the site."""

    @classmethod
    @abstractmethod
    def fold(cls, model: ir.Model, attached: Attached, ctx: Context) -> None:
        """Take it out, the model's outputs being what they are with it.

        Raises:
            BadRequest: They would not be: nothing was changed.
        """

    def insert(self, model: ir.Model, layer: Linear, ctx: Context) -> Attached:
        """Put it at a layer.

        Raises:
            BadRequest: It does not fit there, or needs what the context lacks.
        """
        site = layer.node.name or ""
        if (why := _unreachable(self, model, layer) or self.refusal(model, layer)) is not None:
            raise BadRequest(why, where=f"adapter {self.name!r} at {site!r}", fix="Leave this layer out.")
        self.write(model, layer, ctx)
        return next(a for a in attached(model) if (a.adapter, a.site) == (self.name, site))

    def fits(self, model: ir.Model, layer: Linear) -> bool:
        """Whether ``insert`` would take this layer."""
        return (_unreachable(self, model, layer) or self.refusal(model, layer)) is None


def _unreachable(adapter: Adapter, model: ir.Model, layer: Linear) -> str | None:
    if layer.node.graph is not model.graph:
        return "it is in a body of control flow"
    has = any((a.adapter, a.site) == (adapter.name, layer.node.name) for a in attached(model))
    return "it has one already" if has else None


@dataclass(frozen=True, eq=False)
class Scribe:
    """Writes the nodes and constants of one adapter at one layer, each noted as its own.

    Attributes:
        adapter: Its name in the catalog.
        layer: Where it stands.
    """

    adapter: str
    layer: Linear

    @property
    def graph(self) -> ir.Graph:
        graph = self.layer.node.graph
        assert isinstance(graph, ir.Graph)
        return graph

    def constant(self, part: str, array: np.ndarray, trained: bool = False) -> ir.Value:
        """A new initializer."""
        value = edit.add_const(self.graph, ir.Tensor(np.ascontiguousarray(array)), self._name(part))
        self._note(value, part, trained)
        return value

    def node(
        self, part: str, op_type: str, inputs: Sequence[ir.Value], shape: Iterable[Any] | None,
        attributes: Mapping[str, Any] | None = None, *, before: ir.Node | None = None, after: ir.Node | None = None,
    ) -> ir.Node:  # fmt: skip
        """A new node of one output, which has the layer's element type and this shape."""
        made = edit.new_node(
            op_type, inputs, attributes, before=before, after=after, origin=self.layer.node, name=self._name(part)
        )
        made.outputs[0].type = ir.TensorType(dtype(self.layer))
        made.outputs[0].shape = None if shape is None else ir.Shape(shape)
        self._note(made, part, False)
        return made

    def add_behind(self, part: str, branch: ir.Value, after: ir.Node) -> None:
        """Let all that read the layer's result read its sum with ``branch``, under the name that the result had."""
        result = self.layer.output
        add = self.node(part, "Add", [result, branch], result.shape, after=after)
        edit.like(add.outputs[0], result)
        edit.stand_for(result, add.outputs[0], "bare")
        edit.set_input(add, 0, result)

    def _name(self, part: str) -> str:
        return f"{self.layer.node.name}.{self.adapter}.{part}"

    def _note(self, thing: ir.Value | ir.Node, part: str, trained: bool) -> None:
        note = {"adapter": self.adapter, "site": self.layer.node.name or "", "part": part, "trained": trained}
        ADAPTED.set(thing, note)


def take_away(model: ir.Model, attached: Attached, part: str) -> None:
    """Let all that read the Add of ``add_behind`` read the bare result again; what fed it goes, names come back."""
    add = attached.node(model, part)
    result, total = add.inputs[0], add.outputs[0]
    assert result is not None
    edit.stand_for(total, result, "gone")
    edit.remove_unused([total])
    edit.index(model)


def attached(model: ir.Model) -> list[Attached]:
    """The adapters of the main graph, in order of their first node."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    trained: dict[tuple[str, str], list[str]] = {}
    for kind, things in (("nodes", list(model.graph)), ("constants", list(model.graph.initializers.values()))):
        for thing in things:
            note = ADAPTED.get(thing)
            if note is None:
                continue
            key = note["adapter"], note["site"]
            found.setdefault(key, {"nodes": {}, "constants": {}})[kind][note["part"]] = thing.name or ""
            if note["trained"]:
                trained.setdefault(key, []).append(thing.name or "")
    return [Attached(*key, parts["nodes"], parts["constants"], tuple(trained.get(key, ())))
            for key, parts in found.items()]  # fmt: skip


def kind(name: str) -> type[Adapter]:
    """The adapter of that name.

    Raises:
        BadRequest: There is none.
    """
    known = catalog.adapters()
    if name not in known:
        raise BadRequest("there is no such adapter", where=f"adapter {name!r}", fix=nearest(name, known))
    found: type[Adapter] = known[name]
    return found


def dtype(layer: Linear) -> ir.DataType:
    """The element type that a layer computes in."""
    found = layer.weight_value.dtype
    assert found is not None
    return found


def evaluated(model: ir.Model, value: ir.Value, ctx: Context) -> np.ndarray:
    """A value that follows from constants alone, such as a weight behind Q -> DQ, whatever its format.

    Raises:
        BadRequest: The context has nothing that executes, or the value depends on an input.
    """
    array = edit.constant(value)
    if array is not None:
        return array
    execute, name = ctx.oracle or ctx.run, value.name or ""
    if execute is None:
        raise BadRequest("nothing may be executed", where=f"value {name!r}", fix="Give Context(run=..).")
    return InnerValues.of(model, [name], execute, given=[], floats=False)({})[name]
