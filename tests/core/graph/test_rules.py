"""onnxscript rules as passes: applied to the end, bounded, and each node says which rule made it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from onnxscript.rewriter import pattern

from graphpress.errors import PassError
from graphpress.graph.rules import RulePass
from graphpress.keys import BY
from tests import kit


@dataclass(frozen=True)
class DoubleNegation(RulePass):
    """Neg(Neg(x)) is x; a lone Relu becomes Abs(Relu(x)) never ending, on request."""

    name: ClassVar[str] = "double-negation"
    runaway: bool = False

    def rules(self) -> Any:
        def twice(op: Any, x: Any) -> Any:
            return op.Neg(op.Neg(x))

        def once(op: Any, x: Any) -> Any:
            return op.Abs(x)

        def grow(op: Any, x: Any) -> Any:
            return op.Relu(x)

        def grown(op: Any, x: Any) -> Any:
            return op.Relu(op.Abs(x))

        rules = [pattern.RewriteRule(twice, once, name="twice-is-abs")]
        if self.runaway:
            rules = [pattern.RewriteRule(grow, grown, name="grow")]
        return pattern.RewriteRuleSet(rules)


def test_rules_are_applied_and_leave_their_name() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { a = Neg(x) b = Neg(a) c = Exp(b) d = Neg(c) y = Neg(d) }")
    after, (report,) = kit.apply(model, DoubleNegation())
    assert kit.ops(after) == ["Abs", "Exp", "Abs"] and report.changed == 2
    assert {n.metadata_props[BY] for n in after.graph if n.op_type == "Abs"} == {"double-negation/twice-is-abs"}
    assert BY not in next(n for n in after.graph if n.op_type == "Exp").metadata_props


def test_a_rule_that_matches_its_own_result_is_stopped() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(PassError, match=r"rule 'grow' goes on for ever\. Its result must not match"):
        kit.apply(model, DoubleNegation(runaway=True))
