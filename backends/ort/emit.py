"""Put one kernel in the place of what it computes: names, scope and public outputs stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import onnx_ir as ir

from graphpress.backends.ort.moved_codes import SHIFT
from graphpress.graph import edit
from graphpress.graph.quantized import Expanded
from graphpress.graph.readers import bias_behind
from graphpress.keys import BY
from graphpress.types import Storage

T = TypeVar("T")

CONTRIB = "com.microsoft"


def helper_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    site: ir.Node,
    attributes: Mapping[str, Any] | None = None,
    **more: Any,
) -> ir.Value:
    """A node before ``site`` that was made for it; its output."""
    node = edit.new_node(op_type, inputs, attributes, before=site, origin=site, **more)
    node.metadata_props[BY] = "lower"
    return node.outputs[0]


def substitute(
    site: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    domain: str = CONTRIB,
    plus: ir.Value | None = None,
) -> ir.Node:
    """Replace ``site`` by one node of another type, which takes over its name, metadata and outputs.

    ``plus`` is added to what it gives.
    """
    node = edit.new_node(
        op_type, inputs, attributes, before=site, origin=site, domain=domain, outputs=len(site.outputs)
    )
    old_inputs = edit.supersede(site, node.outputs)
    node.metadata_props[BY] = "lower"
    if plus is not None:  # before the old inputs go: it may be one of them
        _add_after(node, plus)
    edit.remove_unused(old_inputs)
    return node


def absorb_bias(site: ir.Node, columns: int) -> ir.Value | None:
    """The bias of a MatMul, if its only reader adds a constant [columns]; the Add is taken out of the graph."""
    found = bias_behind(site, columns)
    if found is None:
        return None
    add, slot = found
    bias = add.inputs[slot]
    array = edit.constant(bias)
    if array is None or array.dtype != np.float32:
        return None
    edit.replace(add.outputs[0], site.outputs[0])
    edit.remove([add])
    return bias


def one_dimensional(site: ir.Node, bias: ir.Value | None, columns: int) -> tuple[ir.Value | None, bool]:
    """(the bias as [columns], whether it is one): Gemm's C may be [1, N], a scalar, [M, 1], [M, N], or computed."""
    if bias is None:
        return None, True
    array = edit.constant(bias)
    if array is None or array.dtype != np.float32:
        return bias, False
    if array.size != 1 and (array.size != columns or array.shape[-1] != columns):
        return bias, False
    if array.shape == (columns,):
        return bias, True
    assert isinstance(site.graph, ir.Graph)
    return edit.add_const(site.graph, np.broadcast_to(array.reshape(-1), columns).copy(), f"{bias.name}_flat"), True


def _add_after(node: ir.Node, bias: ir.Value) -> None:
    """Add ``bias`` to what ``node`` gives."""
    out = node.outputs[0]
    add = edit.new_node("Add", [out, bias], after=node, origin=node)
    add.metadata_props[BY] = "lower"
    edit.like(add.outputs[0], out)
    edit.replace(out, add.outputs[0])
    edit.set_input(add, 0, out)


def widened(site: ir.Node, codes: ir.Value) -> ir.Value:
    """Codes of 2 or 4 bits as int8 or uint8."""
    assert codes.dtype is not None
    wide = ir.DataType.INT8 if codes.dtype.is_signed() else ir.DataType.UINT8
    return edit.like(helper_node("Cast", [codes], site, {"to": wide}), codes, wide)


def moved_at_load(site: ir.Node, codes: ir.Value) -> ir.Value:
    """int8 codes as uint8, 128 more; moved once, when ONNX Runtime loads, so that the file keeps their zeros packed."""
    graph = site.graph
    assert isinstance(graph, ir.Graph)
    wide = helper_node("Cast", [codes], site, {"to": ir.DataType.INT32})
    shift = edit.add_const(graph, np.array(SHIFT, np.int32), f"{codes.name}_shift")
    moved = helper_node("Cast", [helper_node("Add", [wide, shift], site)], site, {"to": ir.DataType.UINT8})
    return edit.like(moved, codes, ir.DataType.UINT8)


class Shared:
    """What one lowering makes only once, so that weights and quantizers used twice are stored and computed once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What ``make`` gave the first time it was called for ``key``."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def const(self, graph: ir.Graph, key: tuple[Any, ...], name: str, make: Callable[[], np.ndarray]) -> ir.Value:
        """The initializer of ``graph`` for ``key``, made anew if it went because nobody read it."""
        key = (id(graph), *key)
        if key in self._made and self._made[key].name not in graph.initializers:
            del self._made[key]
        return self.once(key, lambda: edit.add_const(graph, make(), name))


def looked_up(site: ir.Node, w: Expanded, shared: Shared) -> ir.Value:
    """The int8 integers that codes of another format stand for; ONNX Runtime looks them up once, at load.

    Weights of the same levels share one book, whose negative codes count from its end as Gather has it: on small
    models, files grow by what stands beside the codes.
    """
    graph, kind = site.graph, Storage.of_codes(w.value.dtype)
    assert isinstance(graph, ir.Graph) and kind is not None
    levels = np.roll(w.levels, kind.low)
    book = shared.const(graph, ("levels", levels.tobytes()), "levels", lambda: levels)
    index = helper_node("Cast", [w.value], site, {"to": ir.DataType.INT32})
    return edit.like(helper_node("Gather", [book, index], site), w.value, ir.DataType.INT8)
