"""Static balancing behind AdaLN: a modulation of its own takes the factors, before a shared one stands a Mul."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.passes.equalize.smooth import Smooth
from tests import kit
from tests.passes.modulated import OWN, SHARED, block, given
from tests.passes.quantizing import context
from tests.passes.rotating import deviation, double, torch_run


def smooth(made: ir.Model, **options: object) -> tuple[ir.Model, PassReport]:
    after, (report,) = kit.apply(made, Smooth(alpha=0.5, **options), ctx=context(given(3), target=None))  # type: ignore[arg-type]
    return after, report


def array(made: ir.Model, name: str) -> np.ndarray:
    found = edit.constant(made.graph.initializers[name])
    assert found is not None
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_modulation_of_its_own_takes_the_factors_as_the_paper_says(seed: int) -> None:
    """ViDiT-Q: W_g / s, (c_g + 1) / s - 1, W_b / s, c_b / s; here the 1 is a constant of its own."""
    made = block(OWN, seed)
    after, report = smooth(made)
    assert [n.op_type for n in after.graph] == [n.op_type for n in made.graph]
    seen = reference.execute(made, ["q"])(given(3))["q"]
    s = np.sqrt(np.abs(seen).max((0, 1)) / np.abs(array(made, "a")).max(1))
    assert s.max() / s.min() > 2
    np.testing.assert_allclose(array(after, "m"), array(made, "m") / np.tile(s, 2), rtol=1e-5)
    (plus,) = [n for n in after.graph if n.outputs[0].name == "k"]
    ones = next(a for v in plus.inputs if (a := edit.constant(v)) is not None)
    shift, scale = np.split(array(after, "mb"), 2)
    np.testing.assert_allclose(scale + ones.reshape(-1), (array(made, "mb")[32:] + 1) / s, rtol=1e-5)
    np.testing.assert_allclose(shift, array(made, "mb")[:32] / s, rtol=1e-5)
    assert [k.why for k in report.skips if k.where.startswith("MatMul")] == ["x: it is an input of its graph"]


@pytest.mark.parametrize("text", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_function_stays_in_double_precision(text: str, seed: int) -> None:
    made = double(block(text, seed))
    feeds = {n: a.astype(np.float64) for n, a in given(9).items()}
    after, (report,) = kit.apply(
        made, Smooth(alpha=0.5, insert=True), ctx=context({n: a.astype(np.float64) for n, a in given(3).items()}, None)
    )
    assert report.changed and deviation(torch_run(made, feeds), torch_run(after, feeds)) <= 1e-10


def test_before_a_shared_modulation_stands_a_mul_only_on_request() -> None:
    made = block(SHARED)
    plain, report = smooth(made)
    assert len(plain.graph) == len(made.graph) and len(report.skips) == 4
    after, report = smooth(made, insert=True)
    added = [n for n in after.graph if n.op_type == "Mul" and "smooth" in "".join(v.name or "" for v in n.inputs if v)]
    assert {u.op_type for n in added for u in n.outputs[0].consumers()} == {"MatMul"}
    assert len(added) == 2 and [k.why[:3] for k in report.skips] == ["x: ", "c: "]


def test_a_mul_divides_what_is_loud_and_others_read_the_value_as_it_was() -> None:
    made = block(SHARED)
    made.graph.outputs.append(next(o for n in made.graph for o in n.outputs if o.name == "q"))
    after, _ = smooth(made, insert=True)
    before, now = (kit.run(m, given(3)) for m in (made, after))
    np.testing.assert_array_equal(before["q"], now["q"])
    np.testing.assert_allclose(now["y"], before["y"], atol=1e-4 * np.abs(before["y"]).max())
