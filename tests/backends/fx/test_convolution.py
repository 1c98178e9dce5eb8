"""Convolutions: random settings, deformed and causal ones, blocks of pictures, gradients, one graph for all sizes."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.backends.fx.ops import convolution
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
Sizes = list[int]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Sizes, Sizes, dict[str, Any]]:
    """(sizes, kernel, attributes) over one to three axes."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> Sizes:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    sizes, kernel, attributes = each(6, 9), each(1, 4), {"group": draw(st.integers(1, 2))}
    if draw(st.booleans()):
        attributes["strides"] = each(1, 3)
    kind = draw(st.sampled_from(["none", "any", "alike", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "any":
        attributes["pads"] = each(0, 2) + each(0, 2)
    elif kind == "alike":
        attributes["pads"] = each(0, 2) * 2
        attributes["pads"][rank:] = attributes["pads"][:rank]
    elif kind != "none":
        attributes["auto_pad"] = kind
    if not kind.startswith("SAME") and draw(st.booleans()):  # which ONNX Runtime does not combine
        attributes["dilations"] = each(1, 2)
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    dilations = attributes.get("dilations", [1] * rank)
    assume(all((k - 1) * d < n for n, k, d in zip(sizes, kernel, dilations, strict=True)))
    return sizes, kernel, attributes


@given(convolutions(), st.booleans())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_conv(setting: tuple[Sizes, Sizes, dict[str, Any]], with_bias: bool) -> None:
    sizes, kernel, attributes = setting
    group = attributes["group"]
    inputs = [normal(2, 2 * group, *sizes), normal(3 * group, 2, *kernel, seed=1), normal(3 * group, seed=2)]
    inputs = inputs if with_bias else inputs[:2]
    same(in_torch("Conv", *inputs, **attributes), in_ort("Conv", *inputs, **attributes), **CLOSE)


@given(convolutions(), st.booleans(), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_conv_transpose(setting: tuple[Sizes, Sizes, dict[str, Any]], with_bias: bool, data: st.DataObject) -> None:
    sizes, kernel, attributes = setting
    rank, group = len(sizes), attributes["group"]
    strides, dilations = (attributes.get(a, [1] * rank) for a in ("strides", "dilations"))
    if data.draw(st.booleans()):  # ONNX Runtime wants it less than the stride
        attributes["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in strides]
    if data.draw(st.booleans()):
        attributes.pop("pads", None)
        whole = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
        attributes["output_shape"] = [w - data.draw(st.integers(0, 3)) for w in whole]
    inputs = [normal(2, 2 * group, *sizes), normal(2 * group, 3, *kernel, seed=1), normal(3 * group, seed=2)]
    inputs = inputs if with_bias else inputs[:2]
    found, expected = (run("ConvTranspose", *inputs, **attributes) for run in (in_torch, in_ort))
    if attributes.get("auto_pad", "").startswith("SAME") and "output_shape" not in attributes:
        # as the standard says sizes times strides, ONNX Runtime gives less where the kernel does not reach so far
        expected = np.pad(expected, [(0, f - e) for f, e in zip(found.shape, expected.shape, strict=True)])
        assert found.shape[2:] == tuple(n * s for n, s in zip(sizes, strides, strict=True))
        found = np.where(expected == 0, 0, found)
    same(found, expected, **CLOSE)


def test_where_no_kernel_reaches_there_is_the_bias() -> None:
    x, w, b = normal(1, 2, 3), normal(2, 1, 2, seed=1), np.array([0.5], np.float32)
    plain = in_torch("ConvTranspose", x, w, b)
    longer = in_torch("ConvTranspose", x, w, b, output_shape=[7])
    same(longer, np.concatenate([plain, np.full((1, 1, 3), 0.5, np.float32)], 2), **CLOSE)
    apart = in_torch("ConvTranspose", x, w, b, auto_pad="SAME_UPPER", strides=[4])
    assert apart.shape == (1, 1, 12)
    same(apart[0, 0, 2::4], np.full(3, 0.5, np.float32))


def test_output_shape_of_all_axes() -> None:
    """Some exporters write batch and channels too."""
    x, w = torch.from_numpy(normal(1, 2, 3, 4)), torch.from_numpy(normal(2, 3, 3, 3, seed=1))
    found, expected = (
        convolution.conv_transpose(x, w, strides=[2, 2], output_padding=[1, 1], output_shape=shape)
        for shape in ([1, 3, 6, 8], [6, 8])
    )
    assert torch.equal(found, expected)


def test_even_kernels_pad_one_side_more() -> None:
    x, w = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4), np.array([[[1, 10]]], np.float32)
    same(in_torch("Conv", x, w, auto_pad="SAME_UPPER"), np.array([[[21, 32, 43, 4]]], np.float32))
    same(in_torch("Conv", x, w, auto_pad="SAME_LOWER"), np.array([[[10, 21, 32, 43]]], np.float32))


@pytest.mark.parametrize("opset", [1, 11, 22])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_types(op: str, opset: int, dtype: type) -> None:
    if opset < 22 and dtype == ml_dtypes.bfloat16:
        pytest.skip("opset 22 was the first to have it")
    x, w, b = normal(1, 4, 5, 6).astype(dtype), normal(4, 4, 3, 3, seed=1).astype(dtype), normal(4).astype(dtype)
    wide = [a.astype(np.float32 if dtype != np.float64 else dtype) for a in (x, w, b)]
    y = in_torch(op, x, w, b, opset=opset, pads=[1, 1, 0, 1])
    assert y.dtype == dtype
    step = {np.float16: 2e-3, np.float64: 1e-12}.get(dtype, 2e-2)
    expected = in_torch(op, *wide, opset=22, pads=[1, 1, 0, 1]).astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=step, atol=4 * step)


def test_too_many_axes() -> None:
    with pytest.raises(Unsupported, match="one to three axes"):
        in_torch("Conv", normal(1, 1, 3, 3, 3, 3), normal(1, 1, 2, 2, 2, 2))


@pytest.mark.parametrize(("op", "attributes"), [
    ("Conv", {"pads": [1, 0, 0, 2], "strides": [2, 1]}), ("ConvTranspose", {"pads": [0, 1, 1, 0], "strides": [2, 1]}),
    ("ConvTranspose", {"output_shape": [6, 7], "auto_pad": "SAME_UPPER"}),
])  # fmt: skip
def test_convolutions_have_derivatives(op: str, attributes: dict[str, Any]) -> None:
    tensors = (doubles(1, 2, 4, 5), doubles(2, 2, 3, 2, seed=1), doubles(2, seed=2))
    built = module(op, *(t.detach().numpy() for t in tensors), **attributes)
    assert torch.autograd.gradcheck(built, tensors)


# -- DeformConv


def deformed(x: Any, w: Any, offset: Any, mask: Any, strides: Sizes, pads: Sizes, dilations: Sizes, groups: Any) -> Any:
    """By its definition, one place after another."""
    rank, (group, offset_group) = x.ndim - 2, groups
    kernel, out = w.shape[2:], offset.shape[2:]
    offset = offset.reshape(x.shape[0], offset_group, *kernel, rank, *out)
    mask = None if mask is None else mask.reshape(x.shape[0], offset_group, *kernel, *out)
    y = np.zeros((x.shape[0], w.shape[0], *out))
    inputs, outputs = x.shape[1] // group, w.shape[0] // group
    for n, o, c in itertools.product(range(x.shape[0]), range(w.shape[0]), range(inputs)):
        channel = o // outputs * inputs + c
        g = channel // (x.shape[1] // offset_group)
        for k, at in itertools.product(np.ndindex(*kernel), np.ndindex(*out)):
            shift = offset[(n, g, *k, slice(None), *at)]
            axes = range(rank)
            where = [at[a] * strides[a] - pads[a] + k[a] * dilations[a] + shift[a] for a in axes]
            value = 0.0
            for corner in itertools.product(range(2), repeat=rank):
                place = [int(np.floor(p)) + c for p, c in zip(where, corner, strict=True)]
                if all(0 <= p < s for p, s in zip(place, x.shape[2:], strict=True)):
                    weights = [1 - abs(p - q) for p, q in zip(where, place, strict=True)]
                    value += np.prod(weights) * x[(n, channel, *place)]
            y[(n, o, *at)] += w[(o, c, *k)] * value * (1 if mask is None else mask[(n, g, *k, *at)])
    return y


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_deform_conv(rank: int, groups: tuple[int, int], masked: bool) -> None:
    sizes, kernel, strides = (5, 4, 4)[:rank], (2, 3, 1)[:rank], [2, 1, 1][:rank]
    pads, dilations = [1, 0, 1, 0, 2, 1][:rank] + [1, 2, 0][:rank], [1, 1, 2][:rank]
    group, offset_group = groups
    x, w = normal(1, 2, *sizes), normal(2, 2 // group, *kernel, seed=1)
    out = [
        (n + pads[i] + pads[i + rank] - (k - 1) * d - 1) // s + 1
        for i, (n, k, d, s) in enumerate(zip(sizes, kernel, dilations, strides, strict=True))
    ]
    places = int(np.prod(kernel))
    offset = normal(1, offset_group * places * rank, *out, seed=2)
    mask = normal(1, offset_group * places, *out, seed=3) if masked else None
    bias = normal(2, seed=4)
    inputs = [x, w, offset, bias, *([mask] if masked else [])]
    found = in_torch(
        "DeformConv", *inputs, opset=19, strides=strides, pads=pads, dilations=dilations, group=group,
        offset_group=offset_group,
    )  # fmt: skip
    expected = deformed(x, w, offset, mask, strides, pads, dilations, groups) + bias.reshape(-1, *(1,) * rank)
    same(found, expected.astype(np.float32), **CLOSE)


def test_deform_conv_has_all_derivatives() -> None:
    tensors = (
        doubles(1, 2, 4, 4), doubles(2, 2, 2, 2, seed=1), (doubles(1, 8, 3, 3, seed=2) * 0.3).detach().requires_grad_(),
        doubles(2, seed=3), doubles(1, 4, 3, 3, seed=4),
    )  # fmt: skip
    built = module("DeformConv", *(t.detach().numpy() for t in tensors), opset=19)
    assert torch.autograd.gradcheck(built, tensors)


def test_offsets_of_half_precision_are_exact_enough() -> None:
    """Coordinates beyond 2048 have no fractions in float16."""
    x = np.zeros((1, 1, 1, 3000), np.float16)
    x[..., 2500:] = 1
    offset = np.zeros((1, 2, 1, 3000), np.float16)
    offset[:, 1] = 0.5
    y = in_torch("DeformConv", x, np.ones((1, 1, 1, 1), np.float16), offset, opset=19)
    assert y.dtype == np.float16
    assert y[0, 0, 0, 2498:2501].tolist() == [0, 0.5, 1]


# -- Col2Im


@pytest.mark.parametrize("options", [
    {}, {"pads": [1, 0, 1, 0]}, {"pads": [0, 1, 2, 0]}, {"strides": [2, 1], "dilations": [1, 2]},
    {"pads": [1, 1, 0, 1], "strides": [1, 2]},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_col2im(options: dict[str, Any], dtype: type) -> None:
    image, block = np.array([5, 6]), np.array([2, 3])
    pads, strides, dilations = (options.get(n, d) for n, d in zip(
        ("pads", "strides", "dilations"), ([0] * 4, [1] * 2, [1] * 2), strict=True))  # fmt: skip
    counts = [(image[i] + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in (0, 1)]
    x = (normal(2, 12, int(np.prod(counts))) * 10).astype(dtype)
    inputs, more = (x, image, block), {"opset": 18, "constants": [1, 2], **options}
    same(in_torch("Col2Im", *inputs, **more), in_onnx("Col2Im", *inputs, **more), rtol=1e-6, atol=1e-5)


def test_col2im_of_three_axes() -> None:
    x = normal(1, 2 * 8, 8)
    inputs = (x, np.array([3, 3, 3]), np.array([2, 2, 2]))
    options = {"opset": 18, "constants": [1, 2]}
    same(in_torch("Col2Im", *inputs, **options), in_onnx("Col2Im", *inputs, **options), **CLOSE)


def test_col2im_has_derivatives() -> None:
    inputs = (normal(1, 4, 9, dtype=np.float64), np.array([2, 3]), np.array([2, 2]))
    built = module("Col2Im", *inputs, opset=18, constants=[1, 2], pads=[1, 0, 1, 1])
    x = torch.from_numpy(normal(1, 4, 9, dtype=np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(built, (x,))


# -- CausalConvWithState


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
def test_a_sequence_in_pieces_is_the_sequence(kernel: int, activation: str) -> None:
    x, w, b = normal(2, 3, 9), normal(3, 1, kernel, seed=1), normal(3, seed=2)
    options: dict[str, Any] = {"opset": 27, "outputs": 2, "activation": activation}
    whole, state = in_torch("CausalConvWithState", x, w, b, **options)
    padded = np.pad(x, ((0, 0), (0, 0), (kernel - 1, 0)))
    expected = sum(w[:, 0, i, None] * padded[..., i : i + 9] for i in range(kernel)) + b[:, None]
    expected = expected if activation == "none" else expected / (1 + np.exp(-expected))
    same(whole, expected, **CLOSE)
    same(state, padded[..., 9:])
    parts, past = [], np.zeros((2, 3, kernel - 1), np.float32)
    for start, end in ((0, 1), (1, 3), (3, 9)):
        y, past = in_torch("CausalConvWithState", x[..., start:end], w, b, past, **options)
        parts.append(y)
    same(np.concatenate(parts, 2), whole, **CLOSE)
    same(past, state)


def test_activations_that_there_are_not() -> None:
    with pytest.raises(Unsupported, match="gelu"):
        convolution.causal_conv(torch.ones(1, 2, 3), torch.ones(2, 1, 2), activation="gelu")


# -- one graph


@pytest.mark.parametrize(("op", "options"), [
    ("Conv", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}), ("Conv", {"pads": [1, 0, 2, 1]}),
    ("ConvTranspose", {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
])  # fmt: skip
def test_symbolic_sizes(op: str, options: dict[str, Any]) -> None:
    x = torch.from_numpy(normal(2, 4, 9, 12))
    inputs = (x.numpy(), normal(4, 4, 3, 3))
    built = module(op, *inputs, constants=[1], shapes={0: ["n", 4, "h", "w"]}, **options)
    every = torch.export.Dim.DYNAMIC
    exported = torch.export.export(built, (x,), dynamic_shapes=({0: every, 2: every, 3: every},))
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend="eager")
    other = torch.from_numpy(normal(3, 4, 14, 17))
    for run in (exported.module(), compiled):
        torch.testing.assert_close(run(other), built(other), rtol=1e-6, atol=1e-6)
