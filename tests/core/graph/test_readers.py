"""Who alone reads a value, and the bias behind a product."""

from __future__ import annotations

import pytest

from graphpress.graph.readers import bias_behind, only_reader, plain_gemm
from tests import kit

HEAD = "c = Constant <value_floats = [1.0, 2.0, 3.0]> () d = Constant <value_floats = [1.0]> () "


def product(body: str, outputs: str = "float[2, 3] y"):
    model = kit.parse(f"g (float[2, 4] x, float[4, 3] w) => ({outputs}) {{ {HEAD} h = MatMul (x, w) {body} }}")
    return next(n for n in model.graph if n.op_type == "MatMul")


@pytest.mark.parametrize(("body", "slot"), [("y = Add (h, c)", 1), ("y = Add (c, h)", 0)])
def test_the_bias_on_either_side(body: str, slot: int) -> None:
    found = bias_behind(product(body), 3)
    assert found is not None and (found[0].op_type, found[1]) == ("Add", slot)


NONE = {
    "one number for all": "y = Add (h, d)",
    "another operator": "y = Sub (h, c)",
    "two readers": "y = Add (h, c) z = Relu (h)",
    "itself": "y = Add (h, h)",
    "computed": "r = Relu (x) e = MatMul (r, w) y = Add (h, e)",
}


@pytest.mark.parametrize("what", NONE)
def test_what_is_no_bias(what: str) -> None:
    assert bias_behind(product(NONE[what]), 3) is None


def test_the_caller_of_the_model_is_a_reader() -> None:
    node = product("y = Add (h, c)", "float[2, 3] y, float[2, 3] h")
    assert bias_behind(node, 3) is None and only_reader(node.outputs[0], "Add") is None


def test_the_slot_that_reads() -> None:
    node = product("y = Sub (c, h)")
    found = only_reader(node.outputs[0], "Add", "Sub")
    assert found is not None and (found[0].op_type, found[1]) == ("Sub", 1)


def test_a_body_is_another_graph() -> None:
    model = kit.parse(f"""g (float[2, 4] x, float[4, 3] w, bool t) => (float[2, 3] y) {{
        {HEAD} e = Constant <value = float[2, 3] {{1, 1, 1, 1, 1, 1}}> () h = MatMul (x, w)
        y = If (t) <
            then_branch = g1 () => (float[2, 3] a) {{ a = Add (h, c) }},
            else_branch = g2 () => (float[2, 3] b) {{ b = Identity (e) }}
        > }}""")
    node = next(n for n in model.graph if n.op_type == "MatMul")
    assert bias_behind(node, 3) is None


@pytest.mark.parametrize(
    ("op", "plain"),
    [
        ("Gemm (x, w, b)", True),
        ("Gemm <transB = 1> (x, w, b)", True),
        ("Gemm <transA = 1> (x, w, b)", False),
        ("Gemm <alpha = 2.0> (x, w, b)", False),
        ("Gemm <beta = 0.5> (x, w, b)", False),
        ("MatMul (x, w)", True),
    ],
)
def test_plain_products(op: str, plain: bool) -> None:
    made = kit.parse(f"g (float[4, 4] x, float[4, 4] w, float[4] b) => (float[4, 4] y) {{ y = {op} }}")
    assert plain_gemm(made.graph[0]) is plain
