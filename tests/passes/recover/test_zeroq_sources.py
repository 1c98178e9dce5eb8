"""What zeroq takes the samples of an input for: options at their limits, ranges, shapes, sizes of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.inputs.distilled_inputs import StatisticsSource
from graphpress.passes.recover.inputs.zeroq import ZeroQ
from tests import kit


def value(*dims: int | str | None, name: str | None = "x") -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


def source(options: dict[str, Any], *dims: int | str | None, size: int = 5) -> StatisticsSource:
    return ZeroQ(**options)._source(value(*dims), size)


def ends(found: StatisticsSource) -> list[list[float]]:
    return [np.ravel(a).tolist() for a in (found.mean, found.std, found.low, found.high)]


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"samples": 0}, True), ({"samples": 1}, False), ({"batch": 0}, True), ({"batch": 1}, False),
        ({"iterations": 0}, True), ({"iterations": 1}, False), ({"rate": 0.0}, True), ({"rate": 1e-9}, False),
        ({"reach": 0.0}, True), ({"reach": 1e-9}, False), ({"seconds": 0.0}, True), ({"seconds": 1e-9}, False),
        ({"std": (1.0, 0.0)}, True), ({"std": (1.0, 1e-9)}, False), ({"std": (-1.0,)}, True),
        ({"range": (1.0, 1.0)}, True), ({"range": (1.0, 1.1)}, False), ({"range": (2.0, 1.0)}, True),
    ],
)  # fmt: skip
def test_limits_of_options(options: dict[str, Any], refused: bool) -> None:
    if not refused:
        ZeroQ(**options)
        return
    with pytest.raises(BadRequest, match=next(iter(options))):
        ZeroQ(**options)


def test_without_options_inputs_are_normalised_images() -> None:
    found = source({}, "N", 3, 8, 8)
    assert (found.name, found.shape) == ("x", (5, 3, 8, 8))
    np.testing.assert_allclose(np.concatenate(ends(found)), [0, 1, -2.4, 2.4], rtol=1e-6)
    assert found.mean.shape == found.std.shape == (1, 1, 1)


def test_a_range_says_mean_and_deviation() -> None:
    """Both ends are two standard deviations from the middle."""
    assert ends(source({"range": (0.0, 255.0)}, "N", 3, 8, 8)) == [[127.5], [63.75], [0.0], [255.0]]
    assert ends(source({"range": (-1.0, 2.0), "std": (0.25,)}, "N", 3)) == [[0.5], [0.25], [-1.0], [2.0]]


def test_each_channel_may_have_its_own() -> None:
    found = source({"mean": (1.0, 2.0, 3.0), "std": (2.0,), "reach": 1.5}, "N", 3, 8, 8)
    assert ends(found) == [[1, 2, 3], [2], [-2, -1, 0], [4, 5, 6]]
    assert found.mean.shape == (3, 1, 1) and found.low.dtype == np.float32
    for wrong in ((1.0, 2.0), (1.0,) * 8):
        with pytest.raises(BadRequest, match=f"has {len(wrong)} numbers, the input 3 channels"):
            source({"mean": wrong}, "N", 3, 8, 8)


def test_shapes() -> None:
    assert source({}, "N", 4).shape == (5, 4)
    assert source({"shape": (3, 6, 7)}, "N", 3, "H", None).shape == (5, 3, 6, 7)
    assert source({"shape": (3, 6, 7)}, "N", 3, 6, 7).shape == (5, 3, 6, 7)
    with pytest.raises(BadRequest, match="leaves its shape open"):
        source({}, "N", 3, "H", 8)
    with pytest.raises(BadRequest, match="leaves its shape open"):
        source({"shape": (3, 0)}, "N", 3, "H")
    for given in ((4, 6, 7), (3, 6), (3, 6, 7, 8)):
        with pytest.raises(BadRequest, match=r"a sample has shape \[3, '\?', 7\], not"):
            source({"shape": given}, "N", 3, "H", 7)
    with pytest.raises(BadRequest, match="unknown or has no channels"):
        source({}, "N")
    unknown = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    with pytest.raises(BadRequest, match="unknown or has no channels"):
        ZeroQ()._source(unknown, 5)


def test_only_floats_have_statistics() -> None:
    whole = ir.Value(name="x", shape=ir.Shape([1, 3]), type=ir.TensorType(ir.DataType.INT32))
    with pytest.raises(BadRequest, match="input 'x': it holds INT32, no floats"):
        ZeroQ()._source(whole, 5)
    with pytest.raises(BadRequest, match="it holds numbers of an unknown type"):
        ZeroQ()._source(ir.Value(name="x", shape=ir.Shape([1, 3])), 5)


def test_the_size_of_a_batch_is_the_models_or_the_options() -> None:
    def size(*first: int | str, **options: Any) -> int:
        made = ir.Model(ir.Graph([value(d, 7, name=f"x{i}") for i, d in enumerate(first)], [], nodes=[]), ir_version=10)
        return ZeroQ(**options)._size(made)

    assert size("N", samples=9, batch=4) == 4 and size("N", samples=3, batch=4) == 3
    assert size("N", 6, samples=3) == 6 and size(6, 6, samples=3) == 6
    with pytest.raises(BadRequest, match=r"different batch sizes: \[2, 6\]"):
        size(6, 2)


def test_given_data_are_used_and_it_is_said() -> None:
    made, report = kit.parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"), PassReport()
    ctx = Context(data=CalibrationData.from_arrays({"x": np.ones((2, 3), np.float32)}))
    ZeroQ().run(made, ctx, report)
    assert [s.where for s in report.skips] == ["calibration data"] and "was given and is used" in report.skips[0].why
    with pytest.raises(BadRequest, match="holds no statistics"):
        ZeroQ(always=True).run(made, ctx, PassReport())
    with pytest.raises(BadRequest, match="holds no statistics"):
        ZeroQ().run(made, Context(), PassReport())
