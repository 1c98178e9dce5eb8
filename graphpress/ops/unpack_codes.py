"""``graphpress::UnpackCodes(low, high) -> codes``: codes of at most 8 values stored densely, wide again once loaded.

The planes are those of ``dense_codes``. ONNX Runtime folds the body at load; what it makes on the way are bytes, not
wider integers, but for the last steps.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphpress.graph import edit
from graphpress.ops.base import Op, expect
from graphpress.ops.dense_codes import NIBBLE, Dense, powers

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

TYPES = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


def attributes(dense: Dense, dtype: ir.DataType) -> dict[str, Any]:
    """Those of a node that gives what was packed, in a type of codes."""
    return {
        "powers": powers(dense.base).tolist(), "base": dense.base,
        "high_powers": powers(dense.high_base).tolist(), "high_base": dense.high_base,
        "weights": [dense.step * p for p in _places(dense.nibbles)],
        "lowest": dense.lowest * sum(_places(dense.nibbles)), "shape": list(dense.shape), "dtype": dtype.value,
    }  # fmt: skip


def read(node: ir.Node) -> Dense:
    """What a node of constants holds."""
    low, high = (edit.constant(v) for v in node.inputs)
    assert low is not None and high is not None
    base, high_base, lowest = (int(edit.attribute(node, n)) for n in ("base", "high_base", "lowest"))
    weights, shape = edit.attribute(node, "weights"), edit.attribute(node, "shape")
    lowest //= sum(_places(len(weights)))
    return Dense(low, high, base, high_base, lowest, weights[0], len(weights), tuple(shape))


def _places(nibbles: int) -> list[int]:
    return [NIBBLE**i for i in range(nibbles)]


# Names are short: small files carry it too. Digits of each byte, plane by plane; what lies in one element joined.
_TEXT = """<domain: "graphpress", opset_import: ["" : 21]>
UnpackCodes <powers, base, high_powers, high_base, weights, lowest, shape, dtype> (low, high) => (y) {
    o = Constant <value_ints = [0]> ()
    i = Constant <value_ints = [1]> ()
    n = Constant <value_ints = [-1]> ()
    s = Constant <value_ints: ints = @shape> ()
    w = Constant <value_ints: ints = @weights> ()
    v = Shape (w)
    t = ReduceProd <keepdims = 1> (s)
    k = Mul (t, v)
    p = Constant <value_ints: ints = @powers> ()
    b = Constant <value_int: int = @base> ()
    p8 = Cast <to = 2> (p)
    b8 = Cast <to = 2> (b)
    c = Unsqueeze (low, i)
    d = Div (c, p8)
    e = Mod (d, b8)
    f = Reshape (e, n)
    g = Slice (f, o, k)
    hp = Constant <value_ints: ints = @high_powers> ()
    hb = Constant <value_int: int = @high_base> ()
    hp8 = Cast <to = 2> (hp)
    hb8 = Cast <to = 2> (hb)
    hc = Unsqueeze (high, i)
    hd = Div (hc, hp8)
    he = Mod (hd, hb8)
    hf = Reshape (he, n)
    hg = Slice (hf, o, k)
    hm = Mul (hg, b8)
    a = Add (g, hm)
    r = Concat <axis = 0> (v, n)
    m = Reshape (a, r)
    w8 = Cast <to = 2> (w)
    w2 = Unsqueeze (w8, o)
    j = MatMulInteger (w2, m)
    l = Constant <value_int: int = @lowest> ()
    l6 = Cast <to = 6> (l)
    u = Add (j, l6)
    x = Reshape (u, s)
    y = Cast <to: int = @dtype> (x)
}"""


@cache
def _body() -> Any:
    """As a protobuf."""
    import onnx.parser

    return onnx.parser.parse_function(_TEXT)


def _verify(node: ir.Node) -> None:
    expect(node, len(node.inputs) == 2 and len(node.outputs) == 1, "takes two planes, gives the codes")
    planes = [edit.constant_tensor(v) for v in node.inputs]
    expect(node, all(p is not None and p.dtype == ir.DataType.UINT8 for p in planes), "the planes are constant bytes")
    shape, weights = edit.attribute(node, "shape"), list(edit.attribute(node, "weights") or ())
    expect(node, bool(shape) and min(shape) > 0, "'shape' has elements")
    spaced = [[s * p for p in _places(n)] for n in (1, 2) for s in (1, 2)]
    expect(
        node, weights in spaced, "'weights' are what lies between codes: 1 or 2, and 16 of them for the upper of two"
    )
    count = math.prod(shape) * len(weights)
    for plane, base, digits in zip(planes, ("base", "high_base"), ("powers", "high_powers"), strict=True):
        values, places = edit.attribute(node, base), list(edit.attribute(node, digits) or ())
        known = isinstance(values, int) and 1 <= values <= 4 and places == powers(values).tolist()
        expect(node, known, f"{base!r} is 1 to 4, and {digits!r} are its powers, those that a byte holds")
        assert plane is not None
        wanted = 1 if values == 1 else -(-count // len(places))
        expect(node, plane.size == wanted, f"holds {plane.size} bytes where {wanted} hold {count} codes")
    expect(node, isinstance(edit.attribute(node, "lowest"), int), "'lowest' is what codes begin at")
    dtype = edit.attribute(node, "dtype")
    expect(node, dtype in [t.value for t in TYPES], "'dtype' is a type of codes of 4 or 8 bits")
    given = node.outputs[0].dtype
    expect(node, given in (None, ir.DataType(dtype)), f"gives {ir.DataType(dtype)}, not {given}")


def _kernel() -> Callable[..., Any]:
    import torch

    def plane(packed: torch.Tensor, counts: list[int], base: int) -> torch.Tensor:
        return (packed.to(torch.int64).unsqueeze(1) // torch.tensor(counts, device=packed.device) % base).reshape(-1)

    def unpack_codes(
        low: torch.Tensor, high: torch.Tensor, powers: list[int], base: int, high_powers: list[int], high_base: int,
        weights: list[int], lowest: int, shape: list[int], dtype: int,
    ) -> torch.Tensor:  # fmt: skip
        count = math.prod(shape) * len(weights)
        digits = plane(low, powers, base)[:count] + base * plane(high, high_powers, high_base)[:count]
        joined = torch.tensor(weights, device=low.device) @ digits.reshape(len(weights), -1) + lowest
        wide = torch.uint8 if ir.DataType(dtype) in (ir.DataType.UINT4, ir.DataType.UINT8) else torch.int8
        return joined.reshape(list(shape)).to(wide)

    return unpack_codes


def _function() -> ir.Function:
    found = ir.serde.deserialize_function(_body())
    for node in found:
        node.name = node.outputs[0].name
    return found


OP = Op("UnpackCodes", _function, 21, _verify, _kernel)
