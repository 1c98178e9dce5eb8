"""What the tests of quantization share: models with constant weights, contexts, and numpy's idea of the result."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.quantize.plan import make_plan
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.target import Target
from graphpress.types import Plan
from tests import kit

CODES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}


def model(text: str, weights: Mapping[str, np.ndarray]) -> ir.Model:
    """A graph in text, those of its inputs that ``weights`` names made constants of the type that is written there."""
    made = kit.parse(text)
    for name, array in weights.items():
        value = next(v for v in made.graph.inputs if v.name == name)
        made.graph.inputs.remove(value)
        assert value.dtype is not None
        value.const_value = ir.tensor(np.asarray(array).astype(value.dtype.numpy(), copy=False), name=name)
        made.graph.register_initializer(value)
    return made


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def context(feeds: Mapping[str, np.ndarray] | None = None, target: str | None = "ort-cpu") -> Context:
    """Calibrates on ``feeds`` (samples first) in the reference backend."""
    data = CalibrationData.from_arrays(feeds) if feeds is not None else None
    where = Target.load(target, "x86-64+vnni") if target else None
    return Context(target=where, data=data, run=reference.execute, oracle=reference.execute)


def quantize(
    made: ir.Model, options: Quantize, feeds: Mapping[str, np.ndarray] | None = None, target: str | None = "ort-cpu"
) -> tuple[ir.Model, PassReport]:
    """The quantized model and what the pass said of it."""
    after, (report,) = kit.apply(made, options, ctx=context(feeds, target))
    return after, report


def plan(made: ir.Model, options: QuantizeOptions, target: str | None = "ort-cpu") -> Plan:
    return make_plan(made, context(None, target).target, options)[0]


def reasons(made: ir.Model, options: QuantizeOptions, target: str | None = "ort-cpu") -> dict[str, str]:
    """Why nodes were left out, by name."""
    return {s.where: s.why for s in make_plan(made, context(None, target).target, options)[1]}


def code(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, dtype: str) -> np.ndarray:
    """QuantizeLinear by the ONNX specification, in float64; all arguments broadcast."""
    low, high = CODES[dtype]
    return np.clip(np.rint(x.astype(np.float64) / scale) + zero.astype(np.float64), low, high)


def roundtrip(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, dtype: str) -> np.ndarray:
    return (code(x, scale, zero, dtype) - zero.astype(np.float64)) * scale


def range_grid(lo: float, hi: float, dtype: str = "uint8") -> tuple[np.ndarray, np.ndarray]:
    """Asymmetric scale and zero point of a range, as in DynamicQuantizeLinear."""
    low, high = CODES[dtype]
    lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
    scale = np.float32((hi - lo) / (high - low))
    return scale, np.clip(np.rint(low - lo / scale), low, high)


def constants(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a Q or DQ node."""
    scale, zero = (edit.constant(v) for v in node.inputs[1:3])
    assert scale is not None and zero is not None
    return scale, zero.astype(np.int32) if zero.dtype.kind == "V" or zero.dtype in _SMALL else zero


_SMALL = tuple(np.dtype(t) for t in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2))
