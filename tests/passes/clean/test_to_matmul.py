"""Einsum by a constant as MatMul: the numbers of numpy's einsum, for every order of axes."""

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from tests import kit

PRODUCTS = [
    "ij,jk->ik", "nij,jk->nik", "nij,kj->nik", "nij,jk->kin", "nji,jk->nik", "bsd,dhk->bshk", "bsd,dhk->bhsk",
    "bshk,hkd->bsd", "bhsk,hkd->bsd", "bsd,hdk->bhsk", "etd,edf->etf", "ted,edf->tef", "ted,edf->etf",
    "bted,edf->bfet", "bsd,edf->bsef", "jk,nij->nik", "...d,df->...f", "bd...,df->b...f", "b...d,fd->...bf",
]  # fmt: skip
OTHERS = ["ij,ij->ij", "ij,jk->i", "ij,k->ijk", "ii,ij->j", "d,df->f", "ij,ij->i", "abcd,dc->ab"]
SIZES = dict(zip("abcdefhijknst", (2, 3, 4, 5, 3, 4, 2, 3, 4, 5, 2, 3, 4), strict=True))


def _compiled(equation: str) -> tuple[ir.Model, dict[str, np.ndarray], np.ndarray]:
    parts = equation.partition("->")[0].split(",")
    slot = 0 if equation == "jk,nij->nik" else 1
    shapes = [[SIZES[c] for c in p.replace("...", "ah")] for p in parts]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    if equation.startswith("ii"):
        arrays[0] = arrays[0][:, : arrays[0].shape[0]]
    names = ["w", "x"] if slot == 0 else ["x", "w"]
    rank = np.einsum(equation, *arrays).ndim
    dims = ",".join("ABCDEF"[i] for i in range(rank))
    model = kit.parse(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float{list(arrays[1 - slot].shape)} x) => (float[{dims}] y) {{
            e = Einsum <equation = "{equation}"> ({", ".join(names)}) y = Relu(e) }}""")
    node = model.graph[0]
    held = ir.Value(name="w", const_value=ir.tensor(arrays[slot], name="w"), type=ir.TensorType(ir.DataType.FLOAT))
    held.shape = ir.Shape(arrays[slot].shape)
    model.graph.register_initializer(held)
    node.replace_input_with(slot, held)
    clean, _ = gp.compile(model, "clean", gate=False, prove=False)
    return clean, {"x": arrays[1 - slot]}, np.maximum(np.einsum(equation, *arrays), 0)


@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product_of_matrices(equation: str) -> None:
    model, feeds, expected = _compiled(equation)
    ops = [n.op_type for n in model.graph]
    assert "MatMul" in ops and "Einsum" not in ops
    assert next(n for n in model.graph if n.op_type == "MatMul").name == "Einsum_0"
    got = kit.run(model, feeds)["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", OTHERS)
def test_anything_else_stays(equation: str) -> None:
    model, feeds, expected = _compiled(equation)
    assert [n.op_type for n in model.graph] == ["Einsum", "Relu"]
    np.testing.assert_allclose(kit.run(model, feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_what_stays_is_listed_with_its_weights() -> None:
    model = kit.parse("""<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[2] y)
        <float[2,2] w = {1, 2, 3, 4}> { e = Einsum <equation = "ni,ij->j"> (x, w) y = Relu(e) }""")
    _, report = gp.compile(model, "w8a16", gate=False, prove=False)
    assert [(s.op, s.weights, bool(s.skip)) for s in report.sites] == [("Einsum", 4, True)]
    assert report.coverage().weights == 0
