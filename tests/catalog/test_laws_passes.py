"""What every pass of the catalog keeps, whatever it does: a new file is held to it by being there."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.backends import ort, reference
from graphpress.context import Context
from graphpress.contracts import Pass
from graphpress.errors import GraphpressError, PassError, RecipeError
from graphpress.graph import text
from graphpress.observe.data import CalibrationData
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, make_pass
from graphpress.target import Target
from graphpress.types import Numerics, Stage
from tests import kit
from tests.catalog import graphs

PASSES = catalog.passes()
# Options that keep the smallest models cheap: laws do not depend on how long a search is.
SHORT = {
    "recover": {"steps": 2}, "train-acm": {"learner_steps": 1, "gate_steps": 1, "steps": 1},
    **{name: {"iterations": 2, "samples": 2} for name in ("zeroq", "genie-d", "dfq-boxes")},
    "permute": {"escapes": 1}, "allocate": {"samples": 4, "measure": 1},
    "apply-plan": {"plan": {"sites": {"node[1] weight": {"dtype": "int8", "granularity": "per_tensor"}}}},
}  # fmt: skip
MOST = {Numerics.EXACT: 1e-5, Numerics.CLOSE: 1e-3}  # of the largest output, at least of 1


def made(name: str) -> Pass:
    known = {f.name for f in dataclasses.fields(PASSES[name])}  # type: ignore[arg-type]
    return make_pass(name, {k: v for k, v in SHORT.get(name, {}).items() if k in known})


def differentiate(*arguments: Any, **options: Any) -> Any:
    from graphpress.backends import fx  # imports torch, which most passes do not need

    return fx.build(*arguments, **options)


def context(model: ir.Model) -> Context:
    """Whatever a pass may want: a target, data, runtimes, torch."""
    feeds = {k: np.concatenate([v] * 4) if v.ndim else v for k, v in kit.random_feeds(model).items()}
    data = CalibrationData.from_arrays(feeds) if all(v.ndim for v in feeds.values()) else None
    return Context(
        target=Target.load("ort-cpu", "x86-64+vnni"), data=data, run=functools.partial(ort.execute, threads=1),
        oracle=reference.execute, differentiate=differentiate, teacher=model.clone(),
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(PASSES))
def test_a_pass_is_a_frozen_dataclass_that_declares_what_it_is(name: str) -> None:
    cls = PASSES[name]
    assert cls.name == name and re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(cls.numerics, Numerics) and cls.needs and all(isinstance(s, Stage) for s in cls.needs)
    assert made(name) == made(name)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_option_has_a_meaning_and_no_meaning_is_of_nothing(name: str) -> None:
    said = set[str]()
    for cls in PASSES[name].__mro__:
        if not issubclass(cls, Pass) and not dataclasses.is_dataclass(cls):
            continue
        _, _, meanings = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
        found = re.findall(r"^ {4}(\w+(?:, \w+)*): \S", meanings, flags=re.MULTILINE)
        said |= {option for names in found for option in names.split(", ")}
    assert said == {f.name for f in dataclasses.fields(PASSES[name])}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(PASSES))
def test_a_wrong_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(RecipeError, match=f"pass '{name}'.*no option 'no_such_option'"):
        make_pass(name, {"no_such_option": 1})
    for field in dataclasses.fields(PASSES[name]):  # type: ignore[arg-type]
        with pytest.raises(GraphpressError, match=field.name):
            make_pass(name, {field.name: [{"nothing": [object]}]})


@pytest.mark.parametrize("name", sorted(PASSES))
def test_a_pass_survives_json_with_every_choice(name: str) -> None:
    kinds = typing.get_type_hints(PASSES[name])
    choices: list[dict[str, object]] = [{}, {k: v for k, v in SHORT.get(name, {}).items() if k in kinds}]
    for field in dataclasses.fields(PASSES[name]):  # type: ignore[arg-type]
        values = (True, False) if kinds[field.name] is bool else typing.get_args(kinds[field.name])
        choices += [{field.name: v} for v in values if isinstance(v, str | int | float)]
    for options in choices:
        try:
            step = make_pass(name, options)
        except GraphpressError:  # a choice that needs another one
            continue
        recipe = Recipe.load([step])
        again = Recipe.load(recipe.to_json())
        assert again.passes == (step,) and again.to_json() == recipe.to_json()


@functools.cache
def truth(kind: str, stage: Stage) -> dict[str, np.ndarray]:
    model = graphs.build(kind, stage)
    return kit.run(model, kit.random_feeds(model))


@pytest.mark.parametrize("name", sorted(PASSES))
def test_the_smallest_models_survive(name: str) -> None:
    """What comes out is a valid model that means the same, if that is promised, and that a second run leaves alone; the
    model that went in is as it was. A refusal is no bug of the pass.
    """
    step = made(name)
    for stage in step.needs:
        for kind in graphs.NAMES:
            place = f"{kind} at {stage}"
            model = graphs.build(kind, stage)
            before, ctx = text.lines(model), context(model)
            try:
                after, (report,) = Pipeline([step]).run(model, ctx)
            except PassError:
                raise
            except GraphpressError:
                continue
            finally:
                assert text.lines(model) == before, f"{place}: the input model was touched"
            said = f"{place}: says it changed {report.changed}"
            assert report.changed or text.lines(after) == before, said
            assert not report.changed or text.state(after) != text.state(model), said  # weights alone, too
            if report.changed:
                onnx.checker.check_model(ir.to_proto(after), full_check=True)
                outputs = kit.run(after, kit.random_feeds(model))
                if step.numerics is not Numerics.LOSSY:
                    _same(outputs, truth(kind, stage), MOST[step.numerics], place)
                    again, (report,) = Pipeline([step]).run(after, ctx)
                    assert report.changed == 0, f"{place}: a second run changes {kit.show(after)} to {kit.show(again)}"


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], most: float, place: str) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=most * max(1, np.abs(value).max()), err_msg=place)


@pytest.mark.parametrize("name", sorted(PASSES))
def test_a_pass_is_found_by_the_name_of_its_file(name: str) -> None:
    assert catalog._in_its_file(name) is catalog.pass_named(name) is PASSES[name]


@pytest.mark.parametrize("name", ["", "no-such-pass", "../errors", "base", "a.b"])
def test_what_is_no_pass_is_not_found(name: str) -> None:
    assert catalog.pass_named(name) is None
