"""What is saved passes onnx's checker, inference of types and shapes included, whatever the recipe and the opset."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress import shipped
from tests import kit

QUICK = [("acm", 21), ("w4a8-rot", 23), ("w8a8", 17)]
SHORT = [("recover", "steps", 12), ("zeroq", "iterations", 2)]
EVERY = [(recipe, opset) for recipe in sorted(shipped.recipes()) for opset in range(17, 24) if recipe != "fold"]


def _model(opset: int) -> ir.Model:
    """A block with norms and a feed-forward layer, and a picture's Conv with BatchNormalization."""
    rng = np.random.default_rng(0)
    model = kit.parse(f"""<ir_version: {8 if opset < 21 else 10}, opset_import: ["": {opset}, "local": 1]>
        g (float[N,6,16] x, float[N,3,8,8] p, float[16,32] Wi, float[32] g, float[32,64] W1, float[64,32] W2,
           float[32,12] Wo, float[8,3,3,3] Wc, float[8] bn) => (float[N,6,12] y, float[N,8,8,8] q) {{
            e = MatMul(x, Wi) n = LayerNormalization(e, g) u = MatMul(n, W1) v = local.Act(u) d = MatMul(v, W2)
            s = Add(e, d) m = LayerNormalization(s, g) y = MatMul(m, Wo)
            c = Conv <pads = [1,1,1,1]> (p, Wc) b = BatchNormalization(c, bn, bn, bn, bn) q = Relu(b)
        }}
        <domain: "local", opset_import: ["": {opset}]> Act (a) => (o) {{ o = Relu(a) }}""")
    for value in model.graph.inputs[2:]:
        array = rng.normal(size=value.shape.numpy()).astype(np.float32) * 0.3
        value.const_value = ir.tensor(np.abs(array) + 0.1 if len(array.shape) == 1 else array, name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[2:]
    return model


def _check(recipe: str, opset: int, folder: Path) -> None:
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=(24, 6, 16)), "p": rng.normal(size=(24, 3, 8, 8))}
    data = {k: v.astype(np.float32) for k, v in data.items()}
    wanted = gp.Recipe.load(recipe)
    given = {(p.name, o) for p in wanted.passes for o in p.options()}
    short = [f"{p}.{o}={n}" for p, o, n in SHORT if (p, o) in given]
    wanted = wanted.set(short)
    passes = [p for p in wanted.passes if p.name != "train-acm"]  # it takes long, and changes numbers only
    model, _ = gp.compile(_model(opset), passes, data, gate=False, prove=False)
    path = folder / "model.onnx"
    gp.save(model, path)
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize(("recipe", "opset"), QUICK)
def test_the_checker_accepts(recipe: str, opset: int, tmp_path: Path) -> None:
    _check(recipe, opset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "opset"), EVERY)
def test_the_checker_accepts_every_recipe_at_every_opset(recipe: str, opset: int, tmp_path: Path) -> None:
    _check(recipe, opset, tmp_path)
