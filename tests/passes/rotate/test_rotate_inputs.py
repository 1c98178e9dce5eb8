"""What no weights can turn is turned at run time: what layers read behind a modulation or a LayerNormalization."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import reference
from graphpress.ops.dynamic_quantize_token import steps
from graphpress.passes.rotate.rotate import Rotate
from graphpress.pipeline import Pipeline
from tests import kit
from tests.passes.modulated import OWN, SHARED, block, given
from tests.passes.quantizing import context, model, normal
from tests.passes.rotating import deviation, double, torch_run


@pytest.mark.parametrize("text", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_function_stays_in_double_precision(text: str, seed: int) -> None:
    made = double(block(text, seed))
    after, (report,) = Pipeline([Rotate(inputs=True, down=True)]).run(made)
    feeds = {n: a.astype(np.float64) for n, a in given(9).items()}
    assert deviation(torch_run(made, feeds), torch_run(after, feeds)) <= 1e-10
    assert report.metrics["inputs turned"] == (1 if text is OWN else 2)
    turned = [n for n in after.graph if n.op_type == "Hadamard"]
    assert [n.inputs[0].name for n in turned if n.inputs[0]] == (["q", "t"] if text is OWN else ["q", "qb"])


def test_the_first_layers_are_not_turned_and_nothing_is_turned_twice() -> None:
    once, _ = kit.apply(block(), Rotate(inputs=True, down=True), ctx=context(given(), None))
    assert not any(n.op_type == "Hadamard" for v in once.graph.inputs for n in v.consumers())
    again, (second,) = kit.apply(once, Rotate(inputs=True, residual=False, values=False), ctx=context(given(), None))
    assert second.changed == 0 and len(again.graph) == len(once.graph)


def test_by_default_nothing_more_is_turned() -> None:
    _, (report,) = kit.apply(block(), Rotate(residual=False), ctx=context(given(), None))
    assert report.changed == 0 and "inputs turned" not in report.metrics


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outliers_cost_four_bits_a_third_at_most_once_they_are_turned(seed: int) -> None:
    """Section 4: 256 channels, two of them 60 times as loud; the product with a weight, by token."""
    x, w = normal(512, 256, seed=seed), normal(64, 256, seed=seed + 10)
    x[:, [17, 100]] *= 60
    made = model(
        """
g (float[N, 256] x, float[256, 256] f, float[256, 64] w) => (float[N, 64] y) {
    h = MatMul(x, f)
    y = MatMul(h, w)
}
""",
        {"f": np.eye(256), "w": w.T},
    )
    ShapeInferencePass()(made)
    after, _ = kit.apply(made, Rotate(residual=False, inputs=True), ctx=context({"x": x}, None))
    (turn,) = [n for n in after.graph if n.op_type == "Hadamard"]
    z = reference.execute(after, [turn.outputs[0].name or ""])({"x": x})[turn.outputs[0].name or ""]
    v = next(n for n in after.graph if n.inputs[0] is turn.outputs[0]).inputs[1].const_value.numpy()  # type: ignore[union-attr]
    wanted = x @ w.T
    errors = [np.square(by_token(a) @ b - wanted).sum() for a, b in ((x, w.T), (z, v))]
    assert errors[1] * 3 <= errors[0]


def by_token(x: np.ndarray, bits: int = 4) -> np.ndarray:
    scale = np.abs(x).max(-1, keepdims=True) / steps(bits)
    return np.asarray(np.clip(np.rint(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale)
