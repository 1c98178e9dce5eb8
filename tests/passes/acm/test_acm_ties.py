"""Of equal scores the fewest learners are taken, by every way to run an ACM."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.graph import edit
from graphpress.ops.acm import OP
from graphpress.target import Target
from tests.passes.acm_models import LEARNERS, acm_node, feeds, op_model, tokens


def tied(bias: list[float], least: int) -> ir.Model:
    """A model whose gate scores all tokens alike."""
    model = op_model("relu", 0, least)
    node = acm_node(model)
    gate = edit.constant(node.inputs[1])
    assert gate is not None
    edit.set_constant(node, 1, np.zeros_like(gate), "gate")
    edit.set_constant(node, 2, np.array(bias, np.float32), "gate_bias")
    return model


CASES = [
    (0, [0.0] * (LEARNERS + 1), 0.0, 0), (1, [0.0] * LEARNERS, 0.0, 1), (0, [0.0, 2.0, 1.0, 2.0, 2.0], 0.0, 1),
    (0, [0.0, 0.5, 1.0, 1.5, 0.0], 0.5, 0), (0, [-9.0, 0.5, 1.0, 1.5, 2.0], 0.5, 1),
    (0, [0.0, -1.0, -2.0, -3.0, -4.0], -1.0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("least", "bias", "price", "taken"), CASES)
def test_the_fewest_of_equals(least: int, bias: list[float], price: float, taken: int) -> None:
    model, x = tied(bias, least), tokens(2, 3)
    lowered = lower(model, Target.load("ort-cpu"))
    assert "ACM" not in {n.op_type for n in lowered.graph}
    for found in (reference.execute(model), session.execute(lowered)):
        np.testing.assert_array_equal(found(feeds(x, price))["k"], np.full((2, 3), taken))


@pytest.mark.parametrize(("least", "bias", "price", "taken"), CASES)
def test_the_fewest_of_equals_in_torch(least: int, bias: list[float], price: float, taken: int) -> None:
    torch = pytest.importorskip("torch")
    node = acm_node(tied(bias, least))
    held = [torch.from_numpy(np.array(edit.constant(node.inputs[i]))) for i in (1, 2, 4, 5, 6, 7)]
    attributes = {k: a.value for k, a in node.attributes.items()}
    x = torch.from_numpy(tokens(2, 3))
    _, learners = OP.kernel()(x, *held[:2], torch.tensor(price), *held[2:], **attributes)
    np.testing.assert_array_equal(learners.numpy(), np.full((2, 3), taken))
