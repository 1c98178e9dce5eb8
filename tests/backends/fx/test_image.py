"""Resizing and sampling of pictures: old opsets, random settings, types, gradients, symbolic sizes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.backends import fx as backend
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, model, module, normal, same

NOTHING = np.array([], np.float32)
HALVES = ("half_pixel", "pytorch_half_pixel")
COORDINATES = (*HALVES, "align_corners", "asymmetric", "half_pixel_symmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# -- Resize


@given(
    st.sampled_from(["nearest", "linear", "cubic"]), st.sampled_from(COORDINATES), st.sampled_from(NEAREST),
    st.tuples(st.integers(2, 9), st.integers(2, 9)), st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.booleans(), st.sampled_from([-0.75, -0.5]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resize_to_sizes(
    mode: str, coordinates: str, nearest: str, size: tuple[int, int], out: tuple[int, int], exclude: bool, a: float
) -> None:
    x = normal(1, 2, *size, seed=size[0])
    options = {"mode": mode, "coordinate_transformation_mode": coordinates, "opset": 19, "constants": [1, 3]}
    if mode == "nearest":
        # ONNX Runtime divides in float32 and so decides some of the ties by its rounding
        assume(not _ties(size, out, coordinates))
        options["nearest_mode"] = nearest
    if mode == "cubic":
        options |= {"cubic_coeff_a": a, "exclude_outside": int(exclude)}
    inputs = (x, NOTHING, None, ints(1, 2, *out))
    same(in_torch("Resize", *inputs, **options), in_ort("Resize", *inputs, **options), rtol=2e-5, atol=2e-5)


def _ties(size: tuple[int, int], out: tuple[int, int], coordinates: str) -> bool:
    """Whether some place lies on a half or a whole of the input without being the outcome of a power of two."""
    if coordinates == "align_corners":
        pairs = [(n - 1, max(m - 1, 1)) for n, m in zip(size, out, strict=True)]
    else:
        pairs = list(zip(size, out, strict=True))
    return any(m & (m - 1) or n & (n - 1) for n, m in pairs)


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.6, 0.75, 1.3, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "half_pixel_symmetric"])
def test_resize_by_scales(scale: float, mode: str, coordinates: str) -> None:
    inputs = (normal(1, 2, 7, 10), None, floats(1, 1, scale, scale))
    options = {"opset": 19, "constants": [2], "mode": mode, "coordinate_transformation_mode": coordinates}
    same(in_torch("Resize", *inputs, **options), in_ort("Resize", *inputs, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("out", [(3, 4), (5, 13), (10, 2)])
def test_antialias(mode: str, exclude: int, out: tuple[int, int]) -> None:
    inputs = (normal(1, 2, 10, 11), None, None, ints(*out))
    options: dict[str, Any] = {
        "opset": 19, "constants": [3], "mode": mode, "antialias": 1, "axes": [2, 3], "exclude_outside": exclude,
    }  # fmt: skip
    same(in_torch("Resize", *inputs, **options), in_onnx("Resize", *inputs, **options), rtol=1e-5, atol=1e-6)


def test_antialias_is_that_of_torch() -> None:
    x = normal(1, 2, 12, 15)
    options: dict[str, Any] = {"opset": 18, "constants": [3], "mode": "linear", "antialias": 1, "exclude_outside": 1}
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), (5, 4), mode="bilinear", antialias=True)
    same(in_torch("Resize", x, None, None, ints(1, 2, 5, 4), **options), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("region", [(0.2, 0.1, 0.7, 0.9), (-0.25, 0.5, 0.5, 1.5)])
def test_crop_and_resize(mode: str, region: tuple[float, ...]) -> None:
    inputs = (normal(2, 5, 8), floats(0, *region[:2], 1, *region[2:]), None, ints(2, 4, 7))
    options = {
        "opset": 13, "constants": [1, 3], "mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 9.0,
    }  # fmt: skip
    same(in_torch("Resize", *inputs, **options), in_onnx("Resize", *inputs, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2]])
def test_aspect_ratio(policy: str, axes: list[int]) -> None:
    inputs = (normal(1, 2, 5, 8), None, None, ints(9, 7))
    options = {"opset": 18, "constants": [3], "mode": "linear", "keep_aspect_ratio_policy": policy, "axes": axes}
    same(in_torch("Resize", *inputs, **options), in_ort("Resize", *inputs, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(0.6, 0.6), (0.5, 0.75), (1.5, 1.3), (2.0, 3.0), (0.5, 2.0)])
def test_resize_of_opset_10(mode: str, scales: tuple[float, float]) -> None:
    inputs = (normal(1, 1, 4, 6), floats(1, 1, *scales))
    options = {"opset": 10, "constants": [1], "mode": mode}
    same(in_torch("Resize", *inputs, **options), in_ort("Resize", *inputs, **options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    x = normal(1, 2, 3, 4)
    scales = (1.0, 1.0, 1.5, 3.0)
    newer = {"opset": 9, "constants": [1], "mode": mode}
    expected = in_ort("Upsample", x, floats(*scales), **newer)
    same(in_torch("Upsample", x, floats(*scales), **newer), expected, rtol=1e-6, atol=1e-6)
    same(in_torch("Upsample", x, opset=7, mode=mode, scales=list(scales)), expected, rtol=1e-6, atol=1e-6)
    oldest = "bilinear" if mode == "linear" else mode
    y = in_torch("Upsample", x, opset=1, mode=oldest, height_scale=1.5, width_scale=3.0)
    same(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [(10, 0.7), (20, 1.05), (60, 1.05), (3, 1 / 3), (15, 1 / 3), (11, 2.3)])
def test_the_size_is_rounded_as_in_float32(size: int, scale: float) -> None:
    inputs = (normal(1, 1, size), None, floats(1, 1, scale))
    options = {"opset": 13, "constants": [2], "mode": "linear"}
    assert in_torch("Resize", *inputs, **options).shape == in_ort("Resize", *inputs, **options).shape


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16])
def test_integers_are_rounded_and_saturated(dtype: type) -> None:
    info = np.iinfo(dtype)
    x = np.array([[[info.min, info.max, info.max, info.min, 7, 100, 33]]], dtype)
    inputs = (x, None, floats(1, 1, 2.5))
    options = {"opset": 19, "constants": [2], "mode": "cubic"}
    same(in_torch("Resize", *inputs, **options), in_onnx("Resize", *inputs, **options))


def test_large_integers_keep_their_digits() -> None:
    x = np.array([[[2**31 - 5, 2**30 + 3, -(2**31) + 9]]], np.int32)
    a, b, c = x[0, 0].astype(np.float64)
    expected = [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, 0.75 * b + 0.25 * c, 0.25 * b + 0.75 * c, c]
    y = in_torch("Resize", x, None, floats(1, 1, 2), opset=19, constants=[2], mode="linear")
    same(y, np.round(expected).astype(np.int32).reshape(1, 1, 6))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_rounds_once(dtype: type) -> None:
    x = normal(1, 1, 5, 6).astype(dtype)
    options = {"opset": 19, "constants": [2], "mode": "cubic", "exclude_outside": 1}
    wide = in_torch("Resize", x.astype(np.float32), None, floats(1, 1, 1.7, 2), **options)
    y = in_torch("Resize", x, None, floats(1, 1, 1.7, 2), **options)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), wide.astype(dtype).astype(np.float32))


def test_modes_that_there_are_not() -> None:
    with pytest.raises(Unsupported, match="lanczos"):
        in_torch("Resize", normal(1, 1, 4), None, floats(1, 1, 2), opset=19, constants=[2], mode="lanczos")


@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_has_derivatives(coordinates: str, mode: str) -> None:
    options = {"opset": 19, "constants": [2], "mode": mode, "coordinate_transformation_mode": coordinates}
    resize = module("Resize", normal(1, 1, 3, 4, dtype=np.float64), None, floats(1, 1, 1.5, 0.6), **options)
    assert torch.autograd.gradcheck(resize, doubles(1, 1, 3, 4))


@pytest.mark.parametrize(("mode", "scale"), [("nearest", 2.0), ("linear", 0.3), ("cubic", 1.5)])
def test_resize_of_symbolic_sizes(mode: str, scale: float) -> None:
    inputs = (normal(1, 2, 9, 12), None, floats(1, 1, scale, scale))
    options: dict[str, Any] = {"opset": 19, "constants": [2], "mode": mode}
    resize = backend.build(model("Resize", *inputs, shapes={0: [1, 2, "h", "w"]}, **options))
    torch._dynamo.reset()
    compiled = torch.compile(resize, fullgraph=True, backend="eager", dynamic=True)
    for size in ((9, 12), (17, 30)):
        x = torch.from_numpy(normal(1, 2, *size))
        torch.testing.assert_close(compiled(x), resize(x), rtol=1e-6, atol=1e-6)


# -- sampling


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5)])
def test_grid_sample(mode: str, padding: str, align: int, sizes: tuple[int, ...]) -> None:
    no_runtime = len(sizes) == 3 and mode == "cubic"
    # ONNX's reference moves points outside to the border before it looks around them, ONNX Runtime and torch do not
    reach = 1 if no_runtime and padding == "border" else 2
    grid = np.random.default_rng(1).uniform(-reach, reach, (1, *sizes, len(sizes))).astype(np.float32)
    inputs = (normal(1, 2, *sizes), grid)
    options = {"opset": 20, "mode": mode, "padding_mode": padding, "align_corners": align}
    other = in_onnx if no_runtime else in_ort
    same(in_torch("GridSample", *inputs, **options), other("GridSample", *inputs, **options), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample_of_a_line(mode: str, padding: str) -> None:
    inputs = (normal(1, 2, 6), np.random.default_rng(1).uniform(-2, 2, (1, 9, 1)).astype(np.float32))
    options = {"opset": 20, "mode": mode, "padding_mode": padding}
    same(in_torch("GridSample", *inputs, **options), in_onnx("GridSample", *inputs, **options), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample_by_the_names_of_opset_16(mode: str) -> None:
    inputs = (normal(1, 2, 4, 5), np.random.default_rng(1).uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32))
    options = {"opset": 16, "mode": mode}
    same(in_torch("GridSample", *inputs, **options), in_ort("GridSample", *inputs, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(4, 5), (2, 3, 3)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_grid_sample_has_derivatives(sizes: tuple[int, ...], mode: str) -> None:
    grid = torch.rand(1, *sizes, len(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    sample = module(
        "GridSample", normal(1, 1, *sizes, dtype=np.float64), grid.numpy(), opset=20, mode=mode, align_corners=1
    )
    assert torch.autograd.gradcheck(sample, (doubles(1, 1, *sizes), grid.requires_grad_()))


@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid_of_no_change_is_the_picture(align: int) -> None:
    theta = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    grid = in_torch("AffineGrid", theta, ints(1, 1, 4, 6), opset=20, constants=[1], align_corners=align)
    x = normal(1, 1, 4, 6)
    same(in_torch("GridSample", x, grid, opset=20, align_corners=align), x, rtol=1e-5, atol=1e-6)


# -- movement


@pytest.mark.parametrize("shape", [(4, 9), (7, 2), (5, 6), (8, 3)])
@pytest.mark.parametrize("axes", [[0, 1], [-1, 0]])
def test_center_crop_pad(shape: tuple[int, int], axes: list[int]) -> None:
    inputs, options = (normal(5, 6), ints(*shape)), {"opset": 18, "constants": [1], "axes": axes}
    same(in_torch("CenterCropPad", *inputs, **options), in_onnx("CenterCropPad", *inputs, **options))


def test_center_crop_pad_of_symbolic_sizes() -> None:
    x = normal(5, 6)
    pad = backend.build(model("CenterCropPad", x, ints(4, 9), opset=18, constants=[1], shapes={0: ["h", "w"]}))
    exported = torch.export.export(
        pad, (torch.from_numpy(x),), dynamic_shapes=[{0: torch.export.Dim("h"), 1: torch.export.Dim("w")}]
    ).module()
    for size in ((5, 6), (3, 14)):
        x = normal(*size)
        expected = in_onnx("CenterCropPad", x, ints(4, 9), opset=18, constants=[1])
        np.testing.assert_array_equal(exported(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize(("opset", "mode"), [(1, "DCR"), (11, "DCR"), (11, "CRD"), (13, "DCR"), (13, "CRD")])
def test_depth_to_space(opset: int, mode: str) -> None:
    x = normal(2, 12, 3, 5)
    options: dict[str, Any] = {"blocksize": 2, **({"mode": mode} if opset > 1 else {})}
    y = in_torch("DepthToSpace", x, opset=opset, **options)
    same(y, in_ort("DepthToSpace", x, opset=opset, **options))
    if mode == "DCR":
        same(in_torch("SpaceToDepth", y, opset=13, blocksize=2), x)


# -- boxes


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize(
    ("limit", "overlap", "score"), [(3, 0.5, 0.0), (100, 0.3, 0.4), (0, 0.5, 0.0), (100, 0.9, 2.0)]
)
def test_non_max_suppression(center: int, limit: int, overlap: float, score: float) -> None:
    rng = np.random.default_rng(3)
    boxes = rng.uniform(0, 1, (2, 30, 4)).astype(np.float32)
    scores = rng.integers(0, 12, (2, 3, 30)).astype(np.float32) / 12  # many are equal
    inputs = (boxes, scores, ints(limit), floats(overlap), floats(score))
    options = {"opset": 11, "constants": [2, 3, 4], "center_point_box": center}
    given_, expected = (run("NonMaxSuppression", *inputs, **options) for run in (in_torch, in_ort))
    same(given_, expected.reshape(-1, 3))


def test_no_limit_chooses_no_box() -> None:
    boxes, scores = normal(1, 4, 4), normal(1, 1, 4)
    assert in_torch("NonMaxSuppression", boxes, scores, opset=11).shape == (0, 3)


@pytest.mark.parametrize("scales", [(1.0, 2.0), (3.0, 4.0), (0.5, 3.0), (2.5, 2.0)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_whole_steps_from_the_corner(scales: tuple[float, float], mode: str) -> None:
    """Which go by torch's kernel from corner to corner, one place further."""
    inputs = (normal(2, 3, 4, 5), None, floats(1, 1, *scales))
    options = {"opset": 19, "constants": [2], "mode": mode, "coordinate_transformation_mode": "asymmetric"}
    same(in_torch("Resize", *inputs, **options), in_ort("Resize", *inputs, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("antialias", [0, 1])
def test_an_infinity_stays_where_it_is(antialias: int) -> None:
    x = np.zeros((1, 1, 4, 40), np.float32)
    x[..., 3] = np.inf
    options = {"opset": 19, "constants": [2], "mode": "linear", "antialias": antialias}
    y = in_torch("Resize", x, None, floats(1, 1, 1, 0.2), **options)
    assert np.isfinite(y[..., 2:]).all()


def test_no_place_is_left() -> None:
    for mode in ("nearest", "linear", "cubic"):
        options = {"opset": 19, "constants": [2], "mode": mode, "exclude_outside": int(mode == "cubic")}
        assert in_torch("Resize", normal(1, 2, 8, 1), None, floats(1, 1, 2, 0.5), **options).shape == (1, 2, 16, 0)
