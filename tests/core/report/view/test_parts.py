"""What the page of the graph is made of: modules, boxes and edges, and what is said of an operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.graph import edit
from graphpress.keys import ORIGIN, SCOPE
from graphpress.report.view import about, drawn, modules
from tests import kit

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.mark.parametrize(
    ("notes", "name", "path"),
    [
        ({SCOPE: "layers.0.self_attn.q_proj"}, "n", ("layers.0", "self_attn", "q_proj")),
        ({SCOPES: "['', 'layer1', 'layer1.0', 'layer1.0.bn1', 'conv']"}, "n", ("layer1", "layer1.0", "bn1")),
        ({SCOPES: "['', 'layers.0', 'layers.0.mlp', 'mul_3']"}, "n", ("layers.0", "mlp")),
        ({SCOPES: "['_empty_nn_module_stack_from_metadata_hook', 'sym_size']"}, "n", ()),
        ({SCOPES: "no list ("}, "n", ()),
        ({"namespace": ": m.Net/a.0: m.Block/a.0.fc: m.Linear/relu: aten.relu"}, "n", ("a.0", "fc")),
        ({}, "/encoder/layer.1/dense/MatMul", ("encoder", "layer.1", "dense")),
        ({}, "Conv_3", ()),
    ],
)
def test_a_module_path_is_read_as_its_exporter_wrote_it(
    notes: dict[str, str], name: str, path: tuple[str, ...]
) -> None:
    model = kit.parse("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    node = next(iter(model.graph))
    node.name = name
    node.metadata_props.update(notes)
    assert modules.paths(model) == {name: path}


def test_what_passes_made_lies_where_its_site_or_its_neighbours_do() -> None:
    model = kit.parse("g (float[1] x) => (float[1] y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Exp(c) }")
    relu, neg, absolute, exp = model.graph
    relu.name, exp.name = "/m/a/Relu", "/m/b/Exp"
    neg.metadata_props[ORIGIN] = "gone"
    found = modules.paths(model, {"gone": ("old",)})
    assert found[neg.name or ""] == ("old",)
    assert found[absolute.name or ""] == ("m", "b")  # of who reads it
    neg.metadata_props.clear()
    assert modules.paths(model)[neg.name or ""] == ("m", "b")


def test_what_only_makes_constants_is_no_box_and_bodies_are_drawn() -> None:
    model = kit.parse(
        """g (bool c, float[2,2] x) => (float[2,2] y)
        <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}> {
            d = DequantizeLinear(w, s)
            z = MatMul(x, d)
            y = If(c) <then_branch = t () => (float[2,2] a) { a = Relu(z) },
                       else_branch = e () => (float[2,2] b) { b = Neg(z) }>
        }"""
    )
    found = drawn.drawing(model)
    names = [b.op for b in found.boxes]
    assert sorted(names) == ["If", "MatMul", "Neg", "Relu", "input", "input", "output"]
    flows = {(names[a], names[b]) for a, b, _ in found.edges}
    assert flows == {
        ("input", "MatMul"), ("input", "If"), ("MatMul", "Relu"), ("MatMul", "Neg"), ("Relu", "If"), ("Neg", "If"),
        ("If", "output"),
    }  # fmt: skip


def test_what_a_loop_carries_flows_in_from_where_it_begins() -> None:
    """A Loop within a Loop reads what the outer one carries; counters and conditions come from nowhere."""
    model = kit.parse(
        """g (float[2] x, int64 n, bool c) => (float[2] y) {
          [start] a = Relu(x)
          [outer] y = Loop <body = o (int64 i, bool p, float[2] s) => (bool q, float[2] t) {
            q = Identity(p)
            [inner] t = Loop <body = m (int64 j, bool u, float[2] v) => (bool w, float[2] z) {
              w = Identity(u)
              [deep] z = Neg(v)
            }> (n, c, s)
          }> (n, c, a)
        }"""
    )
    found = drawn.drawing(model)
    edges = {(found.boxes[a].name, found.boxes[b].name, v) for a, b, v in found.edges}
    assert {("start", "outer", "a"), ("start", "inner", "s"), ("start", "deep", "v")} <= edges
    assert not any(value in ("p", "u", "i", "j") for _, _, value in edges)


def test_what_a_scan_cuts_flows_in() -> None:
    model = kit.parse(
        """g (float[2] s, float[5,2] x) => (float[2] t, float[5,2] y) {
          [start] a = Relu(x)
          [scan] t, y = Scan <num_scan_inputs = 1, body = b (float[2] u, float[2] row) => (float[2] v, float[2] z) {
            [deep] v = Add(u, row)
            z = Identity(v)
          }> (s, a)
        }"""
    )
    found = drawn.drawing(model)
    edges = {(found.boxes[a].name, found.boxes[b].name, v) for a, b, v in found.edges}
    assert {("s", "deep", "u"), ("start", "deep", "row")} <= edges


def test_weights_and_ranges_are_said_of_who_reads_them() -> None:
    model = kit.parse(
        """g (float[1,2] x) => (float[1,2] y)
        <int8[2,2] w = {1, 2, 3, 4}, float s = {0.5}, float t = {0.25}, uint8 zero = {128}> {
            q = QuantizeLinear(x, t, zero)
            r = DequantizeLinear(q, t, zero)
            d = DequantizeLinear(w, s)
            y = MatMul(r, d)
        }"""
    )
    said = about.node(edit.find(model, "MatMul_3"))
    assert said["bits"] == 8
    assert said["ranges"] == ["input 0: uint8 over [-32, 31.75]"]
    assert said["constants"] == ["[1] w:int8[2,2], 4 B, decoded by DequantizeLinear"]
    (histogram,) = said["histograms"]
    assert (histogram["slot"], histogram["low"], histogram["high"]) == (1, 0.5, 2.0)
    assert sum(histogram["counts"]) == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_in_blocks_are_decoded_as_the_kernel_does(bits: int, zeros: bool) -> None:
    """Packed by the text of the operator's documentation; the lowest bits hold the first code."""
    rng = np.random.default_rng(bits)
    n, blocks, block, per = 3, 2, 16, 8 // bits
    codes = rng.integers(0, 1 << bits, (n, blocks, block), dtype=np.uint8)
    scale = rng.uniform(0.5, 2.0, (n, blocks)).astype(np.float32)
    zero = rng.integers(0, 1 << bits, (n, blocks), dtype=np.uint8) if zeros else np.full((n, blocks), 1 << (bits - 1))
    packed = sum(codes[..., i::per].astype(int) << (bits * i) for i in range(per))
    held = np.zeros((n, -(-blocks // per)), int)
    for i in range(blocks):
        held[:, i // per] |= zero[:, i].astype(int) << (bits * (i % per))
    inputs = [np.asarray(packed, np.uint8), scale.reshape(-1), *([held.astype(np.uint8).reshape(-1)] if zeros else [])]
    values = [ir.Value(name="x"), *(ir.Value(name=f"i{i}", const_value=ir.tensor(a)) for i, a in enumerate(inputs))]
    node = ir.Node("com.microsoft", "MatMulNBits", values, [ir.AttrInt64("bits", bits)], name="n")
    ir.Graph(values[:1], node.outputs, nodes=[node], initializers=values[1:], opset_imports={"": 21})
    wanted = (codes.astype(np.float32) - zero[..., None].astype(np.float32)) * scale[..., None]
    np.testing.assert_array_equal(about._floats(node, 1), wanted)
    assert about.node(node)["bits"] == bits


def test_a_histogram_of_a_large_weight_counts_every_nth() -> None:
    array = np.arange(1 << 20, dtype=np.float32)
    found = about.histogram(array)
    assert found is not None
    assert (found["every"], sum(found["counts"])) == (16, 1 << 16)
    assert about.histogram(np.full(3, np.nan, np.float32)) is None
    assert about.histogram(np.zeros((0, 2), np.float32)) is None
