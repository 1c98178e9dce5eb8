"""What the tests of adapters share: every kind of linear layer, in floats and quantized, and what training does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.adapters.base import Attached
from graphpress.passes.recover.engine.student import typed
from graphpress.passes.structure.layers.linear import Linear, linear
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal

CTX = Context(run=reference.execute, oracle=reference.execute, seed=3)
MATMUL = "agraph (float[N, 5, 8] x, float[8, 12] w, float[12] b) => (float[N, 5, 12] y) { p = MatMul(x, w) q = Add(p, b) y = Relu(q) }"  # noqa: E501
_PUBLIC = "agraph (float[N, 8] x, float[8, 12] w) => (float[N, 12] y) { y = MatMul(x, w) }"
_GEMM = "agraph (float[N, 8] x, float[8, 12] w, float[12] b) => (float[N, 12] y) { p = Gemm(x, w, b) y = Tanh(p) }"
_TRANS = "agraph (float[N, 8] x, float[12, 8] w, float[12] b) => (float[N, 12] y) { p = Gemm<transB = 1>(x, w, b) y = Relu(p) }"  # noqa: E501
_CONV = "agraph (float[N, 6, 7, 7] x, float[4, 6, 3, 3] w, float[4] b) => (float[N, 4, 3, 3] y) { p = Conv<strides = [2, 2], kernel_shape = [3, 3]>(x, w, b) y = Relu(p) }"  # noqa: E501
_POINT = "agraph (float[N, 6, 4] x, float[8, 6, 1] w) => (float[N, 8, 4] y) { y = Conv(x, w) }"
_GROUPS = "agraph (float[N, 6, 5] x, float[4, 3, 2] w) => (float[N, 4, 4] y) { p = Conv<group = 2>(x, w) y = Relu(p) }"
TEXTS = {"matmul": MATMUL, "public": _PUBLIC, "gemm": _GEMM, "transB": _TRANS, "conv": _CONV, "point": _POINT,
         "groups": _GROUPS}  # fmt: skip
WEIGHT4 = Quantize(mode="weight", weight="int4", kernels="preferred")
BOTH4 = Quantize(mode="dynamic", weight="int4", activation="int4", activation_granularity="per_token",
                 kernels="preferred")  # fmt: skip


def floats(text: str, dtype: type = np.float32) -> ir.Model:
    made = kit.parse(text if dtype is np.float32 else text.replace("float[", "double["))
    shapes = {v.name or "": v.shape.numpy() for v in made.graph.inputs if v.name != "x" and v.shape}
    for i, (name, shape) in enumerate(shapes.items()):
        value = next(v for v in made.graph.inputs if v.name == name)
        made.graph.inputs.remove(value)
        value.const_value = ir.tensor((normal(*shape, seed=i) / 2).astype(dtype), name=name)
        made.graph.register_initializer(value)
    return typed(made)


def doubles(text: str) -> ir.Model:
    return floats(text, np.float64)


def int4(text: str) -> ir.Model:
    return quantizing.quantize(floats(text), WEIGHT4, target=None)[0]


def w4a4(text: str) -> ir.Model:
    return quantizing.quantize(floats(text), BOTH4, target=None)[0]


SITES: dict[str, Callable[[], ir.Model]] = {
    f"{kind} {name}": (lambda make=make, text=text: make(text))  # type: ignore[misc]
    for name, text in TEXTS.items()
    for kind, make in (("float", floats), ("double", doubles), ("int4", int4), ("w4a4", w4a4))
    if kind in ("float", "int4") or name in ("matmul", "public", "gemm", "transB")  # tokens, and what runs in float64
}


def layer(model: ir.Model) -> Linear:
    found = [view for node in model.graph if isinstance(view := linear(node), Linear)]
    assert len(found) == 1
    return found[0]


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    return kit.random_feeds(model, dims={"N": 4})


def shake(model: ir.Model, attached: Attached, names: tuple[str, ...], size: float = 1.0) -> None:
    """Other elements for these constants, as training would give them."""
    for i, name in enumerate(names):
        value = model.graph.initializers[name]
        assert value.dtype is not None and value.shape is not None
        if value.dtype.is_floating_point():
            edit.overwrite(value, (size * normal(*value.shape.numpy(), seed=40 + i)).astype(value.dtype.numpy()))


def valid(model: ir.Model) -> None:
    if not model.functions:  # the checker wants their opsets to be the model's
        common.CheckerPass(True)(model)


def raw(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)
