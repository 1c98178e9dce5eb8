"""Learned bases: what they win, that the function stays, that they are orthogonal, and what keeps a basis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends.fx.build import build
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.recover import Recover
from graphpress.passes.recover.rotations.learnable_bases import without_quantizers
from graphpress.passes.recover.rotations.ranges import pass_on
from graphpress.passes.recover.rotations.turned import Turned, cayley
from graphpress.passes.recover.rounding.grids import quantized_layers
from graphpress.passes.recover.rounding.learning import past_pairs
from graphpress.pipeline import Pipeline
from graphpress.recipe import parse_passes
from tests import kit
from tests.passes import quantizing
from tests.passes.recover.test_methods import Stop
from tests.passes.recovering import arrays, chain, context, error, recover

torch = pytest.importorskip("torch")
WORDS, WIDTH, INNER, OUT = 64, 32, 48, 24
TEXT = f"""<ir_version: 10, opset_import: ["" : 23]>
agraph (int64[N, 6] ids, float[{WORDS}, {WIDTH}] t, float[{WIDTH}] g, float[{WIDTH}, {WIDTH}] wq,
        float[{WIDTH}, {WIDTH}] wk, float[{WIDTH}, {WIDTH}] wv, float[{WIDTH}, {WIDTH}] wo, float[{WIDTH}, {INNER}] up,
        float[{INNER}, {WIDTH}] down, float[{WIDTH}, {OUT}] head) => (float[N, 6, {OUT}] y)
{{
  e = Gather(t, ids)
  n = RMSNormalization(e, g)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
  v = MatMul(n, wv)
  a = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)
  o = MatMul(a, wo)
  s = Add(e, o)
  m = RMSNormalization(s, g)
  h = MatMul(m, up)
  r = Relu(h)
  d = MatMul(r, down)
  z = Add(s, d)
  l = RMSNormalization(z, g)
  y = MatMul(l, head)
}}
"""
FOUR = Quantize(
    mode="dynamic", weight="int4", weight_observer="mse", activation="int4", activation_granularity="per_token",
    kernels="preferred", embeddings=False,
)  # fmt: skip
SHORT = Recover(method="spinquant", steps=6, batch_size=16, samples=48)


def floats(seed: int = 0, rotated: bool = True) -> ir.Model:
    """One block whose stream has three loud channels; in random Hadamard bases by default."""
    rng = np.random.default_rng(seed)
    shapes = {"wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH),
              "up": (WIDTH, INNER), "down": (INNER, WIDTH), "head": (WIDTH, OUT)}  # fmt: skip
    weights = {n: (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    table = rng.normal(size=(WORDS, WIDTH))
    table[:, :3] *= 20
    weights |= {"t": table.astype(np.float32), "g": np.ones(WIDTH, np.float32)}
    model = quantizing.model(TEXT, weights)
    passes = f"infer-shapes,rotate{{seed={seed}}}" if rotated else "infer-shapes"
    return Pipeline(parse_passes(passes)).run(model)[0]


def ids(seed: int, count: int = 96) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(seed).integers(0, WORDS, (count, 6))}


def learned(
    teacher: ir.Model, options: Recover = SHORT, weight: str = "int4", **more: Any
) -> tuple[ir.Model, ir.Model]:
    """Quantized, before and after."""
    student = quantizing.quantize(teacher, replace(FOUR, weight=weight), target=None)[0]
    return student, recover(student, options, context(teacher, ids(7), **more))[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_bases_lose_less_than_those_they_began_with(seed: int) -> None:
    """Of 4-bit activations: what weights of 4 bits lose is up to how they are rounded behind it."""
    teacher = floats(seed)
    student, after = learned(teacher, replace(SHORT, steps=60, samples=96), weight="int8")
    assert error(after, teacher, ids(8)) <= 0.9 * error(student, teacher, ids(8))


def test_without_its_quantizers_the_model_is_the_teacher_in_orthogonal_bases() -> None:
    teacher = floats()
    after = learned(teacher, replace(SHORT, select="last"))[1]  # which step is best depends on the processor
    plain = without_quantizers(after)
    assert error(plain, teacher, ids(8)) <= 1e-10  # squares of float32's rounding
    old, new = (arrays(m) for m in (teacher, plain))
    table = {n: (old[n].astype(np.float64), new[n].astype(np.float64)) for n in old if n in new}
    (a, b) = next(pair for pair in table.values() if pair[0].shape == (WORDS, WIDTH))
    basis = np.linalg.lstsq(a, b, rcond=None)[0]
    assert np.abs(basis - np.eye(WIDTH)).max() > 1e-2
    assert np.abs(basis @ basis.T - np.eye(WIDTH)).max() <= 1e-5


def test_a_step_is_a_rotation_of_its_own_angle() -> None:
    """(1 - A/2)^-1 (1 + A/2) of [[0, a], [-a, 0]] turns by 2 arctan(a / 2)."""
    a = 0.7
    angle = 2 * np.arctan(a / 2)
    wanted = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    step = torch.tensor([[5.0, 2 * a], [0.0, -3.0]], dtype=torch.float64)  # only its skew part counts
    np.testing.assert_allclose(cayley(step).numpy(), wanted, atol=1e-14)
    wide = cayley(torch.from_numpy(np.random.default_rng(0).normal(size=(48, 48))))
    assert float((wide @ wide.t() - torch.eye(48)).abs().max()) <= 1e-12


def test_between_steps_the_gradient_is_that_of_the_step() -> None:
    rng, one = np.random.default_rng(1), Turned(5, "cpu")
    one.step.detach().copy_(torch.from_numpy(rng.normal(size=(5, 5))) / 4)
    one.take()
    assert not one.step.any() and float((one.matrix - torch.eye(5)).abs().max()) > 0.01
    weight = torch.from_numpy(rng.normal(size=(5, 5)))
    (found,) = torch.autograd.grad((one.now() * weight).sum(), one.step)
    step = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad((one.matrix @ cayley(step) * weight).sum(), step)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_the_range_of_a_token() -> None:
    """w + sum_j w_j (code_j - x_j / s) ds/dx, s = max|x| / 7.5 at 4 bits."""
    text = "agraph (float[2, 5] x, float[5, 3] v) => (float[2, 3] y) { y = MatMul(x, v) }"
    rng = np.random.default_rng(2)
    v, x = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    x *= np.sign([[row[np.abs(row).argmax()]] for row in x])  # the largest is no tie: 7.5 becomes 7
    model = quantizing.quantize(quantizing.model(text, {"v": v}), FOUR, target=None)[0]
    copy = past_pairs(model, quantized_layers(model, PassReport()))
    assert pass_on(copy) == 1
    plain = past_pairs(model, quantized_layers(model, PassReport()))
    np.testing.assert_allclose(kit.run(copy, {"x": x})["y"], kit.run(plain, {"x": x})["y"], atol=1e-5)
    given = torch.from_numpy(x).requires_grad_(True)
    made = build(copy, quantizers="straight-through")(given)
    (found,) = torch.autograd.grad((made if isinstance(made, torch.Tensor) else made[0]).sum(), given)
    w, wide = v.astype(np.float64).sum(1), x.astype(np.float64)
    for row, grad in zip(wide, found.numpy(), strict=True):
        top = np.abs(row).argmax()
        s = np.abs(row[top]) / 7.5
        codes = np.clip(np.rint(row / s), -8, 7)
        wanted = w.copy()
        wanted[top] += (w * (codes - row / s)).sum() * np.sign(row[top]) / 7.5
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-4)


def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    teacher = floats()
    wanted = arrays(learned(teacher)[1])
    with pytest.raises(KeyboardInterrupt):
        learned(teacher, replace(SHORT, state=str(tmp_path / "a.state")), progress=Stop(3))
    found = arrays(learned(teacher, replace(SHORT, state=str(tmp_path / "a.state")))[1])
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[n], found[n]) for n in wanted)


def test_only_what_is_asked_for_turns() -> None:
    teacher = floats()
    for options, turned in (({"residual": False}, {"wv", "wo"}), ({"heads": False}, None)):
        student, after = learned(teacher, replace(SHORT, method={"spinquant": options}, steps=2, select="last"))
        old, new = (arrays(without_quantizers(m)) for m in (student, after))
        changed = {n for n in old if not np.array_equal(old[n], new.get(n, old[n]))}
        assert changed == (turned or {"t", "wq", "wk", "wv", "wo", "up", "down", "head"})


@pytest.mark.parametrize(
    ("rotated", "options", "why"),
    [
        (False, {}, ""),
        (True, {"mode": "static", "activation": "int8", "activation_granularity": "per_tensor"}, "a constant scale"),
    ],
    ids=["plain", "static"],
)
def test_what_cannot_change_its_basis_is_said(rotated: bool, options: dict[str, Any], why: str) -> None:
    teacher = floats(rotated=rotated)
    student = quantizing.quantize(teacher, replace(FOUR, **options), {"ids": ids(3)["ids"]}, target=None)[0]
    report = recover(student, replace(SHORT, steps=1, select="last"), context(teacher, ids(7)))[1]
    assert bool(why) == (not report.changed)
    assert all(why in s.why for s in report.skips) and bool(report.skips) == bool(why)


def test_a_model_without_bases_is_left_with_a_word() -> None:
    teacher = chain()
    student = quantizing.quantize(teacher, FOUR, target=None)[0]
    after, report = recover(student, SHORT, context(teacher))
    assert not report.changed and arrays(after).keys() == arrays(student).keys()
    assert report.skips and "stream" in report.skips[-1].why


def test_a_moving_average_of_orthogonal_matrices_is_refused() -> None:
    with pytest.raises(BadRequest, match="'spinquant' cannot be selected by 'ema'"):
        Recover(method="spinquant", select="ema")
