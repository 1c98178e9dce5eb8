"""One-node models at older opsets for what no case of ``onnx.backend.test`` can be written back to: operators that
went, defaults and values of attributes that changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper  # noqa: TID251 - onnx_ir writes no models of opsets this old

from graphpress.tools.conformance.earlier import Earlier

SEED = 5
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


def made() -> Iterator[Earlier]:
    """All of them."""
    for part in (_flattened, _resized, _normalised, _drawn, _moved, _pooled, _bodies, _defaults):
        yield from part()


def _one(
    op: str,
    opset: int,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any] | None = None,
    outputs: Sequence[int] = (_FLOAT,),
) -> Earlier:
    """A node with ``inputs`` (None: left out) and outputs of some element types (0: not asked for)."""
    arrays = {f"x{i}": np.asarray(v) for i, v in enumerate(inputs) if v is not None}
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    results = [f"y{i}" if t else "" for i, t in enumerate(outputs)]
    node = helper.make_node(op, names, results, **(attributes or {}))
    types = {
        n: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(a.dtype), None) for n, a in arrays.items()
    }
    types |= {n: helper.make_tensor_type_proto(t, None) for n, t in zip(results, outputs, strict=True) if n}
    shown = [a.tolist() if a.size < 5 else list(a.shape) for a in arrays.values()]
    label = f"{op}-{opset} {shown} {_shown(attributes or {})}"
    return Earlier(label, op, opset, node, arrays, types)


def _shown(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: "..." if isinstance(v, onnx.GraphProto | onnx.TensorProto) else v for k, v in attributes.items()}


def _x(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(SEED).normal(size=shape) * scale).astype(np.float32)


def _floats(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def _ints(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def _flattened() -> Iterator[Earlier]:
    """Up to opset 12 these work on the input as a matrix, cut before ``axis``."""
    shapes = [(5,), (3, 4), (2, 3, 4), (2, 1, 3, 4), (1, 2, 2, 3, 2)]
    for op, opset, shape in itertools.product(("Softmax", "LogSoftmax", "Hardmax"), (7, 11), shapes):
        axes = [*range(len(shape)), *([-1, -len(shape)] if opset == 11 else [])]
        yield from (_one(op, opset, [_x(*shape)], {"axis": a}) for a in axes)
        yield _one(op, opset, [_x(*shape)])
    for opset, axis in itertools.product((7, 9, 11), (0, 1, 2, 3)):
        yield _one("Flatten", opset, [_x(2, 3, 4)], {"axis": axis})


_SCALES: list[tuple[float, ...]] = [(1, 1, 2, 2), (1, 1, 1.5, 1.5), (1, 1, 1, 3), (1, 1, 2.6, 1.3), (2, 1, 1, 1)]
_DOWN: list[tuple[float, ...]] = [
    (1, 1, 0.5, 0.5),
    (1, 1, 0.6, 0.6),
    (1, 1, 0.3, 1),
    (1, 1, 2, 0.5),
    (1, 1, 0.4, 1.7),
    (1, 1, 1, 1),
]
_COORDINATES = ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "tf_half_pixel_for_nn")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _resized() -> Iterator[Earlier]:
    x = _x(2, 3, 5, 6)
    for mode, scales in itertools.product(("nearest", "linear", "bilinear"), _SCALES):
        yield _one("Upsample", 7, [x], {"mode": mode, "scales": [float(s) for s in scales]})
        yield _one("Upsample", 9, [x, _floats(scales)], {"mode": mode})
    yield _one("Upsample", 7, [x], {"scales": [1.0, 1.0, 2.0, 2.0]})
    for mode, (shape, scales) in itertools.product(
        ("nearest", "linear"),
        [((5, 6), (2, 3)), ((2, 3, 5), (1, 1, 2)), ((1, 2, 3, 4, 5), (1, 1, 2, 1, 2)), ((7,), (2,))],
    ):
        yield _one("Upsample", 9, [_x(*shape), _floats(scales)], {"mode": mode})
        yield _one("Resize", 10, [_x(*shape), _floats(scales)], {"mode": mode})
    for mode, scales in itertools.product(("nearest", "linear"), [*_SCALES, *_DOWN]):
        yield _one("Resize", 10, [x, _floats(scales)], {"mode": mode})
    for opset in (11, 13, 18):
        yield from _resized_since_11(opset, x)


def _resized_since_11(opset: int, x: np.ndarray) -> Iterator[Earlier]:
    none = _floats([]) if opset == 11 else None
    scales, sizes = [_SCALES[0], _SCALES[3], _DOWN[1], _DOWN[4]], [(2, 3, 10, 12), (2, 3, 7, 4)]
    ways: list[dict[str, Any]] = [{"mode": "nearest", "nearest_mode": n} for n in _NEAREST]
    ways += [{"mode": "linear"}, {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}]
    for coordinates, way in itertools.product(_COORDINATES, ways):
        if coordinates == "tf_half_pixel_for_nn" and opset > 11:
            continue
        attributes = {**way, "coordinate_transformation_mode": coordinates}
        yield from (_one("Resize", opset, [x, none, _floats(s)], attributes) for s in scales)
        yield from (
            _one("Resize", opset, [x, none, _floats([]) if opset == 11 else None, _ints(s)], attributes) for s in sizes
        )
    roi = _floats([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.2])
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    for way in ({"mode": "linear"}, {"mode": "nearest"}):
        yield _one("Resize", opset, [x, roi, _floats((1, 1, 0.8, 1.6))], {**crop, **way})
    yield _one("Resize", opset, [x, none, _floats((1, 1, 2, 2))])


def _normalised() -> Iterator[Earlier]:
    x, c = _x(2, 3, 4, 5), [np.abs(_x(3)) + i for i in (0.1, 0.2, 0.3, 0.4)]
    for opset in (7, 9, 14):
        yield _one("BatchNormalization", opset, [x, *c])
        yield _one("BatchNormalization", opset, [x, *c], {"epsilon": 0.1, "momentum": 0.5})
        yield _one("BatchNormalization", opset, [_x(6, 3), *c])
    for spatial in (0, 1):
        wide = c if spatial else [np.abs(_x(3, 4, 5)) + i for i in (0.1, 0.2, 0.3, 0.4)]
        yield _one("BatchNormalization", 7, [x, *wide], {"spatial": spatial})
    g = _floats([0.5, 2.0])
    yield _one("GroupNormalization", 18, [_x(2, 4, 3, 3), g, g - 1], {"num_groups": 2})
    yield _one("GroupNormalization", 18, [_x(2, 4, 3, 3), _x(4), _x(4)], {"num_groups": 4})
    yield _one("GroupNormalization", 21, [_x(2, 4, 3, 3), _x(4), _x(4)], {"num_groups": 2})


def _drawn() -> Iterator[Earlier]:
    """With a seed they draw the same numbers; without being asked to train, Dropout drops nothing."""
    for opset, ratio, mask in itertools.product((7, 10), (0.5, 0.0), (0, 1)):
        kinds = (_FLOAT, *((_FLOAT if opset == 7 else TensorProto.BOOL,) * mask))
        yield _one("Dropout", opset, [_x(3, 4)], {"ratio": ratio}, kinds)
    yield _one("Dropout", 12, [_x(3, 4), np.float32(0.5)], None, (_FLOAT, TensorProto.BOOL))
    yield _one("Dropout", 13, [_x(3, 4), np.float32(0.5), np.bool_(False)], None, (_FLOAT, TensorProto.BOOL))
    for op in ("RandomNormal", "RandomUniform"):
        yield _one(op, 7, [], {"shape": [2, 3], "seed": 3.0})
        yield _one(f"{op}Like", 7, [_x(2, 3)], {"seed": 3.0})
    yield _one("Multinomial", 7, [np.log(np.abs(_x(2, 4)))], {"sample_size": 6, "seed": 3.0}, (TensorProto.INT32,))
    yield _one("Bernoulli", 15, [np.abs(_x(4, 5)) % 1], {"seed": 3.0})


def _moved() -> Iterator[Earlier]:
    x = _x(3, 4)
    index = _ints([[0, 2, 1], [1, 0, 3]])
    for axis in (0, 1):
        yield _one("Scatter", 9, [x, index if axis else index % 3, _x(2, 3)], {"axis": axis})
    yield _one("Scatter", 9, [x, index % 3, _x(2, 3)])
    for opset in (7, 11):
        yield _one("Split", opset, [_x(4, 6)], {"axis": 1}, (_FLOAT,) * 3)
        yield _one("Split", opset, [_x(4, 6)], None, (_FLOAT,) * 2)
        yield _one("Split", opset, [_x(4, 6)], {"axis": 1, "split": [1, 2, 3]}, (_FLOAT,) * 3)
        yield _one("Squeeze", opset, [_x(1, 3, 1, 2)])
        yield _one("Squeeze", opset, [_x(1, 3, 1, 2)], {"axes": [2]})
        yield _one("Unsqueeze", opset, [x], {"axes": [0, 3]})
    yield _one("Split", 13, [_x(4, 6)], {"axis": 1}, (_FLOAT,) * 3)
    for mode, pads in itertools.product(("constant", "reflect", "edge"), ([1, 0, 2, 1], [0, 1, 1, -1], [-1, 1, 0, 1])):
        yield _one("Pad", 7, [x], {"mode": mode, "pads": pads, **({"value": 1.5} if mode == "constant" else {})})
        yield _one("Pad", 11, [x, _ints(pads), *([np.float32(1.5)] if mode == "constant" else [])], {"mode": mode})
    for starts, ends, axes in (([1, 0], [3, 2], None), ([-2], [100], [1]), ([0], [-1], [0]), ([1], [1], [1])):
        given = {"starts": starts, "ends": ends, **({"axes": axes} if axes else {})}
        yield _one("Slice", 7, [x], given)
    yield from (
        _one("Clip", v, [x], a) for v in (7,) for a in ({}, {"min": -0.3}, {"max": 0.4}, {"min": -0.3, "max": 0.4})
    )
    yield _one("Clip", 11, [x, None, np.float32(0.4)])
    for where in ({}, {"axis": 0}, {"axis": 1}, {"axis": -1}):
        yield _one("TopK", 7, [x], {"k": 2, **where}, (_FLOAT, _INT))
        yield _one("TopK", 10, [x, _ints([3])], where, (_FLOAT, _INT))


def _pooled() -> Iterator[Earlier]:
    image, rois = _x(2, 3, 9, 9), _floats([[0, 0, 6, 7], [1.3, 2.1, 8.5, 8.2], [-3, -2, 5, 4], [7, 7, 14, 15]])
    where = _ints([0, 1, 1, 0])
    for opset, mode, ratio, scale in itertools.product((10, 16), ("avg", "max"), (0, 2), (1.0, 0.5)):
        size = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": scale}
        yield _one("RoiAlign", opset, [image, rois, where], {"mode": mode, **size})
    yield _one("RoiAlign", 10, [image, rois, where])
    for modes in ("output_half_pixel", "half_pixel"):
        yield _one("RoiAlign", 16, [image, rois, where], {"coordinate_transformation_mode": modes})
    boxes = np.concatenate([where[:, None].astype(np.float32), np.abs(rois)], 1)
    yield _one("MaxRoiPool", 7, [image, boxes], {"pooled_shape": [2, 2]})
    grid = _x(2, 4, 5, 2, scale=0.8)
    for mode, padding, corners in itertools.product(
        ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (0, 1)
    ):
        yield _one("GridSample", 16, [image, grid], {"mode": mode, "padding_mode": padding, "align_corners": corners})
    yield _one("GridSample", 16, [image, grid])
    for op, opset in itertools.product(("AveragePool", "MaxPool", "LpPool"), (7, 10, 11)):
        for attributes in (
            {"pads": [1, 0, 1, 2]},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER"},
            {"strides": [2, 3]},
        ):
            yield _one(op, opset, [image], {"kernel_shape": [3, 2], **attributes})
            if opset >= 10 and op != "LpPool":
                yield _one(
                    op, opset, [image], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, **attributes}
                )
    yield _one("AveragePool", 7, [image], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1})
    yield from (_one("GlobalLpPool", 7, [image], {"p": p}) for p in (1, 2, 3))
    for p, axis in itertools.product((1, 2), (0, 1, -1)):
        yield _one("LpNormalization", 7, [image], {"p": p, "axis": axis})


def _bodies() -> Iterator[Earlier]:
    plain = onnx.parser.parse_graph("plain () => (float[3] k) { k = Constant <value = float[3] {1, 2, 3}> () }")
    twice = onnx.parser.parse_graph(
        "twice () => (float[3] n) { m = Constant <value = float[3] {3, 2, 1}> ()\n n = Add(m, m) }"
    )
    for opset, condition in itertools.product((7, 11, 13), (True, False)):
        yield _one("If", opset, [np.bool_(condition)], {"then_branch": plain, "else_branch": twice})
    step = onnx.parser.parse_graph("""step (int64 i, bool go, float[3] a) => (bool on, float[3] b, float[3] c) {
        b = Add(a, a) on = Identity(go) c = Relu(b)
    }""")
    for opset in (7, 11, 13):
        yield _one("Loop", opset, [np.int64(3), np.bool_(True), _x(3)], {"body": step}, (_FLOAT, _FLOAT))
    scan = onnx.parser.parse_graph("""scan (float[3] s, float[3] e) => (float[3] t, float[3] u) {
        t = Add(s, e) u = Relu(t)
    }""")
    for batch in (1, 2):
        yield _one(
            "Scan", 8, [None, _x(batch, 3), _x(batch, 4, 3)], {"body": scan, "num_scan_inputs": 1}, (_FLOAT, _FLOAT)
        )
    for opset in (9, 11):
        yield _one("Scan", opset, [_x(3), _x(4, 3)], {"body": scan, "num_scan_inputs": 1}, (_FLOAT, _FLOAT))


def _defaults() -> Iterator[Earlier]:
    """Operands that are left out."""
    x = _x(2, 3, 4)
    for shape in ((2, 6, 1), (2, 6, 2), (2, 3, 6, 1), (1, 3, 6, 2)):
        yield _one("DFT", 17, [_x(*shape)])
        yield from (_one("DFT", 17, [_x(*shape)], {"axis": a}) for a in (1, len(shape) - 2))
        yield _one("DFT", 17, [_x(*shape)], {"inverse": 1})
    yield _one("DFT", 17, [_x(2, 6, 1)], {"onesided": 1})
    yield _one("DFT", 17, [_x(2, 6, 1), np.int64(4)], {"axis": 1})
    reduces = [
        f"Reduce{n}" for n in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    ]
    for op, opset in itertools.product(reduces, (7, 11, 13)):
        positive = np.abs(x) + 0.1
        yield _one(op, opset, [positive])
        if op != "ReduceSum" or opset < 13:
            yield from (_one(op, opset, [positive], {"axes": a, "keepdims": k}) for a in ([1], [0, 2]) for k in (0, 1))
    for op, opset in itertools.product(("ArgMax", "ArgMin"), (7, 11)):
        yield _one(op, opset, [x], None, (_INT,))
        yield _one(op, opset, [x], {"axis": 1, "keepdims": 0}, (_INT,))
    for opset, op in itertools.product((7, 8, 12), ("Max", "Min", "Mean", "Sum")):
        if opset != 12 or op in ("Max", "Min"):
            yield _one(op, opset, [x, -x, x * 0.5])
    terms: list[tuple[int, ...]] = [(3, 5), (5,), (3, 1), (1, 5), (1,), ()]
    for opset, term in itertools.product((7, 9, 11), terms):
        yield _one("Gemm", opset, [_x(3, 4), _x(4, 5), _x(*term)], {"alpha": 0.5, "beta": 2.0})
    yield _one("Constant", 7, [], {"value": helper.make_tensor("k", _FLOAT, [3], [1, 2, 3])})
    yield _one("ConstantOfShape", 9, [_ints([2, 3])])
    yield _one("EyeLike", 9, [_x(3, 4)], {"k": 1})
    yield _one("Shape", 7, [x], None, (_INT,))
    yield _one("HardSigmoid", 7, [x], {"alpha": 0.3})
