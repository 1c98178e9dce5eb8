"""Bias absorption: exact where no value is below h, h by its formula, and what stops it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.keys import STATISTICS
from graphpress.passes.equalize.absorb_biases import AbsorbBiases
from tests import kit
from tests.passes.quantizing import context, model, normal

CONV = """
g (float[N, 3, 7, 7] x, float[4, 3, 3, 3] a, float[4] b, float[4, 1, 3, 3] c, float[5, 4, 1, 1] d)
    => (float[N, 5, 3, 3] y) {
    h = Conv(x, a, b)
    r = Relu(h)
    k = Conv <group = 4> (r, c)
    y = Conv(k, d)
}"""


def built(text: str = CONV, seed: int = 0, b: float = 9.0) -> ir.Model:
    made = model(
        text,
        {"a": normal(4, 3, 3, 3, seed=seed) / 9, "b": np.array([b, b, 0, -1]), "c": normal(4, 1, 3, 3, seed=seed + 1),
         "d": normal(5, 4, 1, 1, seed=seed + 2)},
    )  # fmt: skip
    ShapeInferencePass()(made)
    (first,) = [n for n in made.graph if len(n.inputs) > 2]
    STATISTICS.set(first, {"mean": [b, b, 0.0, -1.0], "std": [2.0, 4.0, 0.6, 0.6]})
    return made


def absorbed(made: ir.Model) -> tuple[ir.Model, PassReport]:
    after, (report,) = kit.apply(made, AbsorbBiases(), ctx=context(None, None))
    return after, report


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_no_value_is_below_h_nothing_changes_and_h_is_as_the_paper_has_it(seed: int) -> None:
    made, x = built(seed=seed), {"x": normal(4, 3, 7, 7, seed=5)}
    after, report = absorbed(made)
    wanted, got = (kit.run(m, x)["y"] for m in (made, after))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    first = next(n for n in after.graph if len(n.inputs) > 2)
    np.testing.assert_allclose(np.asarray(edit.constant(first.inputs[2])), [6, 9, 0, -1], rtol=1e-6)
    told = STATISTICS.get(first)
    assert told is not None and report.changed == 1
    np.testing.assert_allclose(told["mean"], [6, 9, 0, -1])


def test_what_is_below_is_cut_off() -> None:
    made, x = built(), {"x": 40 * normal(4, 3, 7, 7, seed=5)}
    after, _ = absorbed(made)
    wanted, got = (kit.run(m, x)["y"] for m in (made, after))
    assert np.abs(got - wanted).max() > 0.1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CONV.replace("<group = 4>", "<group = 4, pads = [1, 1, 1, 1]>").replace("N, 5, 3, 3", "N, 5, 5, 5"), "padded"),
        (CONV.replace("r = Relu(h)", "r = Sigmoid(h)"), "no Relu alone reads it"),
    ],
)
def test_padding_and_other_activations_are_left_with_the_reason(text: str, why: str) -> None:
    after, report = absorbed(built(text))
    assert report.changed == 0 and [why in s.why for s in report.skips] == [True]
    assert len(after.graph) == 4


def test_without_notes_and_with_small_means_nothing_happens() -> None:
    made = built(b=1.0)
    assert absorbed(made)[1].changed == 0
    bare = built()
    for node in bare.graph:
        node.metadata_props.pop(STATISTICS, None)
    assert absorbed(bare)[1].changed == 0
