"""Shape arithmetic on the host: Python numbers and flat lists instead of small integer tensors.

Sizes stay symbolic under torch.export and torch.compile, and no device is asked for a number. Each function has the
meaning of the operator of its name in ``HOST`` on integers and booleans of rank 0 (a number) or 1 (a list).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Host: TypeAlias = Any  # int, bool, symbolic, or a list of them


def ints(x: torch.Tensor) -> Host:
    """What a tensor holds, as numbers: where sizes depend on data."""
    return x.tolist()


def tensor(x: Host, dtype: torch.dtype, like: torch.Tensor | None = None) -> torch.Tensor:
    """Numbers as a tensor, on the device of ``like``."""
    return torch.tensor(x, dtype=dtype, device=None if like is None else like.device)


def shape(x: torch.Tensor, *, start: int = 0, end: int | None = None) -> Host:
    return list(x.shape)[start:end]


def size(x: torch.Tensor) -> Host:
    return x.numel()


def gather(x: Host, index: Host, *, axis: int = 0) -> Host:
    return [x[i] for i in index] if isinstance(index, list) else x[index]


def slice_(x: Host, starts: Host, ends: Host, axes: Host = None, steps: Host = None) -> Host:
    return x[starts[0] : ends[0] : steps[0] if steps else 1]


def concat(*parts: Host, axis: int = 0) -> Host:
    return list(itertools.chain.from_iterable(parts))


def unsqueeze(x: Host, axes: Host = None) -> Host:
    return [x]


def squeeze(x: Host, axes: Host = None) -> Host:
    return x[0] if isinstance(x, list) and len(x) == 1 else x


def reshape(x: Host, to: Host, *, allowzero: int = 0) -> Host:
    flat = x if isinstance(x, list) else [x]
    return flat if len(to) else flat[0]


def identity(x: Host, **_: Any) -> Host:
    return x


def product(x: Host, axes: Host = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
    found = math.prod(x)
    return [found] if keepdims else found


def total(x: Host, axes: Host = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
    found = sum(x)
    return [found] if keepdims else found


def fill(shape: Host, *, value: int = 0) -> Host:
    return [value] * shape[0]


def _towards_zero(a: Any, b: Any) -> Any:
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _each(function: Callable[..., Any], *operands: Host) -> Host:
    """Elementwise with broadcasting of numbers and lists of one."""
    lists = [o for o in operands if isinstance(o, list)]
    if not lists:
        return function(*operands)
    length = max(len(o) for o in lists) if all(lists) else 0
    return [function(*row) for row in zip(*(_stretched(o, length) for o in operands), strict=True)]


def _stretched(x: Host, length: int) -> list[Any]:
    x = x if isinstance(x, list) else [x]
    return x * length if len(x) == 1 else x


def _elementwise(name: str, function: Callable[..., Any]) -> Callable[..., Host]:
    def apply(*operands: Host, **_: Any) -> Host:
        return _each(function, *operands)

    apply.__name__ = apply.__qualname__ = name
    return apply


add, subtract = _elementwise("add", operator.add), _elementwise("subtract", operator.sub)
multiply, divide = _elementwise("multiply", operator.mul), _elementwise("divide", _towards_zero)
remainder, negative = _elementwise("remainder", operator.mod), _elementwise("negative", operator.neg)
absolute, integer = _elementwise("absolute", abs), _elementwise("integer", operator.pos)
smallest, largest = _elementwise("smallest", torch.sym_min), _elementwise("largest", torch.sym_max)
equal, less = _elementwise("equal", operator.eq), _elementwise("less", operator.lt)
greater, negation = _elementwise("greater", operator.gt), _elementwise("negation", operator.not_)
less_equal, greater_equal = _elementwise("less_equal", operator.le), _elementwise("greater_equal", operator.ge)
both, either = _elementwise("both", lambda a, b: a and b), _elementwise("either", lambda a, b: a or b)
where = _elementwise("where", lambda c, a, b: a if c else b)

READS_TENSOR: dict[str, Callable[..., Host]] = {"Shape": shape, "Size": size}
HOST: dict[str, Callable[..., Host]] = {
    "Gather": gather, "Slice": slice_, "Concat": concat, "Unsqueeze": unsqueeze, "Squeeze": squeeze,
    "Reshape": reshape, "Cast": integer, "Identity": identity, "ReduceProd": product, "ReduceSum": total,
    "ConstantOfShape": fill, "Where": where, "Add": add, "Sub": subtract, "Mul": multiply, "Div": divide,
    "Mod": remainder, "Neg": negative, "Abs": absolute, "Min": smallest, "Max": largest, "Equal": equal,
    "Less": less, "Greater": greater, "LessOrEqual": less_equal, "GreaterOrEqual": greater_equal,
    "Not": negation, "And": both, "Or": either,
}  # fmt: skip
