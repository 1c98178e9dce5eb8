"""Pooling by windows, over everything and over regions: random settings, types, gradients, one graph for all sizes."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.backends.fx.ops import regions
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

CLOSE = {"rtol": 1e-5, "atol": 2e-6}
Sizes = tuple[int, ...]


@st.composite
def windows(draw: st.DrawFn, dilated: bool = True) -> tuple[Sizes, dict[str, Any]]:
    """(sizes, attributes) of one to three axes."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel, sizes = each(1, 4), tuple(each(5, 9))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "ceil_mode": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        attributes["strides"] = each(1, 3)
    kind = draw(st.sampled_from(["none", "any", "half", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "any":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif kind == "half":
        attributes["pads"] = [draw(st.integers(0, k // 2)) for k in kernel] * 2
        attributes["pads"][rank:] = attributes["pads"][:rank]
    elif kind != "none":
        attributes["auto_pad"] = kind
    if dilated and not kind.startswith("SAME") and draw(st.booleans()):  # ONNX Runtime pads as without dilations
        attributes["dilations"] = each(1, 2)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, attributes.get("dilations", [1] * rank), strict=True)]
    pads = attributes.get("pads", [0] * 2 * rank)
    assume(all(r <= n + pads[i] + pads[i + rank] for i, (n, r) in enumerate(zip(sizes, reach, strict=True))))
    return sizes, attributes


# -- MaxPool


@given(windows(), st.integers(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_max_pool(setting: tuple[Sizes, dict[str, Any]], order: int) -> None:
    sizes, attributes = setting
    options = {"opset": 12, "outputs": 2, "storage_order": order, **attributes}
    x = normal(2, 2, *sizes)
    for given_, expected in zip(in_torch("MaxPool", x, **options), in_ort("MaxPool", x, **options), strict=True):
        same(given_, expected)


@given(windows(), st.sampled_from([np.uint8, np.int8]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_max_pool_of_integers(setting: tuple[Sizes, dict[str, Any]], dtype: type) -> None:
    sizes, attributes = setting
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max + 1, (2, 2, *sizes)).astype(dtype)
    same(in_torch("MaxPool", x, opset=12, **attributes), in_ort("MaxPool", x, opset=12, **attributes))


def test_dilations_count_for_same_padding() -> None:
    x = normal(1, 1, 8)
    found = in_torch("MaxPool", x, opset=12, kernel_shape=[3], dilations=[2], auto_pad="SAME_UPPER")
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2)), constant_values=-np.inf)
    same(found, np.maximum(np.maximum(padded[..., :-4], padded[..., 2:-2]), padded[..., 4:]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_types_of_pools(dtype: type) -> None:
    x = normal(2, 3, 6, 5, 4).astype(dtype)
    wide = x.astype(np.float32) if dtype != np.float64 else x
    step = {np.float16: 1e-3, np.float64: 1e-7}.get(dtype, 1e-2)
    for op in ("MaxPool", "AveragePool", "LpPool"):
        options = {"opset": 22, "kernel_shape": [2, 3, 2], "strides": [1, 2, 1], "pads": [0, 1, 0, 1, 1, 0]}
        y = in_torch(op, x, **options)
        assert y.dtype == dtype
        expected = in_torch(op, wide, **options)
        np.testing.assert_allclose(y.astype(np.float64), expected.astype(np.float64), rtol=step, atol=step)


def test_max_pool_of_opsets_1_to_10() -> None:
    x = normal(1, 2, 6, 6)
    expected = in_ort("MaxPool", x, opset=12, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    for opset in (1, 8, 10):
        options = {"opset": opset, "kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}
        same(in_torch("MaxPool", x, **options), expected)


# -- averages and norms


@given(windows(), st.integers(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_average_pool(setting: tuple[Sizes, dict[str, Any]], count: int) -> None:
    sizes, attributes = setting
    x, options = normal(2, 2, *sizes), {"opset": 19, "count_include_pad": count, **attributes}
    same(in_torch("AveragePool", x, **options), in_ort("AveragePool", x, **options), **CLOSE)


@given(windows(), st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_lp_pool(setting: tuple[Sizes, dict[str, Any]], p: int) -> None:
    sizes, attributes = setting
    x, options = normal(2, 2, *sizes), {"opset": 18, "p": p, **attributes}
    same(in_torch("LpPool", x, **options), in_ort("LpPool", x, **options), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_four_axes(op: str) -> None:
    x = normal(1, 1, 4, 4, 3, 3)
    options = {"opset": 12, "kernel_shape": [2] * 4, "pads": [1, 0, 0, 0, 0, 0, 0, 1]}
    if op == "MaxPool":
        with pytest.raises(Unsupported, match="one to three axes"):
            in_torch(op, x, **options)
        return
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 1)))
    ones = np.pad(np.ones_like(x), ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 1)))
    squares, count = np.zeros((1, 1, 4, 3, 2, 3), np.float32), np.zeros((1, 1, 4, 3, 2, 3), np.float32)
    plain = np.zeros_like(squares)
    for corner in itertools.product(range(2), repeat=4):
        part = (..., *(slice(c, c + n) for c, n in zip(corner, squares.shape[2:], strict=True)))
        squares, plain, count = squares + padded[part] ** 2, plain + padded[part], count + ones[part]
    same(in_torch(op, x, **options), np.sqrt(squares) if op == "LpPool" else plain / count, **CLOSE)


@pytest.mark.parametrize("opset", [1, 2])
def test_lp_pool_of_opset_1(opset: int) -> None:
    """Its exponent is a float."""
    x = normal(1, 2, 6)
    y = in_torch("LpPool", x, opset=opset, kernel_shape=[2], strides=[2], p=3.0 if opset == 1 else 3)
    same(y, (np.abs(x.reshape(1, 2, 3, 2)) ** 3).sum(-1) ** (1 / 3), **CLOSE)


def test_norms_of_half_precision_do_not_overflow() -> None:
    x = np.full((1, 1, 4, 4), 1000, np.float16)
    expected = np.full((1, 1, 2, 2), 2000, np.float16)
    same(in_torch("LpPool", x, opset=18, kernel_shape=[2, 2], strides=[2, 2]), expected)
    same(in_torch("GlobalLpPool", x), np.full((1, 1, 1, 1), 4000, np.float16))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_pools_over_everything(rank: int) -> None:
    x = normal(2, 3, *(4, 5, 2, 3)[:rank])
    axes = tuple(range(2, rank + 2))
    same(in_torch("GlobalAveragePool", x), x.mean(axes, keepdims=True), **CLOSE)
    same(in_torch("GlobalMaxPool", x), x.max(axes, keepdims=True))
    for p in (1, 2, 3):
        expected = (np.abs(x) ** p).sum(axes, keepdims=True) ** (1 / p)
        same(in_torch("GlobalLpPool", x, p=p), expected.astype(np.float32), **CLOSE)
    same(in_torch("GlobalLpPool", x, opset=1, p=2.0), in_torch("GlobalLpPool", x))


@pytest.mark.parametrize(("op", "attributes"), [
    ("MaxPool", {"pads": [0, 1, 1, 0]}), ("AveragePool", {"pads": [0, 1, 1, 0], "ceil_mode": 1}),
    ("AveragePool", {"dilations": [2, 1], "count_include_pad": 1}), ("LpPool", {"ceil_mode": 1}),
])  # fmt: skip
def test_pools_have_derivatives(op: str, attributes: dict[str, Any]) -> None:
    built = module(
        op, normal(1, 2, 6, 5, dtype=np.float64), opset=19, kernel_shape=[3, 2], strides=[2, 2], **attributes
    )
    assert torch.autograd.gradcheck(built, (doubles(1, 2, 6, 5),))


# -- MaxUnpool


@pytest.mark.parametrize("sizes", [(6,), (6, 8), (4, 6, 4)])
def test_unpooling(sizes: Sizes) -> None:
    window = {"kernel_shape": [2] * len(sizes), "strides": [2] * len(sizes), "opset": 12}
    x = normal(2, 3, *sizes)
    y, index = in_torch("MaxPool", x, outputs=2, **window)
    back = in_torch("MaxUnpool", y, index, **window)
    same(back, in_ort("MaxUnpool", y, index, **window))
    same(back[back != 0], x[back != 0])
    larger = np.array([2, 3, *(n + 1 for n in sizes)])
    expected = np.pad(back, ((0, 0), (0, 0), *((0, 1) for _ in sizes)))
    same(in_torch("MaxUnpool", y, index, larger, constants=[2], **window), expected)


# -- regions

ROIS = np.array([[0, 0, 5, 6], [1.3, 2.2, 9.7, 8.8], [-2, -3, 20, 20], [4, 4, 4.2, 4.1], [7, 7, 3, 3]], np.float32)
BATCH = np.array([0, 1, 1, 0, 0])


@pytest.mark.parametrize("opset", [10, 16, 22])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
def test_roi_align(opset: int, mode: str, ratio: int, coordinates: str) -> None:
    x = normal(2, 3, 10, 12)
    options: dict[str, Any] = {
        "mode": mode, "sampling_ratio": ratio, "output_height": 3, "output_width": 2, "spatial_scale": 0.7,
    }  # fmt: skip
    if opset == 10 and coordinates == "half_pixel":
        pytest.skip("opset 10 has no other coordinates than output_half_pixel")
    newer = {**options, "coordinate_transformation_mode": coordinates}
    expected = in_ort("RoiAlign", x, ROIS, BATCH, opset=16, **newer)  # which has none for opset 22
    given_ = in_torch("RoiAlign", x, ROIS, BATCH, opset=opset, **(options if opset == 10 else newer))
    same(given_, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.7])
def test_max_roi_pool(scale: float) -> None:
    rois = np.concatenate([BATCH[:4, None], ROIS[:4]], 1).astype(np.float32)
    options = {"opset": 1, "pooled_shape": [3, 2], "spatial_scale": scale}
    x = normal(2, 3, 10, 12)
    same(in_torch("MaxRoiPool", x, rois, **options), in_ort("MaxRoiPool", x, rois, **options))


def test_corners_are_rounded_away_from_zero() -> None:
    x = normal(1, 1, 8, 8)
    rois = np.array([[0, 0.5, 2.5, 3.5, 4.5]], np.float32)
    y = in_torch("MaxRoiPool", x, rois, opset=1, pooled_shape=[1, 1])
    same(y, x[:, :, 3:6, 1:5].max((2, 3), keepdims=True))


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_has_derivatives(ratio: int) -> None:
    x, rois = doubles(1, 2, 6, 6), torch.tensor([[0.3, 0.7, 3.9, 4.2]], dtype=torch.float64, requires_grad=True)

    def align(x: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        return regions.roi_align(
            x, rois, torch.zeros(1, dtype=torch.int64), sampling_ratio=ratio, output_height=2, output_width=2
        )

    assert torch.autograd.gradcheck(align, (x, rois))


def test_no_regions() -> None:
    x = normal(1, 2, 4, 4)
    y = in_torch("RoiAlign", x, ROIS[:0], BATCH[:0], opset=16, output_height=2, output_width=3)
    assert y.shape == (0, 2, 2, 3)


# -- one graph


@pytest.mark.parametrize(("op", "options"), [
    pytest.param(
        "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER", "outputs": 2},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1},
        marks=pytest.mark.slow,
    ),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    pytest.param(
        "AveragePool", {"kernel_shape": [3, 2], "dilations": [2, 2], "ceil_mode": 1}, marks=pytest.mark.slow
    ),
    pytest.param("GlobalLpPool", {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_symbolic_sizes(op: str, options: dict[str, Any]) -> None:
    x = torch.from_numpy(normal(2, 3, 9, 12))
    built = module(op, x.numpy(), shapes={0: ["n", 3, "h", "w"]}, **options)
    every = torch.export.Dim.DYNAMIC
    exported = torch.export.export(built, (x,), dynamic_shapes=({0: every, 2: every, 3: every},))
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    other = torch.from_numpy(normal(3, 3, 14, 17))
    for run in (exported.module(), compiled):
        torch.testing.assert_close(run(other), built(other), rtol=1e-6, atol=1e-6)


def test_the_reference_agrees_where_no_window_reaches_out() -> None:
    x, options = normal(1, 2, 7, 8), {"opset": 19, "kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]}
    same(in_torch("AveragePool", x, **options), in_onnx("AveragePool", x, **options), **CLOSE)
