"""What move-qdq weighs: conversions before and behind, integer kernels that take them in, and what it leaves alone."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphpress.keys import SCOPE
from graphpress.passes.fold.move_qdq import MoveQdq
from tests.kit import apply, assert_same_outputs, assert_same_structure, ops, parse

GRID = "float s = {0.02}, uint8 z = {128}"


def test_a_concat_of_floats_is_quantized_behind_it_once_and_not_before_it_twice() -> None:
    text = f"""g (float[2,4] x) => (float[4,4] y) <{GRID}> {{
        a = Neg(x)  b = Abs(x)  c = Concat<axis = 0>(a, b)  q = QuantizeLinear(c, s, z)
        y = DequantizeLinear(q, s, z) }}"""
    after, [report] = apply(parse(text), MoveQdq())
    assert report.changed == 0
    assert_same_structure(after, parse(text))


HALVES = f"""
g (float[1,4,3,3] x, float[4,4] u) => (float[?] a, float[?] b)
<{GRID}, int8[2,2,1,1] w = {{100, -70, 3, 9}}, float[2] t = {{0.01, 0.02}}, float[2] bias = {{0.3, -0.4}}, int8[3,3] m =
 {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, float r = {{0.01}}, float[3,3] f = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis = 0>(w, t)
    n = DequantizeLinear(m, r)
    g = Mul(f, f)
    left, right = Split<axis = 1, num_outputs = 2>(d)
    BODY
}}
"""
INTEGER_CONVS = "c = Conv(left, k, bias)  e = Conv(right, k, bias)"
QUANTIZED = """i = QuantizeLinear(c, s, z) a = DequantizeLinear(i, s, z)
    j = QuantizeLinear(e, s, z) b = DequantizeLinear(j, s, z)"""


@pytest.mark.parametrize(
    ("body", "moved", "before", "after"),
    [
        # One DQ before a Split is better than two behind it, where those are work; an integer kernel takes them in.
        (f"{INTEGER_CONVS} {QUANTIZED}", 1, 6, 3),
        (f"{INTEGER_CONVS} a = Relu(c) b = Relu(e)", 0, 2, 2),  # no Q behind, which this kernel needs
        ("c = MatMul(left, n)  e = MatMul(right, n)  a = Neg(c) b = Neg(e)", 1, 2, 1),  # and this one does not
        ("v = Neg(f) c = MatMul(left, v)  e = MatMul(right, v)  a = Neg(c) b = Neg(e)", 0, 2, 2),  # computed floats
    ],
)
def test_a_split_goes_to_integers_where_integer_kernels_read_its_parts(
    body: str, moved: int, before: int, after: int
) -> None:
    model = parse(HALVES.replace("BODY", body))
    for out in model.graph.outputs:
        out.shape = None
    made, [report] = apply(model, MoveQdq())
    assert report.changed == moved
    assert report.metrics == {"conversions before": before, "conversions after": after}
    assert_same_outputs(model, made)


PARTS = f"""
g (float[3,4] x) => (OUT) <{GRID}> {{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k, l, m = Split<axis = 0, num_outputs = 3>(d)
    BODY
}}
"""


def test_of_choices_that_cost_the_same_the_one_with_most_operators_on_integers() -> None:
    """One DQ before the Split and one Q behind it, or two DQ behind it: a Q and a DQ count alike."""
    body = "a = Neg(k) b = Neg(l) c = QuantizeLinear(m, s, z)"
    before = parse(PARTS.replace("OUT", "float[1,4] a, float[1,4] b, uint8[1,4] c").replace("BODY", body))
    after, [report] = apply(before, MoveQdq())
    assert report.changed == 1 and report.metrics == {"conversions before": 3, "conversions after": 3}
    assert ops(after)[:2] == ["QuantizeLinear", "Split"]
    assert_same_outputs(before, after)


def test_no_conversion_is_left_behind_what_nobody_reads() -> None:
    before = parse(PARTS.replace("OUT", "uint8[1,4] c").replace("BODY", "c = QuantizeLinear(k, s, z)"))
    after, _ = apply(before, MoveQdq())
    assert ops(after) == ["QuantizeLinear", "Split"]


def test_a_clip_stands_where_the_relu_stood_in_the_users_code() -> None:
    before = parse(f"g (float[4] x) => (uint8[4] y) <{GRID}> {{ r = Relu(x) y = QuantizeLinear(r, s, z) }}")
    before.graph.node(0).metadata_props[SCOPE] = "block.act"
    after, _ = apply(before, MoveQdq())
    assert [(n.op_type, n.metadata_props.get(SCOPE)) for n in after.graph] == [
        ("QuantizeLinear", None), ("Clip", "block.act"),
    ]  # fmt: skip


@pytest.mark.parametrize("op", ["Transpose", "Relu"])
def test_a_function_stays_as_it_is(op: str) -> None:
    """It has no initializers: its scales are nodes, and stand where they stand."""
    model = parse(f"""<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
g (float[4,4] x) => (float[4,4] y) {{ y = acme.Moves(x) }}
<domain: "acme", opset_import: ["" : 21]>
Moves (x) => (y) {{
    s = Constant <value = float {{0.02}}> ()  z = Constant <value = uint8 {{128}}> ()
    t = {op}(x)  q = QuantizeLinear(t, s, z)  y = DequantizeLinear(q, s, z)
}}""")
    (function,) = model.functions.values()
    for value in [*function.inputs, *(o for node in function for o in node.outputs)]:  # types, as inference leaves them
        value.type = ir.TensorType(ir.DataType.UINT8 if value.name in ("q", "z") else ir.DataType.FLOAT)
        value.shape = ir.Shape([] if value.name in ("s", "z") else [4, 4])
    after, [report] = apply(model, MoveQdq())
    assert report.changed == 0
    assert_same_structure(after, model)
