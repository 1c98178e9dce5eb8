"""Layers by what they are for: the way that values take decides, not their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from onnx_ir.passes.common import ShapeInferencePass

import graphpress as gp
from graphpress.passes.structure.layers.axes import Factor, axes, keys, reshaped
from graphpress.passes.structure.layers.kinds import kinds
from tests.passes.quantizing import model, normal

TEXT = """
g (float[N, 6, 16] x, float[N, 9, 16] c, float[16, 48] a, float[16, 16] ao, float[16, 16] b, float[16, 32] d,
   float[16, 16] bo, float[16, 64] u, float[64, 16] v, float[16, 4] h) => (float[N, 6, 4] y) {
    [one] p = MatMul(x, a)
    q, k, w = Split <axis = -1, num_outputs = 3> (p)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul(q, kt)
    r = Softmax <axis = -1> (s)
    m = MatMul(r, w)
    [two] o = MatMul(m, ao)
    x1 = Add(x, o)
    [three] q2 = MatMul(x1, b)
    [four] kv = MatMul(c, d)
    k2, w2 = Split <axis = -1, num_outputs = 2> (kv)
    kt2 = Transpose <perm = [0, 2, 1]> (k2)
    s2 = MatMul(q2, kt2)
    r2 = Softmax <axis = -1> (s2)
    m2 = MatMul(r2, w2)
    [five] o2 = MatMul(m2, bo)
    x2 = Add(x1, o2)
    [six] e = MatMul(x2, u)
    f = Relu(e)
    [seven] g2 = MatMul(f, v)
    x3 = Add(x2, g2)
    [eight] y = MatMul(x3, h)
}"""


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_the_way_of_values_decides(joined: bool) -> None:
    text = TEXT
    if joined:  # both sequences are queries and keys: attention within one
        text = text.replace("[three] q2 = MatMul(x1, b)", "j = Concat <axis = 1> (x1, c)  [three] q2 = MatMul(j, b)")
        text = text.replace("MatMul(c, d)", "MatMul(j, d)").replace("o2 = MatMul(m2, bo)", "o3 = MatMul(m2, bo)")
        text = text.replace("x2 = Add", "o2 = Gather <axis = 1> (o3, first)  x2 = Add")
        text = text.replace("float[16, 4] h)", "float[16, 4] h, int64[6] first)")
    sizes = {"a": (16, 48), "ao": (16, 16), "b": (16, 16), "d": (16, 32), "bo": (16, 16), "u": (16, 64), "v": (64, 16)}
    weights = {n: normal(*s) for n, s in sizes.items()} | {"h": normal(16, 4)}
    made = model(text, weights | ({"first": np.arange(6)} if joined else {}))
    ShapeInferencePass()(made)
    other = "self-attention" if joined else "cross-attention"
    assert kinds(made.graph) == {
        "one": "self-attention", "two": "self-attention", "three": other, "four": other, "five": other,
        "six": "feed-forward", "seven": "feed-forward",
    }  # fmt: skip


FRAMES, SIDE, WIDTH = 3, 4, 8


class Attention(torch.nn.Module):
    """Among the tokens of x [N, L, C]."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            found = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return x + self.o(found.transpose(1, 2).flatten(2))


class Pair(torch.nn.Module):
    """One attention over the positions of each frame, one over the frames of each position."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.space, self.time = Attention(fused), Attention(fused)


class Around(Pair):
    """x [N, frames * positions, C], put in order around each attention (STDiT)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = self.space(x.reshape(n * FRAMES, SIDE * SIDE, WIDTH)).reshape(n, FRAMES, SIDE * SIDE, WIDTH)
        x = self.time(x.transpose(1, 2).reshape(n * SIDE * SIDE, FRAMES, WIDTH))
        return x.reshape(n, SIDE * SIDE, FRAMES, WIDTH).transpose(1, 2)


