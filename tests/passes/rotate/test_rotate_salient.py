"""ARS: what is salient is turned by the dual transform, and what that is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.passes.equalize.smooth import Smooth
from graphpress.passes.rotate.dual import block_of, dual_transform, zigzag
from graphpress.passes.rotate.rotate import Rotate
from graphpress.pipeline import Pipeline
from tests import kit
from tests.passes.modulated import OWN, SHARED, block, given
from tests.passes.quantizing import context, model, normal
from tests.passes.rotate.test_rotate_inputs import by_token
from tests.passes.rotating import deviation, double, torch_run

ARS = Rotate(residual=False, inputs=True, down=True, salient=1.0)


def stream(seed: int, size: float = 60.0) -> np.ndarray:
    """[512, 256] tokens with two loud channels, as in section C4 of the atlas of methods."""
    x = np.random.default_rng(seed).normal(size=(512, 256))
    x[:, [17, 100]] *= size
    return x


def layer(weight: np.ndarray) -> ir.Model:
    made = model(
        """
g (float[N, 256] x, float[256, 256] f, float[256, 64] w) => (float[N, 64] y) {
    h = MatMul(x, f)
    [layer] y = MatMul(h, w)
}
""",
        {"f": np.eye(256), "w": weight.T},
    )
    ShapeInferencePass()(made)
    return made


def turned(made: ir.Model, x: np.ndarray, step: Rotate = ARS) -> tuple[ir.Node, np.ndarray, np.ndarray]:
    """(the node that turns, what it gives, the weight behind it)."""
    after, _ = kit.apply(made, step, ctx=context({"x": x.astype(np.float32)}, None))
    (node,) = [n for n in after.graph if n.domain == "graphpress"]
    name = node.outputs[0].name or ""
    z = reference.execute(after, [name])({"x": x.astype(np.float32)})[name]
    weight = next(n for n in after.graph if n.inputs[0] is node.outputs[0]).inputs[1]
    assert weight is not None and weight.const_value is not None
    return node, z, weight.const_value.numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_transform_is_orthogonal_and_evens_out_channels(seed: int) -> None:
    x = stream(seed)
    made = dual_transform(x, np.random.default_rng(seed))
    matrix = made(np.eye(256))
    assert np.abs(matrix @ matrix.T - np.eye(256)).max() <= 1e-12
    np.testing.assert_allclose(made(x.reshape(8, 64, 256)).reshape(x.shape), x @ matrix, rtol=0, atol=1e-10)
    incoherence = [np.abs(a).max() / np.sqrt(np.square(a).mean()) for a in (x, x @ matrix)]
    assert incoherence[1] * 4 <= incoherence[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loud_channels_cost_four_bits_a_third_at_most(seed: int) -> None:
    x, w = stream(seed), normal(64, 256, seed=seed + 10)
    node, z, v = turned(layer(w), x)
    assert node.op_type == "DualTurn"
    wanted = x @ w.T
    errors = [np.square(by_token(a) @ b - wanted).sum() for a, b in ((x, w.T), (z, v))]
    assert errors[1] * 3 <= errors[0]


def test_blocks_are_dealt_channels_there_and_back() -> None:
    loudness = np.array([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0])
    assert zigzag(loudness, 2).tolist() == [0, 6, 7, 1, 2, 4, 5, 3]  # 9 6 4 1 and 8 7 3 2
    assert [block_of(n) for n in (512, 256, 128, 192, 1152, 7)] == [128, 128, 64, 96, 128, 1]


@pytest.mark.parametrize("text", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_function_stays_in_double_precision(text: str, seed: int) -> None:
    made, feeds = double(block(text, seed)), {n: a.astype(np.float64) for n, a in given(9).items()}
    ctx = Context(data=context(given(), None).data, run=reference.execute)
    step = Rotate(residual=False, inputs=True, down=True, salient=0.0)
    after, (report,) = Pipeline([step], check_numbers=False).run(made, ctx)
    assert deviation(torch_run(made, feeds), torch_run(after, feeds)) <= 1e-10
    found = [n.op_type for n in after.graph if n.domain == "graphpress"]
    assert found == ["DualTurn"] * 2 and report.metrics["of them by the dual transform"] == 2


@pytest.mark.parametrize(("loud", "op"), [(0.9, "Hadamard"), (1.1, "DualTurn")])
def test_the_threshold_is_of_the_root_mean_square(loud: float, op: str) -> None:
    x = stream(0, 1.0)
    x *= loud / np.sqrt(np.square(x).mean())
    assert turned(layer(normal(64, 256)), x)[0].op_type == op
    louder = Rotate(residual=False, inputs=True, salient=2.0)
    assert turned(layer(normal(64, 256)), x, louder)[0].op_type == "Hadamard"


def test_what_counts_is_how_loud_it_was_before_it_was_smoothed() -> None:
    x = stream(0)
    made, ctx = layer(normal(64, 256)), context({"x": x.astype(np.float32)}, None)
    steps = [Smooth(alpha=1.0, insert=True), ARS]
    after, (_, report) = kit.apply(made, *steps, ctx=ctx)
    assert [n.op_type for n in after.graph if n.domain == "graphpress"] == ["DualTurn"]
    loudness = np.sqrt(np.square(x).mean())
    assert report.exhibits[0].data["rows"] == [("layer", f"{loudness:.3g}", "dual")] and loudness > 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_takes_what_rounds_better(seed: int) -> None:
    """A mean that all channels share: a Hadamard matrix gathers it in its first channel."""
    rng, w = np.random.default_rng(seed), normal(64, 256, seed=seed)
    auto = Rotate(residual=False, inputs=True, salient="auto")
    x = rng.normal(size=(512, 256)) + 1
    wanted, errors = x @ w.T, {}
    for step in (auto, Rotate(residual=False, inputs=True)):
        node, z, v = turned(layer(w), x, step)
        errors[node.op_type] = np.square(by_token(z) @ v - wanted).sum()
    assert errors["DualTurn"] * 2 <= errors["Hadamard"]
    one = rng.normal(size=(512, 256))
    one[:, 3] *= 200
    assert turned(layer(w), one, auto)[0].op_type == "Hadamard"


def test_one_clear_error() -> None:
    with pytest.raises(BadRequest, match=r"option 'salient'.*nothing is.*Set inputs or down"):
        Rotate(salient=1.0)
    with pytest.raises(BadRequest, match=r"-1\.0 is no root mean square"):
        Rotate(inputs=True, salient=-1.0)
    with pytest.raises(BadRequest, match=r"option 'salient'.*hear what layers read"):
        Pipeline([ARS]).run(layer(normal(64, 256)), Context(oracle=reference.execute))
