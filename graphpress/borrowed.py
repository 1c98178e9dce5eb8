"""What is no pass of the catalog, as one: passes of onnx_ir, rules of onnxscript, what a user's own module holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import onnx_ir as ir

from graphpress import catalog
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import RecipeError, Unsupported
from graphpress.graph import edit
from graphpress.graph.rules import RulePass
from graphpress.imported import imported
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


def as_pass(step: Step, place: str = "passes") -> Pass:
    """A pass itself, or what is wrapped into one.

    Raises:
        RecipeError: It is neither a pass nor a rule.
        Unsupported: A pass of onnx_ir that makes a new model.
    """
    if isinstance(step, Pass):
        return step
    if rules := _rules(step):
        return Rules(rules)
    if isinstance(step, ir.passes.PassBase):
        return OnnxIrPass(step)
    kind = f"the class {step.__name__}" if inspect.isclass(step) else f"a {type(step).__name__}"
    raise RecipeError(
        f"{kind} is no pass",
        where=place,
        fix="Give instances of graphpress.Pass, passes of onnx_ir, or rewrite rules of onnxscript.",
    )


def _rules(step: Step) -> tuple[Any, ...]:
    """The rules that a rule, a set, a rule class or a RewritePass of onnxscript holds; none of anything else."""
    cls = step if inspect.isclass(step) else type(step)
    if not any(c.__module__.startswith("onnxscript.rewriter") for c in cls.__mro__):
        return ()  # without loading onnxscript, which is slow
    from onnxscript import rewriter
    from onnxscript.rewriter import pattern

    if inspect.isclass(step):
        rule_class: Any = step
        whole = issubclass(step, pattern.RewriteRuleClassBase) and not inspect.isabstract(step)
        return (rule_class.rule(),) if whole else ()
    if isinstance(step, rewriter.RewritePass):  # which by itself has no bound
        return tuple(step.rules)
    if isinstance(step, pattern.RewriteRuleSet):
        return tuple(step)
    return (step,) if isinstance(step, pattern.RewriteRule) else ()


def made(name: str, options: Mapping[str, Any], place: str) -> type[Pass] | Pass:
    """The class of passes of a user's module, or a pass made of what else ``module:Name`` names.

    Raises:
        RecipeError: As ``imported``; or it is no pass; or options for what has none.
    """
    found = imported(name, place)
    if inspect.isclass(found) and issubclass(found, Pass):
        return _whole(found, place)
    if inspect.isclass(found) and issubclass(found, ir.passes.PassBase):
        try:
            return OnnxIrPass(found(**options), name, dict(options))
        except TypeError as e:
            raise RecipeError(str(e), where=place) from e
    if options:
        raise RecipeError("it has no options", where=place)
    step = as_pass(found, place)
    return replace(step, source=name) if isinstance(step, OnnxIrPass | Rules) else step


def _whole(cls: type[Pass], place: str) -> type[Pass]:
    """A class of passes that has all that one must have.

    Raises:
        RecipeError: It lacks ``run``, ``name`` or ``@dataclass``, by which its options are known.
    """
    if inspect.isabstract(cls):
        raise RecipeError("it has no method run(model, ctx, report)", where=place)
    if not isinstance(getattr(cls, "name", None), str):
        raise RecipeError("it has no name", where=place, fix="Set name = '...' in the class.")
    if "__dataclass_params__" not in vars(cls):
        raise RecipeError("it is no dataclass", where=place, fix="Put @dataclass(frozen=True) above it.")
    return cls


def known_as(step: Pass) -> str:
    """The name by which a recipe has a pass: that of the catalog, or ``module:Class``."""
    if catalog.pass_named(step.name) is type(step):
        return step.name
    if isinstance(step, OnnxIrPass | Rules):
        return step.source or step.name
    return f"{type(step).__module__}:{type(step).__qualname__}"
