"""Plans that people edit: every mistake is named by site and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress import plan_file
from graphpress.errors import BadRequest
from graphpress.recipe import make_pass
from graphpress.types import Granularity, Kind, Plan, Role, Scheme, Site

SITE = "conv[1] weight"
SCHEME = {"dtype": "int8", "granularity": "per_channel:0"}

schemes = st.builds(
    Scheme,
    dtype=st.sampled_from(["int8", "uint8", "int4"]),
    granularity=st.sampled_from([Granularity(), Granularity(Kind.CHANNEL, 0), Granularity(Kind.GROUP, 1, 32)]),
    symmetric=st.booleans(),
    observer=st.sampled_from(["minmax", "mse"]),
)
sites = st.builds(Site, st.sampled_from(["a", "b/c", "d[0]"]), st.integers(0, 3), st.sampled_from(list(Role)))


@settings(max_examples=20)
@given(st.dictionaries(sites, schemes, max_size=6))
def test_what_a_plan_says_of_itself_is_read_again(known: dict[Site, Scheme]) -> None:
    plan = Plan(known, (frozenset(known),) if len(known) > 1 else ())
    assert plan_file.read(json.loads(str(plan)), "p.json") == plan


BAD: list[tuple[Any, str]] = [
    ([], "^p.json: has no mapping 'sites'. Write one with `graphpress plan show"),
    ({"sites": [SITE]}, "has no mapping 'sites'"),
    ({"sites": {"conv": SCHEME}}, r"^p.json: 'conv' is not a site. Write it as"),
    ({"sites": {SITE: "int8"}}, r"^p.json: site 'conv\[1\] weight': 'int8' is no scheme. Write"),
    ({"sites": {SITE: SCHEME | {"dtype": "int9"}}}, r"site 'conv\[1\] weight'.*int9"),
    (
        {"sites": {SITE: SCHEME | {"dtyp": "int8"}}},
        r"site 'conv\[1\] weight': it has no option 'dtyp'. Did you mean 'dtype'",
    ),
    ({"sites": {SITE: SCHEME | {"symmetric": "maybe"}}}, r"site 'conv\[1\] weight': option 'symmetric'"),
    ({"sites": {SITE: SCHEME | {"granularity": "per_row"}}}, r"site 'conv\[1\] weight', field 'granularity': unknown"),
    ({"sites": {SITE: SCHEME | {"granularity": 0}}}, r"field 'granularity': 0 is none"),
    ({"sites": {SITE: SCHEME | {"granularity": "per_token"}}}, r"site 'conv\[1\] weight': per_token scales exist only"),
    ({"sites": {SITE: SCHEME}, "ties": SITE}, "its 'ties' are no list of lists"),
    ({"sites": {SITE: SCHEME}, "ties": [[SITE, "fc[1] weight"]]}, r"^p.json: ties: 'fc\[1\] weight' has no scheme"),
    ({"sites": {SITE: SCHEME}, "ties": [["fc"]]}, "^p.json: ties: 'fc' is not a site"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_what_is_wrong_is_named_by_site_and_field(data: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        plan_file.read(data, "p.json")


def test_a_recipe_that_holds_a_plan_says_the_same(tmp_path: Path) -> None:
    wrong = {"sites": {SITE: SCHEME | {"dtyp": "int8"}}}
    with pytest.raises(Exception, match=r"option 'plan'.*site 'conv\[1\] weight': it has no option 'dtyp'"):
        make_pass("apply-plan", {"plan": wrong})
