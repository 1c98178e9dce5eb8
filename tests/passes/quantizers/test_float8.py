"""Floats of 8 bits: against all 256 of each type written out, and what may not be asked of them."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.quantize.plan import make_plan
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.passes.quantizers.float8 import Float8
from graphpress.target import Target
from graphpress.types import Role, Scheme, per_channel
from tests import kit
from tests.passes.quantizing import context, model, normal

FORMS = {"float8e4m3fn": (4, 3, 448.0), "float8e5m2": (5, 2, 57344.0)}  # bits of exponent and mantissa, the largest
KINDS = pytest.mark.parametrize("dtype", FORMS)
TEXT = """g (float[N, 64] x, float[64, 32] w, float[32, 16] v) => (float[N, 16] y) {
    [m] h = MatMul(x, w) r = Relu(h) [n] y = MatMul(r, v)
}"""


def numbers(dtype: str) -> np.ndarray:
    """All finite floats of a type, in float64, by its definition."""
    exponent, mantissa, largest = FORMS[dtype]
    bias, steps = (1 << (exponent - 1)) - 1, 1 << mantissa
    small = [m / steps * 2.0 ** (1 - bias) for m in range(steps)]
    normal = [(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 1 << exponent) for m in range(steps)]
    positive = np.array([x for x in (*small, *normal) if x <= largest])
    return np.unique(np.concatenate([-positive, positive]))


@KINDS
def test_the_codes_are_all_floats_of_the_type(dtype: str) -> None:
    np.testing.assert_array_equal(Float8.every_code(Scheme(dtype)).astype(np.float64), numbers(dtype))


@KINDS
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_nearest_float_is_taken(seed: int, dtype: str) -> None:
    w, how = normal(16, 64, seed=seed), Scheme(dtype, per_channel(0), quantizer="float8")
    params = Float8().fit(w, how)
    np.testing.assert_allclose(params.scale, np.abs(w).max(axis=1) / FORMS[dtype][2], rtol=1e-6)
    codes = Float8().quantize(w, params, how).astype(np.float64)
    steps = (w / params.scale[:, None]).astype(np.float64)
    np.testing.assert_array_equal(np.abs(codes - steps), np.abs(steps[..., None] - numbers(dtype)).min(axis=-1))
    back = Float8().dequantize(Float8().quantize(w, params, how), params, how)
    np.testing.assert_allclose(back, codes * params.scale[:, None], rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_digits_lose_a_quarter_of_what_two_lose(seed: int) -> None:
    """A float of m bits of mantissa is off by 2^-m / sqrt(12) of its power of two: one bit more, a quarter."""
    w, lost = normal(64, 256, seed=seed), {}
    for dtype in FORMS:
        how = Scheme(dtype, per_channel(0), quantizer="float8")
        params = Float8().fit(w, how)
        lost[dtype] = np.square(Float8().dequantize(Float8().quantize(w, params, how), params, how) - w).mean()
    assert 0.2 < lost["float8e4m3fn"] / lost["float8e5m2"] < 0.3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"weight": "float8e4m3fn"}, "option 'activation'.*multiplied by such floats"),
        ({"activation": "float8e4m3fn"}, "option 'weight'.*multiplied by such floats"),
        ({"weight": "float8e5m2", "activation": "float8e4m3fn", "mode": "dynamic"}, "option 'activation'"),
        ({"weight": "float8e5m2", "activation": "float8e4m3fn", "observer": "mse"}, "'mse' is for even steps"),
        ({"weight": "float8e5m2", "mode": "weight", "weight_symmetric": False}, "no zero point"),
        ({"weight": "float8e5m2", "mode": "weight", "quantizer": "power"}, "power"),
        ({"weight": "int8", "quantizer": "float8"}, "not int8"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(options: dict[str, object], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        QuantizeOptions(**options)  # type: ignore[arg-type]


def test_a_gpu_multiplies_them_and_the_plan_says_where_nothing_does() -> None:
    options = QuantizeOptions(weight="float8e4m3fn", activation="float8e4m3fn", kernels="preferred")
    made = model(TEXT, {"w": normal(64, 32), "v": normal(32, 16)})
    plan, skips = make_plan(made, Target.load("torch-cuda", "x86-64+vnni"), options)
    assert not skips
    assert {(s.node, s.role) for s in plan} == {(n, r) for n in ("m", "n") for r in (Role.WEIGHT, Role.ACTIVATION)}
    _, skips = make_plan(made, Target.load("ort-cpu", "x86-64+vnni"), options)
    assert all("for size or accuracy only" in s.why for s in skips) and len(skips) == 2


def test_the_graph_has_q_and_dq_of_the_type() -> None:
    quantize = Quantize(weight="float8e4m3fn", activation="float8e4m3fn", kernels="preferred")
    made = model(TEXT, {"w": normal(64, 32), "v": normal(32, 16)})
    after, _ = kit.apply(made, quantize, ctx=context({"x": normal(64, 64, seed=3)}, target=None))
    stored = {n.outputs[0].dtype.name for n in after.graph if n.op_type == "QuantizeLinear" and n.outputs[0].dtype}
    assert stored == {"FLOAT8E4M3FN"}
    x = normal(8, 64, seed=3)
    y, expected = kit.run(after, {"x": x})["y"], kit.run(made, {"x": x})["y"]
    assert np.square(y - expected).mean() < 0.004 * np.square(expected).mean()
