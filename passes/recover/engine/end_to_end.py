"""The whole model at once, towards what the teacher gives in the end."""

from __future__ import annotations

from graphpress.passes.recover.engine.recovery import Recovery


def run(recovery: Recovery) -> tuple[float, float]:
    """Train all parameters together; the measure before and after."""
    scope = recovery.part()
    known = scope.student.parameters
    recovery.left |= {n: "no output depends on it" for n in scope.names if n not in known}
    scope.names = [n for n in scope.names if n in known]
    outcome = recovery.train(scope, "the model")
    return outcome.before, outcome.after
