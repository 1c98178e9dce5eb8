"""Which nodes are shape arithmetic: all they read is on the host, and what they give is of rank 0 or 1.

Ranks are tracked while building, so a value on the host is a number or a list from the start, whatever the sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir
from torch import fx

from graphpress.backends.fx import dtypes, host
from graphpress.graph import edit

SMALL = 64  # elements up to which an integer constant may take part
_TYPES = ("INT64", "INT32", "BOOL")


@dataclass(frozen=True)
class Item:
    """A value: an fx node (or Python numbers on the host), its ONNX type where known, and of the host its rank, and its
    length if that is known while building.
    """

    ref: Any
    host: bool = False
    dtype: str | None = None
    rank: int | None = None
    length: int | None = None

    @property
    def fixed(self) -> bool:
        """Whether its numbers are known while building."""
        return self.host and not isinstance(self.ref, fx.Node)


Operands: TypeAlias = Sequence[Item | None]


@dataclass(frozen=True)
class HostCall:
    """What a node of shape arithmetic is: a call, or its result where all operands are fixed."""

    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    dtype: str
    rank: int
    length: int | None = None
    result: Any = None

    def item(self, ref: Any) -> Item:
        """The value that it gives."""
        return Item(ref, True, self.dtype, self.rank, self.length)


def constant(value: ir.Value) -> Item | None:
    """A small constant of integers or booleans; None for another."""
    tensor = edit.constant_tensor(value)
    if tensor is None or len(tensor.shape) > 1 or tensor.size > SMALL or tensor.dtype.name not in _TYPES:
        return None
    length = tensor.size if len(tensor.shape) else None
    return Item(tensor.numpy().tolist(), True, tensor.dtype.name, len(tensor.shape), length)


def plan(node: ir.Node, look: Callable[[ir.Value], Item | None]) -> HostCall | None:
    """The call of a node that reads only what is on the host; None where it does not, or where its result cannot be.

    ``look`` gives a value on the host, None for another.
    """
    rule = None if node.domain or len(node.outputs) != 1 else _RULES.get(node.op_type)
    if rule is None or not node.inputs or node.inputs[0] is None or not _known(node):
        return None
    operands = []
    for value in node.inputs:
        operands.append(None if value is None else look(value))
        if value is not None and operands[-1] is None:
            return None
    rank, dtype = rule(node, operands), _type(node, operands)
    if rank is None or dtype is None:
        return None
    call = HostCall(_FUNCTIONS[node.op_type], [o and o.ref for o in operands], _attributes(node), dtype, rank)
    if all(o is None or o.fixed for o in operands):
        return _computed(call)
    likely = _likely(node, operands, call)
    if node.op_type in host.READS_TENSOR and likely is not None:
        return dataclasses.replace(call, length=1 if rank else None, result=likely)
    return dataclasses.replace(call, length=len(likely) if isinstance(likely, list) else None)


def _likely(node: ir.Node, operands: Operands, call: HostCall) -> Any:
    """The result for numbers that stand for those not known yet, which has the right length; None where it may not."""
    unknown = [o for o in operands if o is not None and not o.fixed]
    decided = node.op_type != "Slice" or all(o is None or o.fixed for o in operands[1:])
    if not decided or any(o.rank == 1 and o.length is None for o in unknown):
        return None
    index = 0 if node.op_type == "Gather" else 1  # 0 is no divisor
    args = [o if o is None or o.fixed else [index] * (o.length or 0) if o.rank else index for o in operands]
    try:
        return call.function(*(a.ref if isinstance(a, Item) else a for a in args), **call.kwargs)
    except (ArithmeticError, LookupError, ValueError):
        return None


def reads_shape(node: ir.Node) -> bool:
    """Whether a node gives sizes, not contents."""
    return not node.domain and node.op_type in host.READS_TENSOR


def reading(node: ir.Node, x: fx.Node) -> HostCall:
    """The call that gives the sizes of a tensor."""
    function, kwargs = host.READS_TENSOR[node.op_type], _attributes(node)
    if node.op_type == "Size":
        return HostCall(function, [x], kwargs, "INT64", 0)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = None if shape is None else [1] * len(shape)
    length = None if sizes is None else len(sizes[kwargs.get("start", 0) : kwargs.get("end")])
    return HostCall(function, [x], kwargs, "INT64", 1, length)


def _computed(call: HostCall) -> HostCall:
    """With its result; what fails now shall fail when it runs."""
    try:
        result = call.function(*call.args, **call.kwargs)
    except (ArithmeticError, LookupError, ValueError):
        return call
    result = [_in_range(r, call.dtype) for r in result] if isinstance(result, list) else _in_range(result, call.dtype)
    return dataclasses.replace(call, result=result, length=len(result) if isinstance(result, list) else None)


def _in_range(x: int, dtype: str) -> int:
    """As integers of the type wrap."""
    if dtype == "BOOL":
        return x
    low, high = dtypes.integer_range(dtype)
    return (x - low) % (high - low + 1) + low


_FUNCTIONS = {**host.HOST, **host.READS_TENSOR}

# -- attributes and types ----------------------------------------------------------------------------------------------

_REDUCED = {"axes", "keepdims", "noop_with_empty_axes"}
_ATTRIBUTES = {
    "Gather": {"axis"}, "Slice": {"starts", "ends", "axes"}, "Concat": {"axis"}, "Unsqueeze": {"axes"},
    "Squeeze": {"axes"}, "Reshape": {"allowzero"}, "Transpose": {"perm"}, "ConstantOfShape": {"value"},
    "Shape": {"start", "end"}, "Cast": {"to", "saturate", "round_mode"}, "Mod": {"fmod"}, "Range": {"stash_type"},
    "ReduceProd": _REDUCED, "ReduceSum": _REDUCED, "ReduceMax": _REDUCED, "ReduceMin": _REDUCED,
}  # fmt: skip
_MEANINGLESS = {"saturate", "round_mode", "stash_type"}  # for integers
_COMPARISONS = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Xor")


def _known(node: ir.Node) -> bool:
    """Whether all attributes are known and given: those of a function's parameter are not."""
    return set(node.attributes) <= _ATTRIBUTES.get(node.op_type, set()) and not any(
        a.is_ref() for a in node.attributes.values()
    )


