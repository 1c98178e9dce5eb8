"""What a lowering rule is, and which rules there are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from graphpress import catalog
from graphpress.backends.ort.emit import Shared
from graphpress.errors import GraphpressError
from graphpress.target import Fact, Target


@dataclass(frozen=True)
class LoweringRule:
    """A rewrite of one node into what a runtime runs fast. It applies only if the target has what it writes and needs.

    Attributes:
        name: Of the rule.
        order: Rules are tried by this number, the first that applies to a node takes it.
        apply: Lowers the node if it has the rule's form; whether it did.
        ops: Operators that it looks at; empty means any. Of the default domain unless ``domain`` says otherwise.
        domain: Of these operators.
        kernels: Operators of ``com.microsoft`` that it writes; without any, standard ONNX comes out.
        modes: The capability it needs: one for the node's operator, in one of these modes, that ends in one of
            ``kernels``. Empty means none.
        fact: What must be known of the runtime for the rewrite to make sense.
    """

    name: str
    order: int
    apply: Callable[[ir.Node, Target, Shared], bool]
    ops: tuple[str, ...] = ()
    domain: str = ""
    kernels: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    fact: Fact | None = None

    def serves(self, target: Target) -> bool:
        """Whether the target has the kernels and the fact, and a capability for at least one operator."""
        fine = target.kernels.issuperset(self.kernels) and (self.fact is None or self.fact in target.facts)
        return fine and (not self.modes or any(self._capable(op, target) for op in self.ops))

    def __call__(self, node: ir.Node, target: Target, shared: Shared) -> bool:
        """Lower ``node`` if the rule is for it and the target has what it takes; whether it was."""
        if self.ops and (node.domain != self.domain or node.op_type not in self.ops):
            return False
        if not isinstance(node.graph, ir.Graph) or not self.serves(target):
            return False
        return (not self.modes or self._capable(node.op_type, target)) and self.apply(node, target, shared)

    def _capable(self, op: str, target: Target) -> bool:
        return any(c.kernel in self.kernels for mode in self.modes for c in target.find(op, mode))


@functools.cache
def rules() -> tuple[LoweringRule, ...]:
    """The ``RULE`` of each file in graphpress.backends.ort.rules, in order.

    Raises:
        GraphpressError: Two rules have one name or one place in the order.
    """
    found = sorted(catalog.named("graphpress.backends.ort.rules", "RULE").values(), key=lambda r: r.order)
    for a, b in itertools.pairwise(found):
        if a.order == b.order:
            raise GraphpressError(f"the rules {a.name!r} and {b.name!r} have one order, {a.order}", where="lowering")
    return tuple(found)
