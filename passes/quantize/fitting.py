"""Scales of the constants of a plan, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.graph import edit
from graphpress.passes.quantizers.named import named
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.types import Kind, Plan, Role, Scheme, Site


@dataclass
class FittedWeights:
    """Scales by site; nodes whose weights cannot be quantized, with the reason; remarks on those that can."""

    params: dict[Site, QParams] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    remarks: list[Skip] = field(default_factory=list)


def fit_weights(plan: Plan, values: Mapping[Site, ir.Value]) -> FittedWeights:
    """Fit each constant once a scheme; only scales and zero points are kept, so memory holds one tensor at a time."""
    found = FittedWeights()
    known: dict[tuple[ir.Value, Scheme], tuple[QParams | None, str]] = {}
    for site, scheme in plan.items():
        if site.role is not Role.WEIGHT:
            continue
        key = values[site], scheme
        if key not in known:
            known[key] = _fit(values[site], scheme)
        params, remark = known[key]
        if params is None:
            found.broken[site.node] = remark
            continue
        found.params[site] = params
        if remark:
            found.remarks.append(Skip(str(site), remark))
    return found


def _fit(value: ir.Value, scheme: Scheme) -> tuple[QParams | None, str]:
    """The scale, or None with the reason; with a remark where the scale has to say nothing."""
    array = edit.constant(value)
    if array is None:
        return None, f"{value.name!r} is not constant"
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        return None, f"weight {value.name!r} has NaN or infinite elements"
    quantizer = named(scheme.quantizer)
    if quantizer.scale_dtype and value.dtype not in (None, ir.DataType.FLOAT):
        return None, f"weight {value.name!r} is {value.dtype}, and {quantizer.name} gives float32: put widen-half first"
    if (why := quantizer.unsuited(array.size, scheme)) is not None:
        return None, f"weight {value.name!r}: {why}"
    return quantizer.fit(array, scheme), _dead(array, scheme)


def _dead(array: np.ndarray, scheme: Scheme) -> str:
    axis = scheme.granularity.axis
    if not np.any(array):
        return "all elements are zero"
    if axis is None or scheme.granularity.kind is not Kind.CHANNEL:
        return ""
    dead = np.flatnonzero(~np.any(array, axis=tuple(i for i in range(array.ndim) if i != axis)))
    names = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
    return f"{len(dead)} of {array.shape[axis]} channels are all zero: {names}" if len(dead) else ""
