"""The audit of a provider that takes whole subgraphs: what it tells of its kernels, and what it does not."""

from __future__ import annotations

import math
import time
from collections import Counter

import onnx_ir as ir
import onnxruntime as ort

from graphpress.backends import canonical, macs
from graphpress.backends.audited import Audit, AuditRow, size_only
from graphpress.backends.ort import moved_codes, onednn
from graphpress.backends.ort.onednn import Primitive
from graphpress.backends.ort.profile import profile
from graphpress.backends.ort.session import execute
from graphpress.graph import edit
from graphpress.keys import SCHEME
from graphpress.ops import packing
from graphpress.runner import Arrays
from graphpress.target import Target

BUDGET, MOST_RUNS = 0.3, 10  # seconds of repeated runs, the fastest counts
_SILENT = "{provider} does not tell what computes it"


def audit(model: ir.Model, target: Target, feeds: Arrays) -> Audit:
    """Each site with the primitives that have its sizes, where they all compute alike.

    Args:
        model: A lowered model.
        target: What it was lowered for.
        feeds: Inputs.

    Raises:
        Unsupported: The provider is not installed, or refuses the model.
    """
    dense = packing.unpacked(model)
    microseconds = _fastest(model, target, feeds)
    written = profile(dense, feeds, optimise=False)
    told = onednn.primitives(model, target, feeds)
    work = {
        n.name or "": (_elements(k), macs.multiply_adds(n, k))
        for n in edit.nodes(dense)
        if (k := written.kernels.get(n.name or "")) is not None
    }
    found = (_row(n, work.get(n.name or "", (0, 0)), told, target, microseconds) for n in edit.nodes(dense))
    return Audit(
        target=target.name,
        isa=target.isa,
        runtime=f"onnxruntime {ort.__version__}, {target.provider}",
        sites=tuple(row for row in found if row is not None),
        conversions=(),
        microseconds=microseconds,
        feeds={k: f"{v.dtype}{list(v.shape)}" for k, v in feeds.items()},
    )


def _fastest(model: ir.Model, target: Target, feeds: Arrays) -> float:
    session, best, end = execute(model, target=target, spinning=True), float("inf"), time.perf_counter() + BUDGET
    for i in range(MOST_RUNS):
        start = time.perf_counter()
        if i > 1 and start > end:
            break
        session(feeds)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best


def _elements(kernel: macs.KernelRun) -> int:
    return sum(math.prod(outputs[0][1]) for _, outputs in kernel.calls if outputs)


def _row(
    node: ir.Node, work: tuple[int, int], told: tuple[Primitive, ...], target: Target, total: float
) -> AuditRow | None:
    scheme = node.metadata_props.get(SCHEME, "")
    if not work[1] and not scheme:
        return None
    mine = [p for p in told if p.work == work]
    kinds = Counter(p.verdict for p in mine)
    if len(kinds) != 1:
        reason = size_only(node, _SILENT.format(provider=target.provider), target.provider)
        return AuditRow(node.name or "", node.op_type, scheme, "untold", target.provider, reason, 0.0, 0.0, work[1])
    verdict, reason = _judged(node, next(iter(kinds)))
    spent = sum(p.microseconds for p in mine) / len(mine)
    kernel = f"onednn::{mine[0].kind} {mine[0].implementation}"
    reason = size_only(node, reason, target.provider)
    return AuditRow(node.name or "", node.op_type, scheme, verdict, kernel, reason, spent, spent / total, work[1])


def _judged(node: ir.Node, verdict: str) -> tuple[str, str]:
    quantized = SCHEME in node.metadata_props or any(map(canonical.activation, node.inputs))
    if verdict == "float" and quantized:
        return "fallback", "the provider made it a float product"
    if verdict == "weight-only" and quantized and any(map(canonical.activation, node.inputs)):
        return "fallback", "the provider multiplies floats by the stored codes"
    return verdict, "codes become float in the kernel" if verdict == "weight-only" else moved_codes.noted(node)
