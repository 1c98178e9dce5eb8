"""Context.need: the thing, or one sentence that says who needs it and how to give it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from graphpress.context import Context
from graphpress.errors import BadRequest

NEEDED = ("target", "data", "run", "oracle", "differentiate", "deploy", "evaluate", "teacher")


@pytest.mark.parametrize("what", NEEDED)
def test_need_gives_what_is_there(what: str) -> None:
    thing = object()
    assert dataclasses.replace(Context(), **{what: thing}).need(what, "gptq") is thing  # type: ignore[call-overload]


@pytest.mark.parametrize("what", NEEDED)
def test_need_of_what_is_missing_names_the_pass_and_the_way_out(what: str) -> None:
    with pytest.raises(BadRequest) as e:
        Context().need(what, "gptq")  # type: ignore[call-overload]
    assert re.fullmatch(r"gptq: needs [^.]+\. .+\.", str(e.value))
    assert "None" not in str(e.value)


def test_need_says_why_and_what_else_could_be_done() -> None:
    with pytest.raises(BadRequest) as e:
        Context().need("data", "prune: option 'method'", "wanda needs calibration data", "choose method: magnitude")
    assert str(e.value) == (
        "prune: option 'method': wanda needs calibration data. Give data (--data), or choose method: magnitude."
    )


def test_all_that_may_be_none_can_be_needed() -> None:
    optional = {f.name for f in dataclasses.fields(Context) if f.default is None}
    assert optional - {"calibrate", "lower", "state"} == set(NEEDED)  # without these there is another way