class Between(Pair):
    """x [N, frames, C, H, W]: the stream itself goes from one order to the other (Latte)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        tokens = x.flatten(0, 1).flatten(2).transpose(1, 2)
        x = self.time(tokens.unflatten(0, (n, FRAMES)).transpose(1, 2).flatten(0, 1))
        return self.space(x.unflatten(0, (n, SIDE * SIDE)).transpose(1, 2).flatten(0, 1))


class Maps(Pair):
    """x [N * frames, C, H, W] behind a convolution (AnimateDiff)."""

    def __init__(self, fused: bool) -> None:
        super().__init__(fused)
        self.conv = torch.nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        shape = x.shape
        x = self.space(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(shape)
        x = x.unflatten(0, (-1, FRAMES)).permute(0, 3, 4, 1, 2)
        return self.time(x.flatten(0, 2))


class Windows(Pair):
    """x [N, H, W, C]: within windows, then over a grid of one token of each (MaxViT). There is no time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, half = x.shape[0], SIDE // 2
        x = x.reshape(n, 2, half, 2, half, WIDTH).permute(0, 1, 3, 2, 4, 5)
        x = self.space(x.reshape(n * 4, half * half, WIDTH)).reshape(n, 2, 2, half, half, WIDTH)
        return self.time(x.permute(0, 3, 4, 1, 2, 5).reshape(n * half * half, 4, WIDTH))


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "any-batch"])
@pytest.mark.parametrize("fused", [False, True], ids=["products", "fused"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Around, (2, FRAMES * SIDE * SIDE, WIDTH)),
        (Between, (2, FRAMES, WIDTH, SIDE, SIDE)),
        (Maps, (2 * FRAMES, WIDTH, SIDE, SIDE)),
        (Windows, (2, SIDE, SIDE, WIDTH)),
    ],
)
def test_attention_over_frames_is_told_by_the_axis_it_goes_along(
    make: Callable[[bool], torch.nn.Module], shape: tuple[int, ...], fused: bool, free: bool
) -> None:
    """Three orders in which models of videos hold their tokens, and one of images that looks alike."""
    batch = torch.export.Dim("n", min=1) * FRAMES if make is Maps else torch.export.Dim("n", min=1)
    dynamic = {"dynamic_shapes": {"x": {0: batch}}} if free else {}
    found = kinds(gp.trace(make(fused).eval(), (torch.randn(shape),), **dynamic).graph)
    there = {part: {kind for name, kind in found.items() if part in name} for part in ("space", "time")}
    assert len(found) == 8
    assert there == {
        "space": {"self-attention"},
        "time": {"self-attention" if make is Windows else "temporal-attention"},
    }


class Alone(Around):
    """Both go over the frames: there is nothing that these could lie outside of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(1, (FRAMES, SIDE * SIDE)).transpose(1, 2).flatten(0, 1)
        return self.time(self.space(x))


class Channels(Maps):
    """x [N, C, H, W]: over the positions, then over the channels, which convolutions mix anew (Restormer)."""

    def __init__(self, fused: bool) -> None:
        super().__init__(fused)
        self.q, self.k, self.v, self.o = (torch.nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        shape = x.shape
        x = self.space(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(shape)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        return self.o((torch.softmax(q @ k.transpose(-1, -2), -1) @ v).reshape(shape))


@pytest.mark.parametrize(
    ("make", "shape"), [(Alone, (2, FRAMES * SIDE * SIDE, WIDTH)), (Channels, (2, WIDTH, 2 * SIDE, 2 * SIDE))]
)
def test_there_is_no_time_without_places_inside_of_it(
    make: Callable[[bool], torch.nn.Module], shape: tuple[int, ...]
) -> None:
    found = kinds(gp.trace(make(fused=False).eval(), (torch.randn(shape),)).graph)
    assert len(found) == 8
    assert set(found.values()) == {"self-attention"}


def test_axes_of_reshapes() -> None:
    """Joined, cut elsewhere, and cut across a factor, which tells nothing."""
    made = model("g (float[N, 6, 4] x) => (float[N, 6, 4] y) { y = Relu(x) }", {})
    (x,) = made.graph.inputs
    found = axes(made.graph)
    assert found[made.graph.outputs[0]] == found[x]
    start = found[x]
    assert [sorted(keys(axis)) for axis in start] == [[(0, 0)], [(0, 1)], [(0, 2)]]
    assert [p.size for p in reshaped(start, [None, 24])[1]] == [6, 4]
    twelve = reshaped(reshaped(start, [None, 24]), [None, 12, 2])
    assert [sorted(keys(axis)) for axis in twelve] == [[(0, 0)], [(0, 1), (0, 2, 0)], [(0, 2, 1)]]
    assert reshaped(start, [None, 8, 3]) is None
    assert reshaped(start, [None, None, 4]) is None


@st.composite
def _two_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Of one number of elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def grouped() -> list[int]:
        ends = sorted({*draw(st.lists(st.integers(1, len(factors)), max_size=4)), len(factors)})
        return [math.prod(factors[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    before = grouped()
    if draw(st.booleans()):
        factors.reverse()
    return before, grouped()


@given(_two_shapes())
def test_an_axis_descends_from_those_whose_numbers_change_along_it(shapes: tuple[Sequence[int], Sequence[int]]) -> None:
    """By numpy: the number of each element along each axis, carried through the reshape."""
    before, after = shapes
    start = tuple((Factor(frozenset({(0, a)}), n),) if n > 1 else () for a, n in enumerate(before))
    found = reshaped(start, after)
    if found is None:
        return
    numbers = np.indices(before).reshape(len(before), *after)
    changing = [{a for a, n in enumerate(numbers) if np.ptp(n, axis=j).any()} for j in range(len(after))]
    assert [{key[1] for key in keys(axis)} for axis in found] == changing
    assert [math.prod(part.size for part in axis) for axis in found] == list(after)
