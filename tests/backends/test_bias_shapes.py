"""Biases of any shape that broadcasts, on both runtimes and in every kernel: added where the float model adds them."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphpress as gp
from tests import kit

RECIPES = ("w8a8", "w8a8-dynamic", "w8a16", "w4a16")
TARGETS = ("ort-cpu", "torch-cpu")


def _gemm(rows: int, columns: int, shape: tuple[int, ...], transposed: bool) -> ir.Model:
    weight = [columns, 32] if transposed else [32, columns]
    return _filled(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{rows},32] x, float{weight} W, float{list(shape)} c) => (float[{rows},{columns}] y) {{
            y = Gemm <transB = {int(transposed)}> (x, W, c) }}""")


def _matmul(rows: int, columns: int, shape: tuple[int, ...]) -> ir.Model:
    return _filled(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{rows},32] x, float[32,{columns}] W, float{list(shape)} c) => (y) {{
            m = MatMul(x, W) y = Add(m, c) }}""")


def _conv(shape: tuple[int, ...]) -> ir.Model:
    return _filled(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,3,5,3] x, float[3,3,1,3] W, float{list(shape)} c) => (y) {{
            m = Conv <pads = [0,1,0,1]> (x, W) y = Add(m, c) }}""")


def _filled(source: str) -> ir.Model:
    model, rng = kit.parse(source.replace("float[]", "float")), np.random.default_rng(0)
    for value, scale in zip(list(model.graph.inputs)[1:], (0.2, 3.0), strict=True):
        array = (rng.normal(size=value.shape.numpy()) * scale).astype(np.float32)
        value.const_value = ir.tensor(np.asarray(array), name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[1:]
    return model


def _sqnr(model: ir.Model, recipe: str, target: str) -> float:
    x = np.random.default_rng(1).normal(size=model.graph.inputs[0].shape.numpy()).astype(np.float32)
    low, _ = gp.compile(model, recipe, {"x": np.concatenate([x] * 8)}, target, gate=False, prove=False)
    run = gp.lower(low, target)
    if target == "ort-cpu":
        got = run({"x": x})["y"]
    else:
        import torch

        with torch.no_grad():
            got = run(torch.from_numpy(x)).numpy()
    wanted = kit.run(model, {"x": x})["y"].astype(np.float64)
    assert got.shape == wanted.shape
    noise = ((got - wanted) ** 2).sum()
    return float(10 * np.log10((wanted**2).sum() / noise)) if noise else np.inf  # what stays float may be exact


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_gemm(target: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.sampled_from([(4, 4), (4, 8), (1, 4), (8, 4)]), label="M, N")
    kinds = [(rows, 1), (rows, columns), (1,), (1, columns), (columns,), (), (1, 1)]
    shape = data.draw(st.sampled_from(kinds), label="C")
    recipe, transposed = data.draw(st.sampled_from(RECIPES)), data.draw(st.booleans(), label="transB")
    assert _sqnr(_gemm(rows, columns, shape, transposed), recipe, target) > 12 + 13 * (recipe != "w4a16")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_an_add_behind_a_product(target: str, data: st.DataObject) -> None:
    kinds = [(4, 1), (4, 4), (1,), (1, 4), (4,), (), (1, 1, 4), (2, 4, 4), (2, 1, 1), (3, 1, 4)]
    shape, recipe = data.draw(st.sampled_from(kinds), label="added"), data.draw(st.sampled_from(RECIPES))
    assert _sqnr(_matmul(4, 4, shape), recipe, target) > 12 + 13 * (recipe != "w4a16")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_an_add_behind_a_convolution(target: str, data: st.DataObject) -> None:
    kinds = [(3,), (3, 1, 1), (1, 3, 1, 1), (5, 1), (5, 3), (1,), (), (3, 5, 3), (2, 1, 1, 1, 1)]
    shape, recipe = data.draw(st.sampled_from(kinds), label="added"), data.draw(st.sampled_from(RECIPES))
    assert _sqnr(_conv(shape), recipe, target) > 12 + 13 * (recipe != "w4a16")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shape(recipe: str, target: str) -> None:
    least = 12 + 13 * (recipe != "w4a16")
    for rows, columns in ((4, 4), (4, 8), (1, 4)):
        for shape in ((rows, 1), (rows, columns), (1,), (1, columns), (columns,), (), (1, 1)):
            assert _sqnr(_gemm(rows, columns, shape, True), recipe, target) > least, shape
            assert _sqnr(_gemm(rows, columns, shape, False), recipe, target) > least, shape
    for shape in ((4, 1), (4, 4), (1,), (1, 4), (4,), (), (1, 1, 4), (2, 4, 4), (2, 1, 1), (3, 1, 4)):
        assert _sqnr(_matmul(4, 4, shape), recipe, target) > least, shape
    for shape in ((3,), (3, 1, 1), (1, 3, 1, 1), (5, 1), (5, 3), (1,), (), (3, 5, 3), (2, 1, 1, 1, 1)):
        assert _sqnr(_conv(shape), recipe, target) > least, shape
