"""bfloat16 in and out of ONNX Runtime, and models in it that ONNX Runtime refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphpress.backends import ort, reference
from graphpress.backends.ort import brain_floats
from graphpress.errors import BadRequest
from tests import kit

BF16 = ml_dtypes.bfloat16


def test_every_number_goes_through() -> None:
    runner = reference.execute(kit.parse("g (bfloat16[65536] x) => (bfloat16[65536] y) { y = Identity(x) }"))
    x = np.arange(1 << 16, dtype=np.uint16).view(BF16)
    assert np.array_equal(runner({"x": x})["y"].view(np.uint16), x.view(np.uint16))


def test_other_types_beside_it_no_axes_and_no_elements() -> None:
    model = kit.parse("""g (bfloat16[N,2] x, int64[N] i, bfloat16 s) => (bfloat16[N,2] y, int64[N] j, bfloat16 t) {
        y = Identity(x) j = Identity(i) t = Identity(s) }""")
    for count in (0, 3):
        x, i = np.ones((2, count), BF16).T, np.arange(count)  # not contiguous
        given = ort.execute(model)({"x": x, "i": i, "s": np.asarray(2.5, BF16)})
        assert given["y"].dtype == BF16
        assert given["y"].shape == (count, 2)
        assert np.array_equal(given["j"], i)
        assert (given["t"].shape, float(given["t"])) == ((), 2.5)
    assert brain_floats.from_ort(brain_floats.to_ort(np.float32([1, 2]))).tolist() == [1, 2]


@pytest.mark.parametrize("execute", [ort.execute, reference.execute])
def test_what_the_runtime_lacks_is_computed_in_float32(execute: object) -> None:
    model = kit.parse("g (bfloat16[N,2] x, bfloat16[2,2] w) => (bfloat16[N,2] y) { y = MatMul(x, w) }")
    x, w = np.array([[1.0, 3.0]], BF16), np.array([[2.0, 0.5], [1.0, 128.0]], BF16)
    assert callable(execute)
    given = execute(model)({"x": x, "w": w})["y"]
    assert given.dtype == BF16
    assert given.astype(float).tolist() == [[5.0, 384.0]]  # 384.5, to 8 digits
    with pytest.raises(BadRequest, match="is float32, the model wants bfloat16"):
        execute(model)({"x": x.astype(np.float32), "w": w})
