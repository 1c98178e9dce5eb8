"""Weights whose codes stand for other integers: kernels run on what is looked up, files hold the codes and one book."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphpress.backends.ort import lower
from graphpress.target import Target
from tests import kit
from tests.backends.given import codes, parse

TARGET = Target.load("ort-cpu", "x86-64+vnni")
K, N = 64, 8
SQUARES = {"int4": np.arange(-8, 8), "uint4": np.arange(16)}  # of which code i - lowest is the signed square
DYNAMIC = """<ir_version: 11, opset_import: ["" : 21, "graphpress" : 1]>
g (float[3, 64] x, float a, float b, float s, float t, float book) => (float[3, 8] y, float[3, 8] z) {
    c, cs, cz = DynamicQuantizeLinear(x)
    xd = DequantizeLinear(c, cs, cz)
    f = graphpress.LookupDequantize<lowest = LOW, axis = 1>(a, s, book)
    g = graphpress.LookupDequantize<lowest = LOW, axis = 0>(b, t, book)
    [first] y = MatMul(xd, f)
    [second] z = Gemm<transB = 1>(xd, g)
}"""


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_products_are_those_of_the_integers_that_codes_stand_for(kind: str) -> None:
    rng = np.random.default_rng(0)
    low = int(SQUARES[kind][0])
    book = np.sign(SQUARES[kind]) * SQUARES[kind] ** 2 // (1 if low else 4)  # within what u8 x s8 adds exactly
    a, b = codes(rng, kind, (K, N)), codes(rng, kind, (N, K))
    text = DYNAMIC.replace("LOW", str(low))
    scales = {"s": np.ones((1, N), np.float32), "t": np.ones((N, 1), np.float32)}
    lowered = lower(parse(text, a=a, b=b, book=book.astype(np.float32), **scales), TARGET)
    assert kit.ops(lowered).count("MatMulIntegerToFloat") == kit.ops(lowered).count("Gather") == 2
    held = [v.const_value for v in lowered.graph.initializers.values() if v.const_value is not None]
    assert sum(t.dtype == ir.DataType.INT8 and t.size == 16 for t in held) == 1  # one book for both
    assert sorted(t.nbytes for t in held)[-2:] == [K * N // 2] * 2  # and nothing wider than the codes
    x = rng.integers(0, 256, (3, K)).astype(np.float32)
    x[0, 0], x[0, 1] = 255, 0  # a scale of 1 and a zero point of 0: codes are the numbers
    session = ort.InferenceSession(ir.to_proto(lowered).SerializeToString(), providers=["CPUExecutionProvider"])
    y, z = session.run(["y", "z"], {"x": x})
    whole = x.astype(np.int64)
    np.testing.assert_array_equal(y.astype(np.int64), whole @ book[a.astype(np.int64) - low])
    np.testing.assert_array_equal(z.astype(np.int64), whole @ book[b.astype(np.int64) - low].T)
