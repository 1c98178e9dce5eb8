"""onnxscript rewrite rules as a pass: bounded, and every node they make says which rule made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import PassError
from graphpress.graph import edit
from graphpress.keys import BY
from graphpress.types import Numerics

RULE_TAG = "pkg.onnxscript.rewriter.rule_name"


@dataclass(frozen=True)
class RulePass(Pass):
    """Base of passes made of onnxscript rules: a subclass says which in ``rules()``.

    onnxscript visits what a rule has made, so a rule that matches its own result would run for ever. Here it may apply
    ``limit`` times for each node that the graph had. Bodies of If, Loop and Scan are not visited: onnxscript does not.
    """

    numerics: ClassVar[Numerics] = Numerics.CLOSE
    limit: ClassVar[int] = 10

    def rules(self) -> Iterable[Any]:
        """The ``onnxscript.rewriter.pattern.RewriteRule``s, also as a RewriteRuleSet."""
        raise PassError("a RulePass must say its rules", where=f"pass {type(self).__name__}")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        from onnxscript.rewriter import pattern  # slow to load, and only rule passes need it

        known = {id(n) for n in edit.nodes(model)}
        budget = _Budget(self.limit * max(len(known), 1), report.name)
        counted: list[Any] = [_Counted(rule, budget) for rule in self.rules()]
        report.changed = pattern.RewriteRuleSet(counted).apply_to_model(model)
        for node in edit.nodes(model):
            rule = node.metadata_props.pop(RULE_TAG, None)
            if id(node) not in known:
                node.metadata_props[BY] = f"{report.name}/{rule}" if rule else report.name
        edit.index(model)


@dataclass
class _Budget:
    left: int
    name: str

    def spend(self, rule: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise PassError(
                f"rule {rule.name!r} goes on for ever",
                where=f"pass {self.name!r}",
                fix="Its result must not match its own pattern.",
            )


class _Counted:
    """A rule that tells when it applied."""

    def __init__(self, rule: Any, budget: _Budget) -> None:
        self._rule, self._budget = rule, budget

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, *args: Any, **options: Any) -> Any:
        """As the rule's own."""
        made = self._rule.try_rewrite(*args, **options)
        if made is not None:
            self._budget.spend(self._rule)
        return made
