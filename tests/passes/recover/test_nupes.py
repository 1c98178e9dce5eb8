"""NUPES: exponents and codes learned together, out of sample; gradients where powers have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.contracts import PassReport
from graphpress.passes.quantizers.power import levels
from graphpress.passes.recover.methods.nupes import Nupes
from graphpress.passes.recover.recover import Recover
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.powered import PoweredRounding
from graphpress.types import Scheme
from tests.passes.recover.test_rounding_methods import inputs, one_layer
from tests.passes.recovering import context, error, int4, recover

torch = pytest.importorskip("torch")
FIT = {"quantizer": "power", "weight_observer": "mse", "kernels": "preferred"}


def learned(seed: int, weight: str, steps: int, **options: Any) -> tuple[ir.Model, ir.Model, ir.Model, PassReport]:
    """(teacher, student, what came out, the report)."""
    teacher, x = one_layer(seed), inputs(seed)
    student = int4(teacher, weight=weight, **FIT)
    how = Recover(mode="blocks", method={"nupes": options}, steps=steps, batch_size=64, samples=512)
    after, report = recover(student, how, context(teacher, {"x": x[:-256]}))
    return teacher, student, after, report


def layer(model: ir.Model) -> grids.QuantizedLayer:
    (found,) = grids.quantized_layers(model, PassReport())
    return found


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_outputs_come_closer_out_of_sample_and_the_exponent_moves(seed: int) -> None:
    teacher, student, after, report = learned(seed, "int3", 80)
    q = layer(after)
    np.testing.assert_array_equal(q.rounded(q.params()), q.weight())
    assert report.metrics["loss after"] < report.metrics["loss before"]  # type: ignore[operator]
    held = {"x": inputs(seed)[-256:]}
    assert error(after, teacher, held) <= 0.8 * error(student, teacher, held)
    before, found = (layer(m).params().tables["book"] for m in (student, after))
    assert (found == np.rint(found)).all() and abs(found).max() <= 64  # kernels multiply by 8-bit integers still
    assert not np.allclose(found / found[-1], before / before[-1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight", ["int3", "int4"])
def test_learned_exponents_lose_less_than_those_found_without_data(weight: str, seed: int) -> None:
    """Than PowerQuant's search, rounded to nearest: by a tenth at least."""
    teacher, _, after, _ = learned(seed, weight, 250)
    held = {"x": inputs(seed)[-256:]}
    searched = int4(teacher, weight=weight, **{**FIT, "quantizer": "power:exponent=search"})
    assert error(after, teacher, held) <= 0.9 * error(searched, teacher, held)


def one(weight: str = "int3", exponent: float = 0.5) -> PoweredRounding:
    teacher = one_layer(0)
    value = teacher.graph.initializers["w"]
    array = value.const_value.numpy().copy()
    array[:5, :5] = 0
    value.const_value = ir.tensor(array, name="w")
    student = int4(teacher, weight=weight, **{**FIT, "quantizer": f"power:exponent={exponent}"})
    return PoweredRounding(layer(student), "keep", "cpu")


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.8, 1.0])
def test_it_begins_where_the_format_stands(exponent: float) -> None:
    """With its codes and its exponent, as far as integer levels say it."""
    made = one("int8", exponent)
    assert float(made.exponent.detach()) == pytest.approx(exponent, rel=1e-3)
    codes, params = made.exported()
    near = made.codes(made.weight, made.start)
    assert (codes - near).abs().max() <= 1 and (codes == near).float().mean() > 0.98
    np.testing.assert_allclose(params.scale, made.start.scale, rtol=1e-5)


def test_gradients_are_finite_at_zero_and_reach_exponent_and_offsets() -> None:
    made = one()
    made.tensor(hard=False).square().sum().backward()
    for parameter in made.parameters().values():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0


def test_a_code_may_become_any_other_and_the_graph_gives_it_back() -> None:
    made = one()
    before, _ = made.exported()
    with torch.no_grad():
        made.offset[10:20] += 3.0
        made.logarithm.fill_(float(np.log(0.7)))
    codes, params = made.exported()
    assert (codes[10:20] - before[10:20]).max() >= 3
    numbers, _ = levels(0.7, Scheme("int3"))
    np.testing.assert_array_equal(params.tables["book"][4:12], numbers)
    rebuilt = layer(int4(one_layer(0), weight="int3", **FIT))
    made.write(rebuilt)
    np.testing.assert_allclose(rebuilt.rounded(rebuilt.params()), rebuilt.rows(made.tensor(hard=True)), rtol=1e-5)


def test_weights_without_an_exponent_are_left_with_the_reason() -> None:
    report = PassReport()
    student = int4(one_layer(0), weight="int3", kernels="preferred")
    assert Nupes().trains(student, list(student.graph.initializers), report) == []
    assert "only those of power have an exponent" in report.skips[0].why
