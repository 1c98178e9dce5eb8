"""Packed storage: bit for bit back, the bytes of the formula, the same results in ONNX Runtime and torch."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphpress as gp
from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.keys import SPARSITY
from graphpress.ops import packing, sparse_codes
from graphpress.ops.sparse_matmul import OP as PRODUCT
from graphpress.ops.sparse_weight import OP as WEIGHT
from graphpress.passes.prune import masks
from graphpress.passes.prune.pack_sparse import PackSparse
from graphpress.passes.prune.prune import Prune
from graphpress.passes.quantize.quantize import Quantize
from graphpress.recipe import Recipe
from tests import kit
from tests.passes.prune.test_prune_pass import context, layered

TYPES = [np.float32, np.float16, np.float64, np.int8]


def sparse(shape: tuple[int, ...], axis: int, n: int, dtype: type, seed: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).integers(-100, 100, size=shape)
    moved = np.moveaxis(w, axis, -1)
    return np.moveaxis(np.where(masks.mask(np.abs(moved), n, 4), moved, 0), -1, axis).astype(dtype)


@given(st.sampled_from([((8, 3), 0), ((5, 4), 1), ((3, 12, 2, 2), 1), ((4,), 0)]), st.integers(1, 3),
       st.sampled_from(TYPES), st.integers(0, 99))  # fmt: skip
def test_unpacking_gives_the_weight_back(where: tuple, n: int, dtype: type, seed: int) -> None:
    (shape, axis) = where
    weight = sparse(shape, axis, n, dtype, seed)
    packed = sparse_codes.pack(weight, axis, n)
    assert packed is not None
    np.testing.assert_array_equal(sparse_codes.unpack(packed), weight)
    assert packed.values.size == weight.size * n // 4
    assert packed.indices.nbytes == -(-weight.size * n // 16)  # two bits for each value


def test_what_has_not_the_pattern_is_not_packed() -> None:
    assert sparse_codes.pack(np.ones((8, 8), np.float32), 0, 2) is None
    assert sparse_codes.pack(np.zeros((6, 8), np.float32), 0, 2) is None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "axis"), [((8, 6), 0), ((6, 8), 1), ((3, 8, 2, 2), 1)])
def test_the_body_and_the_kernel_unpack(dtype: type, shape: tuple[int, ...], axis: int) -> None:
    torch = pytest.importorskip("torch")
    weight = sparse(shape, axis, 2, dtype)
    packed = sparse_codes.pack(weight, axis, 2)
    model = kit.parse("g (float[1] x) => (float y) { y = Identity (x) }")
    operands = [edit.add_const(model.graph, a, n) for a, n in ((packed.values, "v"), (packed.indices, "i"))]
    attributes = {"n": 2, "shape": list(packed.shape), "perm": list(packed.perm)}
    node = edit.new_node(WEIGHT.name, operands, attributes, before=model.graph[0], domain="graphpress")
    node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(weight.dtype))
    model.graph.outputs[0] = node.outputs[0]
    packing.attach(model, WEIGHT)
    verify.check(model)
    (found,) = kit.run(model, {"x": np.zeros(1, np.float32)}).values()
    np.testing.assert_array_equal(found, weight)
    given = [torch.from_numpy(a) for a in (packed.values, packed.indices)]
    np.testing.assert_array_equal(WEIGHT.kernel()(*given, **attributes).numpy(), weight)


def pruned() -> ir.Model:
    return kit.apply(layered(8, 64, 64, 12), Prune())[0]


def test_a_product_becomes_a_sparse_one_and_back() -> None:
    model = pruned()
    packed, (report,) = kit.apply(model, PackSparse())
    assert kit.ops(packed).count(PRODUCT.name) == 1
    assert report.metrics == {"bytes dense": 64 * 64 * 4, "bytes packed": 64 * 64 * 2 + 64 * 64 // 8}
    assert edit.find(packed, "MatMul_2").metadata_props[SPARSITY] == "2:4"
    kit.assert_same_outputs(model, packed, rtol=1e-5, atol=1e-5)
    dense = packing.unpacked(packed)
    kit.assert_same_structure(model, dense)
    assert [v.name for v in dense.graph.initializers.values() if v.name == "w1"] == ["w1"]
    assert packing.unpacked(dense) is dense


def test_a_shared_weight_comes_from_a_node_of_its_own() -> None:
    model = pruned()
    first = edit.find(model, "MatMul_2")
    again = edit.new_node("MatMul", [first.inputs[0], first.inputs[1]], after=first)
    total = edit.new_node("Add", [first.outputs[0], again.outputs[0]], after=again)
    for value in (again.outputs[0], total.outputs[0]):
        edit.like(value, first.outputs[0])
    relu = next(u.node for u in first.outputs[0].uses() if u.node.op_type == "Relu")
    edit.set_input(relu, 0, total.outputs[0])
    packed, _ = kit.apply(model, PackSparse())
    assert kit.ops(packed).count(WEIGHT.name) == 1
    kit.assert_same_outputs(model, packed, rtol=1e-5, atol=1e-5)
    kit.assert_same_structure(model, packing.unpacked(packed))


@pytest.mark.parametrize("mode", ["static", "weight", "dynamic"])
def test_integers_are_packed_and_their_kernels_stay(mode: str) -> None:
    """With the packing ONNX Runtime runs the same kernels, on the same numbers."""
    model = layered(8, 64, 64, 12)
    ctx = context(model)
    steps = [Prune(), Quantize(mode=mode), *Recipe.load("fold").passes]
    plain, _ = kit.apply(model, *steps, ctx=ctx)
    packed, reports = kit.apply(model, *steps, PackSparse(), ctx=ctx)
    assert reports[-1].metrics["bytes packed"] == 64 * 64 * 5 / 8
    runs = [gp.lower(m) for m in (plain, packed)]
    feeds = {"x": np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)}
    np.testing.assert_array_equal(runs[0](feeds)["y"], runs[1](feeds)["y"])
    kernels = [sorted((r.op, r.verdict, r.kernel) for r in gp.audit(m, feeds=feeds).sites) for m in (plain, packed)]
    assert kernels[0] == kernels[1]
    reasons = {r.node: r.reason for r in gp.audit(packed, feeds=feeds).sites}
    assert "2:4 for size only: ONNX Runtime multiplies dense" in reasons["MatMul_2"]
    assert "size only" not in reasons["MatMul_4"]


def test_the_lowered_file_stays_small(tmp_path: Path) -> None:
    packed, _ = kit.apply(layered(8, 256, 256, 12), Prune(), PackSparse())
    from graphpress.backends.ort import lower
    from graphpress.target import Target

    lowered = lower(packed, Target.load("ort-cpu"))
    assert kit.ops(lowered).count(PRODUCT.name) == 1
    gp.save(lowered, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 256 * 256 * (2 + 1 / 8) + 4 * (8 + 12) * 256 + 6000
    again = gp.load(tmp_path / "m.onnx")
    kit.assert_same_outputs(packed, again, rtol=1e-5, atol=1e-5)


def test_what_is_not_packed_is_told() -> None:
    model = layered(8, 64, 64, 12)
    _, (_, report) = kit.apply(model, Prune(n=2, m=8), PackSparse())
    assert [s.why for s in report.skips] == ["2:8 has no 2-bit places"]
    _, (_, report) = kit.apply(layered(8, 16, 8, 12), Prune(), PackSparse())
    assert "saves nothing" in report.skips[0].why
    _, (report,) = kit.apply(model, PackSparse())
    assert report.skips[0].why == "no layer notes an n:m pattern"


def test_in_torch_a_packed_model_is_the_dense_one() -> None:
    torch = pytest.importorskip("torch")
    model = pruned()
    packed, _ = kit.apply(model, PackSparse())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    modules = [gp.to_torch(m) for m in (model, packed)]
    torch.testing.assert_close(modules[1](x), modules[0](x), rtol=0, atol=0)
    assert modules[0].state_dict().keys() == modules[1].state_dict().keys()


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [("n", 4, "keeps n of each 4"), ("shape", [64, 66], "no multiple of 4"), ("perm", [0, 0], "no order"),
     ("shape", [64, 32], "values where shape and n say")],
)  # fmt: skip
def test_misuse_is_refused(attribute: str, value: object, rule: str) -> None:
    packed, _ = kit.apply(pruned(), PackSparse())
    node = next(packing.packed_nodes(packed))
    node.attributes[attribute] = ir.convenience.convert_attribute(attribute, value)
    with pytest.raises(VerifyError, match=rule):
        verify.check(packed)


def test_a_sparse_product_costs_what_is_not_zero() -> None:
    packed, _ = kit.apply(pruned(), PackSparse())
    node = next(packing.packed_nodes(packed))
    assert PRODUCT.macs is not None and PRODUCT.macs(node, (5, 64)) == 5 * 64 * 64 / 2


@pytest.mark.parametrize(
    ("recipe", "times"),
    [
        pytest.param("sparse24", 4 / (2 + 1 / 8), marks=pytest.mark.slow),
        pytest.param("sparse24-int8", 6.4, marks=pytest.mark.slow),
    ],
)
def test_the_recipes_end_to_end(zoo: Path, recipe: str, times: float) -> None:
    with np.load(zoo / "cifar10/calib.npz") as z:
        images = z["x"][:40].astype(np.float32).transpose(0, 3, 1, 2) / 64 - 2
    short = ["recover.steps=2", "prune.samples=8", "permute.samples=8", "permute.escapes=0"]
    source = gp.load(zoo / "cifar10/resnet20.onnx")
    model, report = gp.compile(source, Recipe.load(recipe).set(short), {"input": images}, gate=False)
    nodes = list(packing.packed_nodes(model))
    assert len(nodes) == 18
    bits = sum(v.const_value.nbytes for n in nodes for v in n.inputs[-2:])
    whole = sum(4 * 2 * n.inputs[-2].const_value.size for n in nodes)
    assert whole / bits == pytest.approx(times, rel=1e-6)
    rows = gp.audit(model).sites
    notes = [r for r in rows if "2:4 for size only" in r.reason]
    assert len(notes) == 18
    if recipe == "sparse24-int8":
        assert {r.verdict for r in notes} == {"integer"}
    assert {p.name for p in report.passes} >= {"permute", "prune", "recover", "pack-sparse"}
