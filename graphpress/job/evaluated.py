"""What a model is measured by: a function, one of a user's module by name, or a metric that is known by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from graphpress import catalog
from graphpress.errors import BadRequest, GraphpressError, nearest
from graphpress.imported import failure, imported
from graphpress.job.metric import Evaluate
from graphpress.observe.data import CalibrationData
from graphpress.recipe import parse_options
from graphpress.runner import Runner

EvaluateLike: TypeAlias = Evaluate | str | None

_OUT = "Return one number, higher is better."


@dataclass(frozen=True)
class Own:
    """A user's own measure, whose answer is checked.

    Attributes:
        function: Of a runner: named arrays in, named arrays out.
        name: ``module:function``, where it was found by name; what fails in it is then one sentence.
    """

    function: Callable[[Runner], Any]
    name: str = ""

    def __call__(self, runner: Runner) -> float:
        """Its answer.

        Raises:
            BadRequest: It fails (if it has a name), or gives no number.
        """
        where = f"evaluate {self.name!r}" if self.name else "evaluate"
        try:
            found = self.function(runner)
        except GraphpressError:
            raise
        except Exception as e:
            if not self.name:
                raise
            raise BadRequest(f"fails{failure(e)}", where=where) from e
        try:
            value = float(found)
        except (TypeError, ValueError) as e:
            raise BadRequest(f"gives a {type(found).__name__}, not a number", where=where, fix=_OUT) from e
        if not math.isfinite(value):
            raise BadRequest(f"gives {value}", where=where, fix=_OUT)
        return value


@dataclass(frozen=True)
class Asked:
    """What to measure by, before there are samples held out for it.

    Attributes:
        own: A function.
        metric: One that is known by name, with its options.
    """

    own: Own | None = None
    metric: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of the data that are no inputs."""
        return self.metric.reads if self.metric is not None else ()

    def on(self, data: CalibrationData | None) -> Evaluate | None:
        """The measure, on these samples.

        Raises:
            BadRequest: It needs samples and there are none, or has no such option.
            CalibrationError: The data have no labels.
        """
        if self.metric is None:
            return self.own
        if data is None:
            fix = "Give data with labels (--data)."
            raise BadRequest("needs samples", where=f"metric {self.metric.name!r}", fix=fix)
        return self.metric.on(data, self.options)


def asked(evaluate: EvaluateLike) -> Asked:
    """What is meant.

    Args:
        evaluate: A function of a runner; ``module:function``, found from the working folder; or the name of a metric,
            with options as ``wer{vocabulary=vocab.json}``; None for none.

    Raises:
        RecipeError: There is no such module, it fails while it is loaded, or nothing of that name is in it.
        BadRequest: It is no function of one argument, or no metric of that name.
    """
    if evaluate is None:
        return Asked()
    if not isinstance(evaluate, str):
        if not callable(evaluate):
            raise BadRequest(f"a {type(evaluate).__name__} is no function", where="evaluate", fix=_forms())
        return Asked(Own(evaluate))
    name, brace, rest = evaluate.partition("{")
    if ":" in name:
        return Asked(Own(_function(name), name))
    known = catalog.metrics()
    if name not in known:
        fix = f"{nearest(name, known)} {_forms()}"
        raise BadRequest("there is no such metric", where=f"evaluate {name!r}", fix=fix)
    if brace and not rest.endswith("}"):
        raise BadRequest("the brace is not closed", where=f"evaluate {evaluate!r}")
    return Asked(metric=known[name], options=parse_options(rest[:-1], f"metric {name!r}") if brace else {})


def _forms() -> str:
    return "Give a function of a runner, as module:function from the working folder, or the name of a metric."


def _function(name: str) -> Callable[[Runner], Any]:
    place = f"evaluate {name!r}"
    found = imported(name, place)
    if not callable(found):
        raise BadRequest(f"is a {type(found).__name__}, no function", where=place, fix=_OUT)
    try:
        inspect.signature(found).bind(None)
    except TypeError as e:
        what = "it is called with one argument, a runner: named arrays in, named arrays out"
        raise BadRequest(what, where=place, fix=_OUT) from e
    except ValueError:
        pass  # built in: it does not say what it takes
    return found
