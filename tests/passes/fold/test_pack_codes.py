"""Codes of few values packed: sizes by formula, bits by their definition, the same kernels on the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import ort
from graphpress.graph import edit, quantized
from graphpress.ops import dense_codes, dense_packing
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.fold.pack_codes import PackCodes
from graphpress.passes.fold.unfold_weights import UnfoldWeights
from graphpress.passes.quantize.quantize import Quantize
from graphpress.report.report import stored_bytes
from graphpress.target import Target
from graphpress.types import Storage
from tests import kit
from tests.passes.quantizing import context, model, normal

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 64] x, float[64, 96] w, float[96] b) => (float[N, 96] y) { h = MatMul(x, w) y = Add(h, b) }"""
VALUES = {"int3": range(-4, 4), "ternary": (-1, 0, 1), "binary": (-1, 1)}
EACH = pytest.mark.parametrize("weight", VALUES)
X = {"x": normal(5, 64, seed=2)}


def drawn(weight: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    values = np.array(VALUES[weight])
    found: np.ndarray = values[np.random.default_rng(seed).integers(0, len(values), shape)]
    return found


def folded(weight: Any, mode: Any = "weight", **options: Any) -> ir.Model:
    made = model(TEXT, {"w": normal(64, 96), "b": normal(96, seed=1)})
    how = Quantize(mode=mode, weight=weight, kernels="preferred", **options)
    return kit.apply(made, how, FoldWeights(), ctx=context({"x": normal(64, 64, seed=3)}, "ort-cpu"))[0]


def saved(weight: str) -> int:
    """Bytes, by the formula: less the constants of the body, and a byte for a second plane that there is none of."""
    return 64 * 96 // 2 - Storage.of(weight).file_bits(64 * 96) // 8 - 3 * 8 - (weight != "int3")


def packed(source: ir.Model) -> ir.Model:
    return kit.apply(source, PackCodes(), ctx=context(None, None))[0]


# -- the layout --------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("nibbles", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 30), (5, 5, 2)])
def test_unpacking_gives_the_codes_back_and_sizes_are_those_of_the_formula(
    weight: str, nibbles: int, shape: tuple[int, ...]
) -> None:
    first, second = drawn(weight, shape), drawn(weight, shape, 1)
    array = first if nibbles == 1 else (first + 8) + 16 * (second + 8)
    dense = dense_codes.pack(array, nibbles=nibbles)
    assert dense is not None
    np.testing.assert_array_equal(dense_codes.unpack(dense), array)
    count = nibbles * array.size
    per_code = {"int3": 3, "ternary": 8 / 5, "binary": 1}[weight]
    if count > 8:  # fewer may have fewer values than the type
        none = weight != "int3"  # what stands for a second plane
        assert Storage.of(weight).file_bits(count) == 8 * (dense.nbytes - none)
        assert 0 <= 8 * (dense.nbytes - none) - per_code * count < 16


def test_a_bit_is_a_sign_and_a_digit_of_three_a_code_the_first_in_the_lowest_place() -> None:
    signs = dense_codes.pack(np.array([1, -1, -1, 1, 1, -1, 1, 1, -1, 1]))
    assert signs is not None and signs.low.tolist() == [0b11011001, 0b10]
    three = dense_codes.pack(np.array([0, 1, -1, 1, 1, -1]))
    assert three is not None and three.low.tolist() == [1 + 2 * 3 + 0 * 9 + 2 * 27 + 2 * 81, 0]
    eight = dense_codes.pack(np.array([-4, 3, 2, -3, -1]))  # 0, 7, 6, 1, 3 from the lowest on
    assert eight is not None and eight.low.tolist() == [0b01_10_11_00, 0b11] and eight.high.tolist() == [0b00110]


def test_codes_of_more_values_are_left() -> None:
    assert dense_codes.pack(np.arange(-4, 5)) is None
    assert dense_codes.pack(np.array([-8, 7])) is None


# -- the graph ---------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("grain", ["per_channel", "per_group", "per_tensor"])
def test_a_graph_computes_the_same_and_stores_as_little_as_the_formula(weight: str, grain: str) -> None:
    wide = folded(weight, weight_granularity=grain)
    small = packed(wide)
    assert stored_bytes(wide) - stored_bytes(small) == saved(weight)
    kit.assert_same_outputs(wide, small, X)
    back = small.clone()
    assert dense_packing.unpack(back) == {"MatMul_0"}
    kit.assert_same_structure(back, wide, functions=False)


@EACH
@pytest.mark.parametrize(("mode", "kernel"), [("weight", "MatMulNBits"), ("static", "Cast"), ("dynamic", "Cast")])
def test_kernels_are_those_of_wide_codes_and_the_lowered_file_is_as_small(weight: str, mode: str, kernel: str) -> None:
    """4-bit kernels read bytes of two codes; integer ones what is cast to 8 bits. Both bit for bit as without."""
    target = Target.load("ort-cpu", "x86-64+vnni")
    wide = folded(weight, mode)
    before, after = (ort.lower(m, target) for m in (wide, packed(wide)))
    ops = kit.ops(before)
    assert [op for op in (n.op_type for n in after.graph) if op != "UnpackCodes"] == [n.op_type for n in before.graph]
    assert kernel in ops
    assert stored_bytes(before) - stored_bytes(after) == saved(weight)
    results = [ort.execute(m)(X)["y"] for m in (before, after)]
    np.testing.assert_array_equal(*results)
    rows = [[(r.node, r.verdict, r.kernel) for r in ort.audit(m, target, X).sites] for m in (before, after)]
    assert rows[0] == rows[1]


@EACH
def test_torch_takes_it_as_it_takes_wide_codes(weight: str) -> None:
    torch = pytest.importorskip("torch")
    wide = folded(weight)
    results = [gp.lower(m, "torch-cpu")(torch.from_numpy(X["x"])).detach().numpy() for m in (wide, packed(wide))]
    np.testing.assert_array_equal(*results)


def test_small_tensors_and_types_without_idle_bits_stay() -> None:
    made = model("g (float[N, 16] x, float[16, 24] w) => (float[N, 24] y) { y = MatMul(x, w) }", {"w": normal(16, 24)})
    three = Quantize(mode="weight", weight="int3", kernels="preferred")
    small = kit.apply(made, three, FoldWeights(), ctx=context(None, None))[0]
    for source in (small, folded("int4"), folded("int8")):
        after, (told,) = kit.apply(source, PackCodes(), ctx=context(None, None))
        assert not told.changed and not told.skips
        kit.assert_same_structure(after, source)


def test_three_bit_weights_behind_q_again_are_those_that_were_packed() -> None:
    wide = folded("int3")
    after, _ = kit.apply(packed(wide), UnfoldWeights(), ctx=context(None, None))
    assert any(quantized.encodes(n) for n in after.graph)
    kit.assert_same_outputs(wide, after, X)


@pytest.mark.parametrize("weight", ["ternary", "binary"])
def test_signs_are_not_unfolded_to_what_rounds_otherwise(weight: str) -> None:
    after, (told,) = kit.apply(packed(folded(weight)), UnfoldWeights(), ctx=context(None, None))
    assert "no even steps" in told.skips[0].why
    assert not any(quantized.encodes(n) for n in after.graph)


def test_the_recipe_fold_ends_with_it() -> None:
    assert gp.Recipe.load("fold").passes[-2].name == "pack-codes"
    made = model(TEXT, {"w": normal(64, 96), "b": normal(96, seed=1)})
    mapping = {"passes": [{"quantize": {"mode": "weight", "weight": "int3"}}, {"recipe": "fold"}]}
    after, report = gp.compile(made, mapping, X, "ort-cpu", gate=False)
    assert "UnpackCodes" in kit.ops(after) and edit.find(after, "MatMul_0").op_type == "MatMulNBits"
    (row,) = [s for s in report.sites if s.node == "MatMul_0"]
    assert row.verdict == "weight-only" and row.kernel == "MatMulNBits" and row.weights == 64 * 96
