"""Does a node mean the same after its opset was raised? Every operator at every older opset, before and after in ONNX
Runtime without graph optimisation.

    python -m graphpress.tools.bench.opsets --out docs/figures/opsets.md
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphpress.errors import Unsupported
from graphpress.graph import edit, opset_rules, opsets
from graphpress.tools.conformance.earlier import FIRST, Earlier, generations, written_back
from graphpress.tools.conformance.earlier_made import made

EQUAL, RULE, STAYS, NOT_RUN, DIFFERS = "equal", "own rule", "stays", "not run", "DIFFERS"
MEANING = {
    EQUAL: "left as it is or converted by onnx's converter; the outputs are equal",
    RULE: "converted by a rule of ours; the outputs are equal",
    STAYS: "refused, and the model stays at its opset: there is no equal form, or ONNX Runtime has no kernel for it",
    NOT_RUN: "ONNX Runtime runs no case of it at that opset",
    DIFFERS: "shows a defect of ours",
}
SIGNS = {EQUAL: "=", RULE: "r", STAYS: "s", NOT_RUN: "-", DIFFERS: "X"}
TARGETS = (13, 18, 19, 21, 23, 25)  # what passes ask for
FORMS = ((True, True), (True, False), (False, True), (False, False))  # sizes known, operands constant
_TOLERANCE = {True: (4e-3, 1e-3), False: (1e-5, 1e-6)}  # relative and absolute, of half precision or not


@dataclass(frozen=True)
class Verdict:
    """What became of one case raised to one opset."""

    label: str
    op: str
    opset: int
    target: int
    status: str
    why: str = ""


def targets(op: str, opset: int) -> list[int]:
    """What to raise a case to: for each later generation of the operator, the lowest opset that passes ask for."""
    known = generations(op)
    chosen: dict[int, int] = {}
    for target in (t for t in TARGETS if t > opset):
        generation = max(v for v in known if v <= target)
        if generation > opset:
            chosen.setdefault(generation, target)
    return list(chosen.values())


def judge(case: Earlier, forms: Sequence[tuple[bool, bool]] = FORMS) -> list[Verdict]:
    """The case with and without sizes, with and without constant operands, raised to each target."""
    found, seen = [], set()
    for shapes, constants in forms:
        source = case.model(shapes=shapes, constants=constants)
        if (key := source.SerializeToString()) in seen or not targets(case.op, case.opset):
            continue
        seen.add(key)
        feeds = {v.name: case.feeds[v.name] for v in source.graph.input}
        before = _run(source, feeds)
        for target in targets(case.op, case.opset):
            about = (f"{case.label}{'' if shapes else ', sizes unknown'}", case.op, case.opset, target)
            found.append(Verdict(*about, *_raised(source, feeds, before, target)))
    return found


def _raised(source: onnx.ModelProto, feeds: dict[str, Any], before: list[Any] | str, target: int) -> tuple[str, str]:
    if isinstance(before, str):
        return NOT_RUN, before
    model = ir.from_proto(source)
    for i, node in enumerate(edit.nodes(model)):
        node.name = f"node_{i}"
    try:
        way = EQUAL if opset_rules.rule(model.graph[0], edit.opset(model), target) is None else RULE
        opsets.convert(model, target)
    except Unsupported as e:
        return STAYS, e.what
    after = _run(ir.to_proto(model), feeds)
    if isinstance(after, str):
        return DIFFERS, after
    return (way, "") if _same(before, after) else (DIFFERS, "other numbers")


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | str:
    options, run = ort.SessionOptions(), ort.RunOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = run.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds, run))
    except Exception as e:  # noqa: BLE001 - whatever it refuses the model for
        return " ".join(str(e).split())[:300]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc":
        return bool(a.tolist() == b.tolist())
    rtol, atol = _TOLERANCE[a.dtype.itemsize == 2]
    return np.allclose(a.astype(np.complex128), b.astype(np.complex128), rtol, atol, equal_nan=True)


def everything() -> Iterator[Earlier]:
    """ONNX's own cases written back, and our own."""
    yield from written_back()
    yield from made()


def table(verdicts: Iterable[Verdict]) -> str:
    """As markdown: the count of each status, operators by opsets, and what stays or differs, with the reason."""
    found: dict[tuple[str, int], dict[str, Verdict]] = {}
    for v in verdicts:
        found.setdefault((v.op, v.opset), {}).setdefault(v.status, v)
    cells = {(op, opset): list(_cell(found, op, opset)) for op in _operators() for opset in _opsets(op)}
    count = collections.Counter(status for statuses in cells.values() for status in statuses)
    fixed = [op for op in _operators() if not _opsets(op)]
    columns = range(FIRST, TARGETS[-1])
    signs = {key: "".join(SIGNS[s] for s in statuses) for key, statuses in cells.items()}
    rows = [(op, *(signs.get((op, v), "") for v in columns)) for op in _operators() if op not in fixed]
    asked = ", ".join(map(str, TARGETS))
    lines = [
        "# Opset conversion keeps the meaning", "",
        "Every operator of ONNX's default domain at every older opset, raised to each opset that passes ask for",
        f"({asked}): before and after in ONNX Runtime {ort.__version__}, onnx {onnx.__version__},",
        "on ONNX's own test data and on random inputs, with known sizes and without, operands constant and computed.",
        "Made by `python -m graphpress.tools.bench.opsets --out docs/figures/opsets.md`; they are a slow test too.",
        "",
        "| sign | status | operators x opsets | meaning |", "|---|---|---|---|",
        *(f"| {SIGNS[s]} | {s} | {count[s]} | {m} |" for s, m in MEANING.items()),
        "",
        f"{len(cells)} cells; one with two signs has forms of both kinds. Blank: the operator is not yet there, or",
        f"does not change any more up to opset {TARGETS[-1]}.", "",
        f"| operator | {' | '.join(map(str, columns))} |", "|---|" + "---|" * len(columns),
        *(f"| {' | '.join(row)} |" for row in rows),
        "", f"Operators that never change between opset {FIRST} and {TARGETS[-1]}: {', '.join(fixed)}.",
    ]  # fmt: skip
    for status in (STAYS, NOT_RUN, DIFFERS):
        why = [by[status] for _, by in sorted(found.items()) if status in by and (status != NOT_RUN or len(by) == 1)]
        if why:
            lines += ["", f"## {status}", "", "| operator | opset | why |", "|---|---|---|"]
            lines += [f"| {v.op} | {v.opset} | {v.why.replace('|', '/')} |" for v in why]
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[tuple[str, int], Mapping[str, Verdict]], op: str, opset: int) -> Iterable[str]:
    """The statuses of one operator at one opset, without those that did not run where others did."""
    statuses = found.get((op, max(g for g in generations(op) if g <= opset)), {})
    return [s for s in MEANING if s in statuses and s != NOT_RUN] or [NOT_RUN]


def _operators() -> list[str]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return sorted({s.name for s in schemas if not s.domain and s.since_version < TARGETS[-1]})


def _opsets(op: str) -> list[int]:
    """The older opsets at which there is something to convert."""
    return [v for v in range(generations(op)[0], TARGETS[-1]) if targets(op, max(g for g in generations(op) if g <= v))]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="where the table goes; printed when absent")
    args = parser.parse_args(argv)
    ort.set_default_logger_severity(4)
    verdicts = [v for case in everything() for v in judge(case)]
    text = table(verdicts)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return int(any(v.status == DIFFERS for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