def _attributes(node: ir.Node) -> dict[str, Any]:
    given = {name: a.value for name, a in node.attributes.items() if name not in _MEANINGLESS}
    if "value" in given:
        given["value"] = given["value"].numpy().reshape(-1)[0].item()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}


def _type(node: ir.Node, operands: Operands) -> str | None:
    if node.op_type in host.READS_TENSOR:
        return "INT64"
    if node.op_type == "Cast":
        to = ir.DataType(edit.attribute(node, "to")).name
        return to if to in _TYPES else None
    if node.op_type == "ConstantOfShape":
        value = edit.attribute(node, "value")  # float zeros without
        return value.dtype.name if value is not None and value.dtype.name in _TYPES else None
    if node.op_type in _COMPARISONS:
        return "BOOL"
    typed = operands[1] if node.op_type == "Where" else operands[0]
    return typed.dtype if typed is not None else None


# -- the rank of each result, None where it is not for the host --------------------------------------------------------


def _input(operands: Operands, slot: int) -> Item | None:
    return operands[slot] if slot < len(operands) else None


def _fixed(node: ir.Node, operands: Operands, slot: int, name: str = "") -> Any:
    """The numbers of an input, or of the attribute that it was; None where absent or not known while building."""
    given = _input(operands, slot)
    if given is not None:
        return given.ref if given.fixed else None
    attribute = edit.attribute(node, name) if name else None
    return None if attribute is None else list(attribute)


def _broadcast(node: ir.Node, operands: Operands) -> int | None:
    ranks = [o.rank for o in operands if o is not None and o.rank is not None]
    return max(ranks) if len(ranks) == len(operands) else None


def _same(node: ir.Node, operands: Operands) -> int | None:
    return operands[0].rank if operands[0] is not None else None


def _gather(node: ir.Node, operands: Operands) -> int | None:
    index = _input(operands, 1)
    fits = _same(node, operands) == 1 and edit.attribute(node, "axis", 0) in (0, -1)
    return index.rank if fits and index is not None else None


def _slice(node: ir.Node, operands: Operands) -> int | None:
    steps = _input(operands, 4)
    fits = _same(node, operands) == 1 and (steps is None or steps.fixed)
    return 1 if fits and all(o is None or o.rank == 1 for o in operands) else None


def _concat(node: ir.Node, operands: Operands) -> int | None:
    return 1 if all(o is not None and o.rank == 1 for o in operands) else None


def _unsqueeze(node: ir.Node, operands: Operands) -> int | None:
    axes = _fixed(node, operands, 1, "axes")
    return 1 if _same(node, operands) == 0 and axes in ([0], [-1], 0, -1) else None


def _squeeze(node: ir.Node, operands: Operands) -> int | None:
    if _same(node, operands) == 0:
        return 0
    if _input(operands, 1) is not None or "axes" in node.attributes:
        return 0 if _fixed(node, operands, 1, "axes") in ([0], [-1]) else None
    length = operands[0].length if operands[0] is not None else None
    return None if length is None else 0 if length == 1 else 1


def _reshape(node: ir.Node, operands: Operands) -> int | None:
    to = _fixed(node, operands, 1)
    return len(to) if isinstance(to, list) and len(to) <= 1 else None


def _expand(node: ir.Node, operands: Operands) -> int | None:
    to, rank = _fixed(node, operands, 1), _same(node, operands)
    small = isinstance(to, list) and len(to) <= 1 and all(0 <= n <= SMALL for n in to)
    return max(rank, len(to)) if small and rank is not None else None


def _tile(node: ir.Node, operands: Operands) -> int | None:
    repeats = _fixed(node, operands, 1)
    return 1 if _same(node, operands) == 1 and isinstance(repeats, list) and repeats[0] <= SMALL else None


def _fill(node: ir.Node, operands: Operands) -> int | None:
    return _expand(node, [Item(0, True, "INT64", 0), operands[0]])


def _range(node: ir.Node, operands: Operands) -> int | None:
    numbers = [o.ref for o in operands if o is not None and o.fixed and o.rank == 0]
    return 1 if len(numbers) == 3 and numbers[2] and len(range(*numbers)) <= SMALL else None


def _reduce(node: ir.Node, operands: Operands) -> int | None:
    axes, rank = _fixed(node, operands, 1, "axes"), _same(node, operands)
    absent = _input(operands, 1) is None and "axes" not in node.attributes
    if (axes is None and not absent) or axes not in (None, [], [0], [-1]) or rank is None:
        return None
    if not axes and edit.attribute(node, "noop_with_empty_axes", 0):
        return rank
    return rank if edit.attribute(node, "keepdims", 1) else 0


_RULES: dict[str, Callable[[ir.Node, Operands], int | None]] = {
    **dict.fromkeys(host.HOST, _broadcast),
    "Gather": _gather, "Slice": _slice, "Concat": _concat, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze,
    "Reshape": _reshape, "Expand": _expand, "Tile": _tile, "ConstantOfShape": _fill, "Range": _range,
    **dict.fromkeys(("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Identity", "Transpose", "Cast"), _same),
    "Shape": lambda *_: 1, "Size": lambda *_: 0,
}  # fmt: skip
