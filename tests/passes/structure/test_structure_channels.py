"""Channels by data flow: which may change places, that nothing changes when they do, and what holds them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.lanes import reshape
from graphpress.passes.structure.channels.ledger import permute, sources
from graphpress.passes.structure.channels.moves import Move
from graphpress.passes.structure.channels.survey import Survey
from graphpress.recipe import Recipe
from tests import kit

torch = pytest.importorskip("torch")
EXACT = 1e-10  # of the largest output, in float64


def shuffled(model: ir.Model, seed: int = 0) -> tuple[ir.Model, Survey]:
    """A copy in which every group of channels has changed places at random."""
    model = model.clone()
    channels = survey(model.graph)
    rng, roots = np.random.default_rng(seed), channels.roots
    new = np.arange(len(roots))
    for group in channels.groups():
        new[group] = rng.permutation(group)
    permute(channels, new)
    return model, channels


def doubled(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in float64."""
    module = gp.to_torch(model).double()
    given = [torch.from_numpy(v) for v in feeds.values()]
    with torch.no_grad():
        found = module(*(v.double() if v.is_floating_point() else v for v in given))
    return [v.numpy() for v in (found if isinstance(found, tuple | list) else [found])]


def assert_exact(model: ir.Model, feeds: dict[str, np.ndarray] | None = None, sizes: list[int] | None = None) -> None:
    """Shuffling moves constants and no output; ``sizes`` are those of the groups."""
    feeds = feeds or kit.random_feeds(model)
    after, channels = shuffled(model)
    pairs = [(v, after.graph.initializers.get(k)) for k, v in model.graph.initializers.items()]
    moved = any(b is not None and not np.array_equal(a.const_value.numpy(), b.const_value.numpy()) for a, b in pairs)
    for a, b in zip(doubled(model, feeds), doubled(after, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=EXACT * max(np.abs(a).max(), 1e-30))
    if sizes is not None:
        assert sorted(map(len, channels.groups())) == sizes
        assert moved == bool(sizes)


def made(x: str, body: str, **shapes: tuple[int, ...]) -> ir.Model:
    """A graph from input ``x`` to ``y`` whose constants are random, with shapes inferred."""
    model, rng = kit.parse(f"g (float[{x}] x) => (float y) {{ {body} }}"), np.random.default_rng(0)
    for name, shape in shapes.items():
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        array = rng.normal(size=shape).astype(np.float32)
        value.const_value, value.shape = ir.Tensor(array, name=name), ir.Shape(shape)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    model.graph.outputs[0].shape = None
    return kit.apply(model, InferShapes())[0]


ENDS = {"w": (4, 8), "v": (8, 5)}
# What stands between two layers, the sizes of the groups that may change places, and more constants.
BETWEEN = {
    "nothing": ("k = Identity (h)", [8], {}),
    "a bias, a gain and an activation": ("a = Add (h, b) k0 = Mul (c, a) k = Relu (k0)", [8], {"b": (8,), "c": (8,)}),
    "a norm": ("k = LayerNormalization <axis=-1> (h, b, c)", [8], {"b": (8,), "c": (8,)}),
    "a norm written out": (
        "m = ReduceMean (h, last) d = Sub (h, m) q = Mul (d, d) s = ReduceMean (q, last) "
        "t = Sqrt (s) k0 = Div (d, t) k = Mul (k0, b)", [8], {"b": (8,)},
    ),
    "softmax": ("k = Softmax <axis=-1> (h)", [8], {}),
    "a second producer": ("o = MatMul (x, w2) p = Sigmoid (o) k = Mul (h, p)", [8], {"w2": (4, 8)}),
    "a concatenation": ("o = MatMul (x, w2) k = Concat <axis=-1> (o, h)", [8, 8], {"w2": (4, 8), "v": (16, 5)}),
    "halves": ("l, r = Split <axis=-1, num_outputs=2> (h) k = Mul (l, r)", [4], {"v": (4, 5)}),
    "halves apart": (
        "l, r = Split <axis=-1, num_outputs=2> (h) g = Relu (r) k = Concat <axis=1> (g, l)", [4, 4], {},
    ),
    "heads": ("t = Reshape (h, n) e = Softmax <axis=-1> (t) k = Reshape (e, z)", [4, 4], {}),
    "an unknown order": ("k = CumSum (h, one)", [], {}),
    "a constant of one channel less": ("t = Slice (h, zero, seven, one1) k = Pad (t, pads)", [7], {}),
}  # fmt: skip
INTEGERS = {
    "last": [-1], "n": [3, 2, 4], "z": [3, 8], "one": 1, "zero": [0], "seven": [7], "one1": [1], "pads": [0, 0, 0, 1],
}  # fmt: skip


def integers(body: str) -> str:
    """Constant nodes for the integers that ``body`` reads."""
    found = [n for n in INTEGERS if f" {n})" in body or f" {n}," in body]
    return " ".join(
        f"{n} = Constant <value_ints={INTEGERS[n]}> ()" if isinstance(INTEGERS[n], list)
        else f"{n} = Constant <value_int={INTEGERS[n]}> ()" for n in found
    )  # fmt: skip


@pytest.mark.parametrize("what", BETWEEN)
def test_between_two_layers(what: str) -> None:
    body, sizes, more = BETWEEN[what]
    text = f"{integers(body)} h = MatMul (x, w) {body} y = MatMul (k, v)"
    assert_exact(made("3, 4", text, **(ENDS | more)), sizes=sizes)


CONVS = {"w": (8, 3, 3, 3), "v": (6, 8, 1, 1)}
PICTURES = {
    "batch norm": ("k = BatchNormalization (h, g, b, m, s)", [8], {"g": (8,), "b": (8,), "m": (8,), "s": (8,)}),
    "depthwise": ("k = Conv <group=8> (h, d, b)", [8], {"d": (8, 1, 3, 3), "b": (8,)}),
    "depthwise, two each": ("k = Conv <group=8> (h, d)", [8], {"d": (16, 1, 3, 3), "v": (6, 16, 1, 1)}),
    "groups": ("k = Conv <group=2> (h, d)", [4, 4], {"d": (8, 4, 1, 1)}),
    "a pool": ("k = MaxPool <kernel_shape=[2, 2]> (h)", [8], {}),
    "a gate": ("p = GlobalAveragePool (h) e = Conv (p, d) s = Sigmoid (e) k = Mul (h, s)", [8], {"d": (8, 8, 1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("what", PICTURES)
def test_between_two_convolutions(what: str) -> None:
    body, sizes, more = PICTURES[what]
    model = made("2, 3, 8, 8", f"h = Conv (x, w) {body} y = Conv (k, v)", **(CONVS | more))
    if "s" in more:
        positive(model, "s")
    assert_exact(model, sizes=sizes)


def positive(model: ir.Model, name: str) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.Tensor(np.abs(value.const_value.numpy()) + 0.1, name=name)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_flatten_moves_channels_in_blocks(last: bool) -> None:
    turn = "t = Transpose <perm=[0, 2, 3, 1]> (h) k = Flatten (t)" if last else "k = Flatten (h)"
    model = made("2, 3, 4, 4", f"h = Conv (x, w) {turn} y = MatMul (k, v)", w=(8, 3, 3, 3), v=(32, 5))
    assert_exact(model, sizes=[8])


def test_channels_padded_with_zeros_join_a_wider_stream() -> None:
    """The shortcut of CIFAR's ResNets: 4 channels in the middle of 8."""
    body = """pads = Constant <value_ints=[0, 2, 0, 0, 0, 2, 0, 0]> ()
        h = Conv (x, w) p = Pad (h, pads) a = Conv (h, u) k = Add (a, p) y = Conv (k, v)"""
    model = made("2, 3, 4, 4", body, w=(4, 3, 1, 1), u=(8, 4, 1, 1), v=(5, 8, 1, 1))
    assert_exact(model, sizes=[4, 4])


def test_a_table_that_is_read_twice_moves_once() -> None:
    model = tied()
    after, channels = shuffled(model)
    assert [len(g) for g in channels.groups()] == [8]
    assert len(after.graph.initializers) == len(model.graph.initializers)
    before, now = (m.graph.initializers["t"].const_value.numpy() for m in (model, after))
    assert not np.array_equal(before, now)
    feeds = {"ids": np.array([[0, 1, 2], [5, 4, 3]])}
    kit.assert_same_outputs(model, after, feeds, atol=1e-5)


def tied() -> ir.Model:
    model = kit.parse("""g (int64[2, 3] ids) => (float[6, 6] y) {
        z = Constant <value_ints=[6, 8]> () e = Gather (t, ids) r = Relu (e) f = Reshape (r, z)
        y = Gemm <transB=1> (f, t) }""")
    array = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    uses = [(n, i) for n in model.graph for i, v in enumerate(n.inputs) if v is not None and v.name == "t"]
    value = ir.Value(name="t", const_value=ir.Tensor(array, name="t"), shape=ir.Shape([6, 8]),
                     type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
    for node, slot in uses:
        node.replace_input_with(slot, value)
    model.graph.register_initializer(value)
    return kit.apply(model, InferShapes())[0]


REASONS = {
    "y = Identity (h) z = MatMul (h, v)": "is an output of its graph",
    "k = CumSum (h, one) y = MatMul (k, v)": "CumSum",
    "t = Transpose (h) y = MatMul (h, t)": "multiplies computed channels",
}


@pytest.mark.parametrize("body", REASONS)
def test_what_holds_channels_is_told(body: str) -> None:
    shapes = ENDS if "v)" in body else {"w": (4, 8)}
    model = made("3, 4", f"{integers(body)} h = MatMul (x, w) {body}", **shapes)
    channels = survey(model.graph)
    assert channels.groups() == []
    atoms = next(h.lanes for h in channels.holders.values() if h.node.op_type == "MatMul")
    assert REASONS[body] in channels.why_stuck(atoms)


PICKED = {
    "a channel": ("3, 4", "h = MatMul (x, w) k = Gather <axis = 1> (h, zero) y = MatMul (h, v)", ENDS),
    "a depthwise convolution": ("2, 3, 8, 8", "h = Conv (x, w) k = Conv <group=8> (h, d) y = Conv (k, v)",
                                {"w": (8, 3, 3, 3), "d": (8, 1, 3, 3), "v": (6, 8, 1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize(("what", "move"), [("a channel", Move.PERMUTE), ("a depthwise convolution", Move.SLICE)])
def test_what_reads_single_channels_by_their_place_holds_them(what: str, move: Move) -> None:
    x, body, shapes = PICKED[what]
    zero = "zero = Constant <value_int = 0> () " if "zero" in body else ""
    found = survey(made(x, zero + body, **shapes).graph, move)
    held = next(h for h in found.holders.values() if h.node.outputs[0].name == "h").lanes.ravel()
    assert not any(held[0] in group for group in found.groups())


@pytest.mark.parametrize(
    ("shape", "before", "after", "expected"),
    [
        ((1, 8, 1, 1), ["N", 8, 2, 3], ["N", 48], np.repeat(np.arange(8), 6)[None]),
        ((1, 1, 1, 8), ["N", 2, 3, 8], ["N", 48], np.tile(np.arange(8), 6)[None]),
        ((1, 1, 8), ["N", "t", 8], ["N", "t", 2, 4], np.arange(8).reshape(1, 1, 2, 4)),
        ((1, 1, 8), ["N", "t", 8], ["?", 8], np.arange(8)[None]),
        ((1, 8, 1), ["N", 8, "t"], ["N", "?"], None),
        ((1, 8, 1), ["N", 8, 1], ["N", 8], np.arange(8)[None]),
    ],
)
def test_reshapes(shape: tuple[int, ...], before: list, after: list, expected: np.ndarray | None) -> None:
    found = reshape(np.arange(8).reshape(shape), before, after)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, expected)


def test_an_atom_that_stands_often_gives_way_place_by_place() -> None:
    new = np.array([1, 0, 2])
    np.testing.assert_array_equal(sources(np.array([0, 0, 2, 1, 1]), new), [3, 4, 2, 0, 1])


def traced_vit() -> ir.Model:
    """A small vision transformer, its attention written as torch exports it."""
    nn = torch.nn

    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 32, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 32))
            self.place = nn.Parameter(torch.randn(1, 5, 32))
            self.blocks = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True),
                2,
                enable_nested_tensor=False,
            )
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
            return self.head(self.norm(self.blocks(x))[:, 0])

    torch.manual_seed(0)
    model = gp.trace(Vit().eval(), (torch.randn(2, 3, 8, 8),))
    return kit.apply(model, *Recipe.load("clean").passes)[0]


def test_a_vision_transformer() -> None:
    model = traced_vit()
    sizes = sorted(len(g) for g in survey(model.graph).groups())
    assert 32 in sizes and sizes.count(64) == 2  # the whole residual stream as one, and the two hidden layers
    assert_exact(model)


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("cifar10/resnet20.onnx", [16, 16, 32]),
        ("cifar10/resnet20_bn.onnx", [16, 16, 32]),
        ("imagenet/mobilenet_v1_0.5_160.onnx", [16, 32, 64]),
        ("llm/codelm/codelm.onnx", [256, 704]),
        ("detection/fastestdet/FastestDet.onnx", []),
    ],
)
def test_real_models(zoo: Path, path: str, stream: list[int]) -> None:
    model, _ = kit.apply(gp.load(zoo / path), *Recipe.load("clean").passes)
    sizes = [len(g) for g in survey(model.graph).groups()]
    assert all(s in sizes for s in stream)
    ids = {"ids": np.random.default_rng(0).integers(0, 256, (2, 16))} if "llm" in path else None
    assert_exact(model, ids)
