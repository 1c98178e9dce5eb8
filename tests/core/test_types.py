"""Types are values: equal when equal, the same after JSON, and they refuse what makes no sense."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.types import PER_TENSOR, Granularity, Plan, Role, Scheme, Site, per_channel, per_group

granularities = st.one_of(
    st.just(PER_TENSOR),
    st.builds(per_channel, st.integers(-3, 3)),
    st.builds(per_group, st.integers(-3, 3), st.sampled_from([16, 64])),
)
schemes = st.builds(
    Scheme,
    dtype=st.sampled_from(["int8", "uint8", "int4", "uint2"]),
    granularity=granularities,
    symmetric=st.booleans(),
)
sites = st.builds(Site, st.text("ab/[]. 0", min_size=1), st.integers(0, 9), st.sampled_from(Role))


@given(st.dictionaries(sites, schemes))
def test_plan_survives_json(entries: dict[Site, Scheme]) -> None:
    plan = Plan(entries, (frozenset(entries),) if len(entries) > 1 else ())
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and hash(again) == hash(plan)


@given(granularities)
def test_granularity_parses_what_it_prints(g: Granularity) -> None:
    assert Granularity.parse(str(g)) == g


def test_plan_algebra() -> None:
    a, b = Site("a", 0, Role.ACTIVATION), Site("b", 1, Role.WEIGHT)
    plan = Plan({a: Scheme("uint8")}).merge(Plan({b: Scheme("int4")}, (frozenset({a, b}),)))
    assert plan.nodes() == ["a", "b"]
    assert plan.of("b") == {b: Scheme("int4")}
    assert plan.without(["b"]) == Plan({a: Scheme("uint8")})
    assert plan.diff(Plan({a: Scheme("int8")})) == {a: (Scheme("uint8"), Scheme("int8")), b: (Scheme("int4"), None)}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Scheme("int9"), "Did you mean"),
        (lambda: Scheme("int8", Granularity.parse("per_token")), "only at run time"),
        (lambda: Granularity.parse("per_chanel:0"), "Did you mean 'per_channel'"),
        (lambda: Granularity.parse("per_group:0"), "group_size"),
        (lambda: Site.parse("conv1"), "not a site"),
    ],
)
def test_refusals_say_the_rule(make, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        make()


@pytest.mark.parametrize(
    ("dtype", "granularity", "opset"),
    [("int8", PER_TENSOR, 13), ("int4", PER_TENSOR, 21), ("int8", per_group(0, 32), 21), ("int2", PER_TENSOR, 25)],
)
def test_lowest_opset(dtype: str, granularity: Granularity, opset: int) -> None:
    assert Scheme(dtype, granularity).opset == opset
