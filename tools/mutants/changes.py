"""What is changed in a formula: operators of Cosmic Ray, and five that arithmetic on arrays needs and it lacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import parso
from cosmic_ray.operators import boolean_replacer, break_continue, number_replacer, zero_iteration_for_loop
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider

_REPLACED = {
    "Binary": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_FloorDiv Pow_Mul BitOr_BitAnd BitAnd_BitOr"
    " RShift_LShift LShift_RShift BitXor_BitOr",
    "Comparison": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is",
    "Unary": "Delete_USub Delete_Not Delete_Invert",
}
_CALLS = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "amin": "amax", "amax": "amin", "any": "all", "all": "any", "abs": "square", "square": "abs", "sqrt": "square",
    "floor": "ceil", "ceil": "floor", "rint": "floor", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like", "sum": "mean", "mean": "sum", "reversed": "iter", "union": "intersection",
    "clip": "maximum", "cumsum": "cumprod",
}  # fmt: skip


class DropOperand(Operator):
    """``a / b`` becomes ``a``: each right operand of an arithmetic operator goes once."""

    KINDS = frozenset({"arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr"})

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type in self.KINDS:
            for sign in node.children[1::2]:
                yield sign.start_pos, sign.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        del node.children[2 * index + 1 : 2 * index + 3]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("a / b * c", "a * c"), Example("a / b * c", "a / b", occurrence=1))


class SwapCall(Operator):
    """A function becomes its opposite: ``x.max()`` is ``x.min()``, ``np.abs(x)`` is ``np.square(x)``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "name" and node.value in _CALLS and _called(node) and _known(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = _CALLS[node.value]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("np.abs(x)", "np.square(x)"), Example("min(x)", "max(x)"))


def _called(name: Any) -> bool:
    after = name.get_next_leaf()
    return after is not None and after.value == "("


def _known(name: Any) -> bool:
    """Not a method that is being defined, nor ``abs(x)`` and the like, whose opposite is no builtin."""
    before = name.get_previous_leaf()
    if before is not None and before.value == "def":
        return False
    method = before is not None and before.value == "."
    return method or _CALLS[name.value] in {"min", "max", "any", "all", "iter"}


class ScaleFloat(Operator):
    """A float becomes ten times and a tenth of itself."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if _is_float(node) and float(node.value):
            yield from [(node.start_pos, node.end_pos)] * 2

    def mutate(self, node: Any, index: int) -> Any:
        value = float(node.value) * (10.0, 0.1)[index]
        node.value = repr(value)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x = 1e-3", "x = 0.01"), Example("x = 2.0", "x = 0.2", occurrence=1))


def _is_float(node: Any) -> bool:
    return node.type == "number" and not node.value.isdigit() and node.value[:2].lower() not in {"0x", "0b", "0o"}


class StepInteger(number_replacer.NumberReplacer):
    """An integer becomes one more and one less; as an index 0 becomes 1 only, as the last of one is the first."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if not _is_float(node):
            first = node.type == "number" and node.value == "0" and node.parent.type == "trailer"
            yield from itertools.islice(super().mutation_positions(node), 1 if first else None)


class DeleteStatement(Operator):
    """A statement that is there for what it does (a call, ``a[i] = b``, ``a += b``) becomes ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and _acts(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0] = parso.parse(node.children[0].get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("a += 1", "pass"), Example("f(x)", "pass"))


def _acts(statement: Any) -> bool:
    if statement.type == "atom_expr":
        return True
    if statement.type != "expr_stmt":
        return False
    target, sign = statement.children[:2]
    return target.type == "atom_expr" or (sign.type == "operator" and sign.value != "=")


def operators() -> list[Operator]:
    """Every operator that is used, in a fixed order."""
    provider = OperatorProvider()
    replaced = [
        provider[f"Replace{kind}Operator_{pair}"]() for kind, pairs in _REPLACED.items() for pair in pairs.split()
    ]
    flags = [
        boolean_replacer.AddNot, boolean_replacer.ReplaceTrueWithFalse, boolean_replacer.ReplaceFalseWithTrue,
        boolean_replacer.ReplaceAndWithOr, boolean_replacer.ReplaceOrWithAnd,
        break_continue.ReplaceBreakWithContinue, break_continue.ReplaceContinueWithBreak,
        zero_iteration_for_loop.ZeroIterationForLoop,
    ]  # fmt: skip
    own = [DropOperand, SwapCall, ScaleFloat, StepInteger, DeleteStatement]
    return [*replaced, *(kind() for kind in flags), *(kind() for kind in own)]
