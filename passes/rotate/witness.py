"""What a rewrite that keeps the function did to the numbers, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.observe.inner import InnerValues


def witness(before: ir.Model, after: ir.Model, values: Sequence[str], ctx: Context) -> tuple[float, str] | str:
    """The largest deviation at any of the values as a share of the value's RMS, and where; or why it was not measured.

    Both models run in the oracle, in their own element types, on the first calibration sample.

    Args:
        before: The model before the rewrite.
        after: The model after it.
        values: Names that mean the same in both, graph outputs among them.
        ctx: Gives oracle and data.
    """
    if ctx.oracle is None or ctx.data is None:
        return "not proved: there is no oracle" if ctx.oracle is None else "not proved: there is no data"
    feeds = next(iter(ctx.data.batches(1)))
    a, b = (InnerValues.of(m, values, ctx.oracle)(feeds) for m in (before, after))
    worst = (0.0, "")
    for name in values:
        if name in a and name in b and a[name].size:
            x, y = a[name].astype(np.float64), b[name].astype(np.float64)
            finite = np.isfinite(x)
            rms = float(np.sqrt(np.mean(x[finite] ** 2))) if finite.any() else 0.0
            gap = float(np.max(np.abs(x - y)[finite], initial=0.0))
            worst = max(worst, (gap / max(rms, 1e-12), name))
    return worst
