"""What is no pass of the catalog, as one: passes of onnx_ir, rules of onnxscript, what a user's own module holds."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import RecipeError, Unsupported, nearest
from graphpress.graph import edit
from graphpress.graph.rules import RulePass
from graphpress.types import Numerics

Step: TypeAlias = Any  # a Pass, a pass of onnx_ir, or a RewriteRule, a set of them or a rule class of onnxscript


@dataclass(frozen=True)
class OnnxIrPass(Pass):
    """A pass of onnx_ir, which promises the same function.

    Attributes:
        step: An instance that works in place.
        source: ``module:Name`` that it was made by, if any.
        given: The arguments that it was made with.
    """

    step: ir.passes.PassBase
    source: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "onnx-ir"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", type(self.step).__name__)  # this one's own
        if not self.step.in_place:
            raise Unsupported("only in-place passes of onnx_ir can stand in a pipeline", where=self.name)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        report.changed = int(self.step(model).modified)
        edit.index(model)

    def options(self) -> dict[str, Any]:
        return dict(self.given)


@dataclass(frozen=True)
class Rules(RulePass):
    """Rules of onnxscript as they are.

    Attributes:
        given: RewriteRules.
        source: ``module:Name`` that they were found by, if any.
    """

    given: tuple[Any, ...]
    source: str = ""

    name: ClassVar[str] = "onnxscript-rules"

    def rules(self) -> Iterable[Any]:
        return self.given

    def options(self) -> dict[str, Any]:
        return {}


def as_pass(step: Step) -> Pass:
    """A pass itself, or what is wrapped into one.

    Raises:
        RecipeError: It is neither a pass nor a rule.
        Unsupported: A pass of onnx_ir that makes a new model.
    """
    if isinstance(step, Pass):
        return step
    if isinstance(step, ir.passes.PassBase):
        return OnnxIrPass(step)
    if (rules := _rules(step)) is not None:
        return Rules(rules)
    kind = f"the class {step.__name__}" if inspect.isclass(step) else f"a {type(step).__name__}"
    raise RecipeError(
        f"{kind} is no pass",
        where="passes",
        fix="Give instances of graphpress.Pass, passes of onnx_ir, or rewrite rules of onnxscript.",
    )


def _rules(step: Step) -> tuple[Any, ...] | None:
    """The rules of a rule, a set or a rule class of onnxscript, which is imported where there is one; else None."""
    pattern = sys.modules.get("onnxscript.rewriter.pattern")
    if pattern is None:
        return None
    if inspect.isclass(step) and issubclass(step, pattern.RewriteRuleClassBase):
        rule_class: Any = step
        return (rule_class.rule(),)
    if isinstance(step, pattern.RewriteRuleSet):
        return tuple(step)
    return (step,) if isinstance(step, pattern.RewriteRule) else None


def imported(name: str, place: str) -> Step:
    """What ``module:Name`` names: a class of passes, a pass or a rule.

    Raises:
        RecipeError: There is no such module, or nothing of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as e:  # whatever a user's module does while it is loaded
        missing = isinstance(e, ModuleNotFoundError) and f"{module_name}.".startswith(f"{e.name}.")
        why = f"there is no module {module_name!r}" if missing else f"{module_name} fails: {type(e).__name__}: {e}"
        fix = "Put its folder on PYTHONPATH, or run beside it." if missing else ""
        raise RecipeError(why, where=place, fix=fix) from e
    if not hasattr(module, attribute):
        raise RecipeError(f"{module_name} has no {attribute!r}", where=place, fix=nearest(attribute, vars(module)))
    return getattr(module, attribute)


def made(name: str, options: Mapping[str, Any], place: str) -> type[Pass] | Pass:
    """The class of passes of a user's module, or a pass made of what else ``module:Name`` names.

    Raises:
        RecipeError: As ``imported``; or it is no pass; or options for what has none.
    """
    found = imported(name, place)
    if inspect.isclass(found) and issubclass(found, Pass):
        return found
    if inspect.isclass(found) and issubclass(found, ir.passes.PassBase):
        try:
            return OnnxIrPass(found(**options), name, dict(options))
        except TypeError as e:
            raise RecipeError(str(e), where=place) from e
    if options:
        raise RecipeError("it has no options", where=place)
    step = as_pass(found)
    return replace(step, source=name) if isinstance(step, OnnxIrPass | Rules) else step


def known_as(step: Pass, catalog: Mapping[str, type[Pass]]) -> str:
    """The name by which a recipe has a pass: that of the catalog, or ``module:Class``."""
    if catalog.get(step.name) is type(step):
        return step.name
    if isinstance(step, OnnxIrPass | Rules):
        return step.source or step.name
    return f"{type(step).__module__}:{type(step).__qualname__}"
