"""onnxscript rewrite rules as a pass: bounded, and every node they make says which rule made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from graphpress import edit
from graphpress.base import BY, Context, Pass, PassReport
from graphpress.errors import PassError
from graphpress.types import Numerics

RULE_TAG = "pkg.onnxscript.rewriter.rule_name"


@dataclass(frozen=True)
class RulePass(Pass):
    """Base of passes made of onnxscript rules: a subclass says which in ``rules()``.

    A rule whose result matches itself would run for ever, so the number of applications is bounded by
    ``limit`` rounds over the graph.
    """

    numerics: ClassVar[Numerics] = Numerics.CLOSE
    limit: ClassVar[int] = 10

    def rules(self) -> Any:
        """An ``onnxscript.rewriter.pattern.RewriteRuleSet``."""
        raise PassError("a RulePass must say its rules", where=f"pass {type(self).__name__}")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        rules = self.rules()
        known = {id(n) for n in edit.nodes(model)}
        for _ in range(self.limit):
            count = rules.apply_to_model(model)
            report.changed += count
            if not count:
                break
        else:
            raise PassError(
                f"still matching after {self.limit} rounds",
                where=f"pass {report.name!r}",
                fix="A rule matches its own result.",
            )
        for node in edit.nodes(model):
            rule = node.metadata_props.pop(RULE_TAG, None)
            if id(node) not in known:
                node.metadata_props[BY] = f"{report.name}/{rule}" if rule else report.name
        edit.forget_names(model)
