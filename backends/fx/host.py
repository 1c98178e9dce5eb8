"""Shape arithmetic on the host: Python numbers and flat lists instead of small integer tensors.

Sizes stay symbolic under torch.export and torch.compile, and no device is asked for a number. Each function has the
meaning of the operator of its name in ``HOST`` on integers and booleans of rank 0 (a number) or 1 (a list);
``host_nodes`` says which nodes these are.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Host: TypeAlias = Any  # int, bool, symbolic, or a list of them

# -- between tensors and numbers ---------------------------------------------------------------------------------------


def ints(x: torch.Tensor) -> Host:
    """What a tensor holds, as numbers: where sizes depend on data."""
    return x.tolist()


def tensor(x: Host, dtype: torch.dtype, like: torch.Tensor | None = None) -> torch.Tensor:
    """Numbers as a tensor, on the device of ``like``."""
    return torch.tensor(x, dtype=dtype, device=None if like is None else like.device)


def number(x: Host) -> Host:
    """The number, where a list of one may stand for it."""
    return x[0] if isinstance(x, list) else x


def numbers(x: Host) -> Host:
    """The list, where a number may stand for a list of one."""
    return x if isinstance(x, list) else [x]


def shape(x: torch.Tensor | Host, *, start: int = 0, end: int | None = None) -> Host:
    sizes = list(x.shape) if isinstance(x, torch.Tensor) else [len(x)] if isinstance(x, list) else []
    return sizes[start:end]


def size(x: torch.Tensor | Host) -> Host:
    return x.numel() if isinstance(x, torch.Tensor) else len(numbers(x))


# -- movement ----------------------------------------------------------------------------------------------------------


def gather(x: Host, index: Host, *, axis: int = 0) -> Host:
    return [x[i] for i in index] if isinstance(index, list) else x[index]


def slice_(x: Host, starts: Host, ends: Host, axes: Host = None, steps: Host = None) -> Host:
    """A step backwards that starts before the first element starts at the first."""
    start, step = starts[0], steps[0] if steps else 1
    if step < 0 and start < -len(x):
        start = -len(x)
    return x[start : ends[0] : step]


def concat(*parts: Host, axis: int = 0) -> Host:
    return list(itertools.chain.from_iterable(parts))


def unsqueeze(x: Host, axes: Host = None) -> Host:
    return [x]


def squeeze(x: Host, axes: Host = None) -> Host:
    """Of a list of one, the number; the list of another length where no axis says that it is one."""
    if isinstance(x, list) and (axes or len(x) == 1):
        (x,) = x
    return x


def reshape(x: Host, shape: Host, *, allowzero: int = 0) -> Host:
    """To no axis or to one; 0 and -1 are what it is."""
    flat = numbers(x)
    if not shape:
        (flat,) = flat
    elif shape[0] not in (len(flat), -1, 0) or (shape[0] == 0 and allowzero and flat):
        raise ValueError(f"{len(flat)} numbers cannot have shape {shape}")
    return flat


def expand(x: Host, shape: Host) -> Host:
    if not shape or (shape == [1] and isinstance(x, list)):
        return x
    flat = numbers(x)
    if len(flat) not in (1, shape[0]):
        raise ValueError(f"{len(flat)} numbers cannot be expanded to {shape}")
    return flat * shape[0] if len(flat) == 1 else flat


def tile(x: Host, repeats: Host) -> Host:
    return x * repeats[0]


def identity(x: Host, **_: Any) -> Host:
    return x


# -- creation ----------------------------------------------------------------------------------------------------------


def fill(shape: Host, *, value: Any = 0) -> Host:
    return [value] * shape[0] if shape else value


def range_(start: Host, limit: Host, delta: Host) -> Host:
    return list(range(start, limit, delta))


# -- reduction ---------------------------------------------------------------------------------------------------------


def _reduction(name: str, function: Callable[[Any], Any]) -> Callable[..., Host]:
    def reduce(x: Host, axes: Host = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
        if not isinstance(x, list) or (noop_with_empty_axes and not axes):
            return x
        return [function(x)] if keepdims else function(x)

    reduce.__name__ = reduce.__qualname__ = name  # so that generated code can import it
    return reduce


product, total = _reduction("product", math.prod), _reduction("total", sum)
greatest = _reduction("greatest", lambda x: functools.reduce(torch.sym_max, x))
least = _reduction("least", lambda x: functools.reduce(torch.sym_min, x))

# -- elementwise -------------------------------------------------------------------------------------------------------


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
    def apply(*operands: Host) -> Host:
        return _each(function, *operands)

    apply.__name__ = apply.__qualname__ = name
    return apply


def _towards_zero(a: Any, b: Any) -> Any:
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _as_dividend(a: Any, b: Any) -> Any:
    return a - _towards_zero(a, b) * b


def remainder(a: Host, b: Host, *, fmod: int = 0) -> Host:
    """The sign is the divisor's, with ``fmod`` the dividend's."""
    return _each(_as_dividend if fmod else operator.mod, a, b)


def cast(x: Host, *, to: int = 7, **_: Any) -> Host:
    """To truth (9 among ONNX's types) or to an integer."""
    return _each(_truth if to == _BOOL else _integer, x)


_BOOL = 9


def _truth(x: Any) -> Any:
    return x != 0


def _integer(x: Any) -> Any:
    return (1 if x else 0) if isinstance(x, bool | torch.SymBool) else x


add, subtract = _elementwise("add", operator.add), _elementwise("subtract", operator.sub)
multiply, divide = _elementwise("multiply", operator.mul), _elementwise("divide", _towards_zero)
negative, absolute = _elementwise("negative", operator.neg), _elementwise("absolute", abs)
sign = _elementwise("sign", lambda x: (x > 0) - (x < 0))
smallest = _elementwise("smallest", lambda *xs: functools.reduce(torch.sym_min, xs))
largest = _elementwise("largest", lambda *xs: functools.reduce(torch.sym_max, xs))
equal, less = _elementwise("equal", operator.eq), _elementwise("less", operator.lt)
greater, negation = _elementwise("greater", operator.gt), _elementwise("negation", operator.not_)
less_equal, greater_equal = _elementwise("less_equal", operator.le), _elementwise("greater_equal", operator.ge)
both, either = _elementwise("both", lambda a, b: a and b), _elementwise("either", lambda a, b: a or b)
unequal = _elementwise("unequal", operator.ne)
where = _elementwise("where", lambda c, a, b: a if c else b)

READS_TENSOR: dict[str, Callable[..., Host]] = {"Shape": shape, "Size": size}
HOST: dict[str, Callable[..., Host]] = {
    "Gather": gather, "Slice": slice_, "Concat": concat, "Unsqueeze": unsqueeze, "Squeeze": squeeze,
    "Reshape": reshape, "Expand": expand, "Tile": tile, "Identity": identity, "Transpose": identity,
    "ConstantOfShape": fill, "Range": range_, "Cast": cast, "ReduceProd": product, "ReduceSum": total,
    "ReduceMax": greatest, "ReduceMin": least, "Where": where, "Add": add, "Sub": subtract, "Mul": multiply,
    "Div": divide, "Mod": remainder, "Neg": negative, "Abs": absolute, "Sign": sign, "Min": smallest, "Max": largest,
    "Equal": equal, "Less": less, "Greater": greater, "LessOrEqual": less_equal, "GreaterOrEqual": greater_equal,
    "Not": negation, "And": both, "Or": either, "Xor": unequal,
}  # fmt: skip
