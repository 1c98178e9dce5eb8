"""Run cases and say of each: passed, failed (with the first difference), or unsupported (with the reason)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, Unsupported, nearest
from graphpress.report.tables import Table
from graphpress.tools.conformance.cases import Case

PASSED, FAILED, UNSUPPORTED = "passed", "failed", "unsupported"
Build: TypeAlias = Callable[[ir.Model], Callable[[dict[str, Any]], dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Result:
    """What became of one case."""

    name: str
    kind: str
    op: str
    group: str
    verdict: str
    why: str = ""


@dataclass
class Conformance:
    """All results. ``bar`` is the share of passed node tests in the default domain outside training, sequence, optional
    and string operators."""

    backend: str
    results: list[Result] = field(default_factory=list)

    def count(self, verdict: str, kind: str | None = None, group: str | None = None, op: str | None = None) -> int:
        return sum(
            r.verdict == verdict and kind in (None, r.kind) and group in (None, r.group) and op in (None, r.op)
            for r in self.results
        )

    @property
    def bar(self) -> float:
        core = [r for r in self.results if r.kind == "node" and r.group == "core"]
        return sum(r.verdict == PASSED for r in core) / max(len(core), 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "core node tests passed": round(self.bar, 5),
            "totals": {v: self.count(v) for v in (PASSED, FAILED, UNSUPPORTED)},
            "results": [dataclasses.asdict(r) for r in self.results],
        }

    def tables(self) -> list[Table]:
        columns = tuple(dict.fromkeys((PASSED, FAILED, UNSUPPORTED, *(r.verdict for r in self.results))))
        kinds = [(k, *(self.count(v, kind=k) for v in columns)) for k in dict.fromkeys(r.kind for r in self.results)]
        groups = dict.fromkeys(r.group for r in self.results if r.kind == "node")
        parts = [(f"node, {g}", *(self.count(v, "node", g) for v in columns)) for g in groups]
        ops = [(o, *(self.count(v, op=o) for v in columns)) for o in sorted({r.op for r in self.results})]
        wrong = [(r.name, r.op, r.verdict, r.why) for r in self.results if r.verdict != PASSED]
        return [
            Table("Operators", ("operator", *columns), [tuple(map(str, row)) for row in ops]),
            Table("Not passed", ("case", "operator", "verdict", "why"), wrong),
            Table(f"Backend {self.backend}", ("cases", *columns), [tuple(map(str, row)) for row in (*kinds, *parts)]),
            Table("Bar", ("", ""), [("core node tests passed", f"{self.bar:.2%}")]),
        ]


def backend(name: str) -> Build:
    """How a backend makes something that runs of a model.

    Raises:
        BadRequest: There is no such backend.
    """
    if name == "fx":
        from graphpress.backends import fx

        return fx.execute
    if name == "ort":
        from graphpress.backends import ort

        return ort.execute
    if name == "reference":
        from graphpress.backends import reference

        return reference.execute
    fix = nearest(name, ("fx", "ort", "reference"))
    raise BadRequest("there is no such backend", where=f"backend {name!r}", fix=fix)


def run(name: str, build: Build, cases: Iterable[Case]) -> Conformance:
    """Run cases on a backend called ``name``."""
    found = Conformance(name)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found.results += [judge(case, build) for case in cases]
    return found


def judge(case: Case, build: Build) -> Result:
    """Run one case."""
    about = (case.name, case.kind, case.op, case.group)
    try:
        model = ir.from_proto(case.model)
        for i, node in enumerate(model.graph.all_nodes()):
            node.name = node.name or f"{node.op_type}_{i}"
        runner = build(model)
        names = [v.name or "" for v in model.graph.inputs if not v.is_initializer()]
        for inputs, expected in case.sets:
            given = runner(dict(zip(names, map(_array, inputs), strict=False)))
            wanted, random = [_array(e) for e in expected], case.group == "random"
            if why := difference(list(given.values()), wanted, case.rtol, case.atol, numbers=not random):
                return Result(*about, FAILED, why)
    except Unsupported as e:
        return Result(*about, UNSUPPORTED, str(e))
    except Exception as e:  # noqa: BLE001 - a crash of the backend is a failure, whatever it is
        return Result(*about, FAILED, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
    return Result(*about, PASSED)


def difference(given: list[Any], expected: list[Any], rtol: float, atol: float, *, numbers: bool = True) -> str:
    """The first difference between outputs, or ""; types and shapes count, without ``numbers`` only they."""
    if len(given) != len(expected):
        return f"{len(given)} outputs instead of {len(expected)}"
    for i, (a, b) in enumerate(zip(given, expected, strict=True)):
        if isinstance(b, list):
            inner = difference(list(a), b, rtol, atol) if isinstance(a, list | tuple) else "not a sequence"
            if inner:
                return f"output {i}: {inner}"
        elif a.dtype != b.dtype:
            return f"output {i} is {a.dtype}, not {b.dtype}"
        elif a.shape != b.shape:
            return f"output {i} has shape {a.shape}, not {b.shape}"
        elif numbers and (why := _numbers(a, b, rtol, atol)):
            return f"output {i}: {why}"
    return ""


def _numbers(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> str:
    if b.dtype == object or b.dtype.kind in "US":
        return "" if np.array_equal(a, b) else "other strings"
    if b.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # two units in the last place, as onnx's own runner allows
    wide = np.complex128 if b.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    close = np.isclose(x, y, rtol, atol, equal_nan=True)
    if close.all():
        return ""
    with np.errstate(all="ignore"):
        worst = np.nanmax(np.where(close, 0, np.abs(x - y)))
    return f"{(~close).sum()} of {close.size} elements differ, by {worst:.3g} at most"


def _array(value: Any) -> Any:
    if hasattr(value, "SerializeToString"):
        from onnx import numpy_helper

        return numpy_helper.to_array(value)
    return value
