"""What there is to decide: formats, groups, and that a uniform choice is the plan of ``quantize``."""

from __future__ import annotations

import pytest

from graphpress.errors import BadRequest
from graphpress.passes.allocate import formats
from graphpress.passes.allocate.space import explore
from graphpress.passes.allocate.ties import KINDS
from graphpress.passes.quantize.plan import make_plan
from graphpress.types import Role
from tests.passes import allocating, quantizing


def test_names_of_formats_mean_options_and_others_are_refused() -> None:
    assert formats.parse("w8a8").mode == "static"
    assert formats.parse("w8a8-token").activation_granularity == "per_token"
    four = formats.parse("w4a16-g128-asym")
    assert (four.mode, four.weight, four.weight_granularity, four.group_size) == ("weight", "uint4", "per_group", 128)
    assert (formats.parse("w3a16-tlq").weight, formats.parse("w3a16-tlq").quantizer) == ("int3", "tlq")
    assert formats.parse("w4a16-g16-nvfp4").group_size == 16
    assert (formats.parse("w8a8-float8").weight, formats.parse("w8a8-float8").activation) == ("float8e4m3fn",) * 2
    assert formats.parse("w8a16-float8").activation is None
    for bad in ("w5a8", "w3a16-asym", "w4a8-float8", "w8a8-token-float8", "w8a16-dynamic", "W8A8", "float8"):
        with pytest.raises(BadRequest, match="is no format"):
            formats.parse(bad)
    with pytest.raises(BadRequest, match="Did you mean 'w8a8-dynamic'"):
        formats.parse("w8a8-dynamc")
    with pytest.raises(BadRequest, match="group_size"):
        formats.parse("w4a16-g100")


@pytest.mark.parametrize("name", ["w3a16-tlq", "w4a16-points", "w4a16-g32-mxfp4", "w4a16-g16-nvfp4", "w2a16-g64-fdb"])
def test_every_number_format_is_a_candidate(name: str) -> None:
    model, quantizer = allocating.residual(), name.rpartition("-")[2]
    space = explore(model, allocating.TARGET, ("w8a16", name), (), KINDS)
    choice = {n: name for n in space.own if name in space.own[n]}
    plan, _ = make_plan(model, allocating.TARGET, formats.parse(name))
    assert choice and dict(space.plan(choice)) == dict(plan)
    assert {s.quantizer for s in plan.values()} == {quantizer}


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w8a16", "w4a16-asym"])
def test_a_uniform_choice_is_the_plan_that_quantize_makes(name: str) -> None:
    model = allocating.residual()
    space = explore(model, allocating.TARGET, allocating.FORMATS, (), KINDS)
    choice = {n: name for n in space.own if name in space.own[n]}
    plan, _ = make_plan(model, allocating.TARGET, formats.parse(name))
    mine = space.plan(choice)
    assert dict(mine) == dict(plan)
    assert mine.ties == plan.ties


def test_a_mixed_choice_writes_each_operator_in_its_format_and_no_other() -> None:
    space = explore(allocating.residual(), allocating.TARGET, allocating.FORMATS, (), ())
    plan = space.plan({"stem": "w8a8", "first": "w4a8", "second": "w4a16-asym", "head": "float"})
    weights = {s.node: v.dtype for s, v in plan.items() if s.role is Role.WEIGHT}
    assert weights == {"stem": "int8", "first": "int4", "second": "uint4"}
    assert {s.node for s in plan if s.role is Role.ACTIVATION} == {"stem", "first"}  # the Add reads one float
    assert "head" not in plan.nodes()


def test_operators_that_share_are_one_decision() -> None:
    space = explore(allocating.residual(), allocating.TARGET, allocating.FORMATS, (), KINDS)
    assert [g.nodes for g in space.groups] == [("stem", "second"), ("first",), ("head",)]  # they meet in the Add
    apart = explore(allocating.residual(), allocating.TARGET, allocating.FORMATS, (), ("inputs", "weights"))
    assert [g.nodes for g in apart.groups] == [("stem",), ("first",), ("second",), ("head",)]
    assert all(g.formats[0] == "float" for g in space.groups)


SHARED = """
g (float[N, 4] x, float[4, 8] w, float[4, 8] v) => (float[N, 16] y, float[N, 8] z) {
    [a] p = MatMul(x, w)
    [b] q = MatMul(x, v)
    [cat] y = Concat<axis = 1>(p, q)
    [h] h = Exp(x)
    [c] z = MatMul(h, w)
}
"""


@pytest.mark.parametrize(
    ("kinds", "groups"),
    [((), [("a",), ("b",), ("c",)]), (("inputs",), [("a", "b"), ("c",)]), (("weights",), [("a", "c"), ("b",)]),
     (KINDS, [("a", "b", "c")])],
)  # fmt: skip
def test_inputs_and_weights_tie(kinds: tuple[str, ...], groups: list[tuple[str, ...]]) -> None:
    model = quantizing.model(SHARED, {"w": quantizing.normal(4, 8), "v": quantizing.normal(4, 8, seed=1)})
    space = explore(model, allocating.TARGET, ("w8a8", "w8a16"), (), kinds)
    assert [g.nodes for g in space.groups] == groups


def test_outputs_that_a_concat_ties_are_one_decision() -> None:
    text = """
    g (float[1, 3, 8, 8] x, float[4, 3, 1, 1] w, float[4, 3, 1, 1] v, float[2, 8, 1, 1] u) => (float[1, 2, 8, 8] y) {
        [a] p = Conv(x, w)
        [b] q = Conv(x, v)
        [cat] c = Concat<axis = 1>(p, q)
        [last] y = Conv(c, u)
    }
    """
    arrays = {"w": (4, 3, 1, 1), "v": (4, 3, 1, 1), "u": (2, 8, 1, 1)}
    model = quantizing.model(text, {n: quantizing.normal(*s, seed=i) for i, (n, s) in enumerate(arrays.items())})
    space = explore(model, allocating.TARGET, ("w8a8",), (), ("scales",))
    assert [g.nodes for g in space.groups] == [("a", "b"), ("last",)]


def test_bad_requests_are_named() -> None:
    model = allocating.residual()
    with pytest.raises(BadRequest, match="Did you mean 'residual'"):
        explore(model, allocating.TARGET, ("w8a8",), (), ("residuals",))
    with pytest.raises(BadRequest, match="matches no node"):
        explore(model, allocating.TARGET, ("w8a8",), ("nothing",), ())
    with pytest.raises(BadRequest, match="no operator can take any"):
        explore(model, allocating.TARGET, ("w8a8-dynamic",), ("head",), ())
    space = explore(model, allocating.TARGET, ("w8a8",), ("st*",), ())
    assert "stem" not in space.own
    assert any(s.where == "stem" and "ignored" in s.why for s in space.skips)
