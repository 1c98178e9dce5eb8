"""What is learned of a weight's rounding: closed forms of the weight and of its gradients, for any number format."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress import catalog
from graphpress.contracts import PassReport
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.rounding import learning
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from tests import kit
from tests.passes.quantizing import context, model, normal
from tests.passes.recover.test_gptq_formats import dtype

torch = pytest.importorskip("torch")
learned = pytest.importorskip("graphpress.passes.recover.rounding.learned")
ONE = "g (float[N, 32] x, float[32, 6] w) => (float[N, 6] y) { [m] y = MatMul(x, w) }"
# Whose codes are integers, with neighbours: of two signs none is the next number.
COUNTED = [n for n in catalog.quantizers() if not dtype(n).startswith("float") and n != "binary"]
GROUPS = {"weight_granularity": "per_group", "group_size": 16}


def layer(seed: int = 0, **options: object) -> QuantizedLayer:
    quantize = Quantize(**{"mode": "weight", "weight": "int4", "kernels": "preferred"} | GROUPS | options)  # type: ignore[arg-type]
    made, _ = kit.apply(model(ONE, {"w": normal(32, 6, seed=seed)}), quantize, ctx=context(None, None))
    (found,) = learning.takes(made, PassReport())
    return found


def test_signs_have_no_neighbour_to_choose() -> None:
    quantize = Quantize(mode="weight", weight="binary", kernels="preferred", quantizer="binary", **GROUPS)  # type: ignore[arg-type]
    made, _ = kit.apply(model(ONE, {"w": normal(32, 6)}), quantize, ctx=context(None, None))
    report = PassReport()
    assert learning.takes(made, report) == []
    (skip,) = report.skips
    assert skip.where == "m"


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def nearest(q: QuantizedLayer) -> np.ndarray:
    """As the graph stores it."""
    return q.stored(q.rounded(q.params()))


def each(q: QuantizedLayer) -> np.ndarray:
    """The scale of each element."""
    return np.repeat(q.params().scale, 16, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", COUNTED)
def test_at_first_soft_weights_are_the_weights_and_hard_ones_the_nearest(name: str, seed: int) -> None:
    q = layer(seed, quantizer=name, weight=dtype(name))
    soft = learned.SoftRounding(q, "keep", "cpu")
    w, rounded = q.stored(q.weight()), nearest(q)
    low, high = (q.stored(q.rows(end)) for end in q.ends())
    inside = (w >= low) & (w <= high)
    np.testing.assert_allclose(numpy(soft.tensor(False))[inside], w[inside], atol=2e-6)
    off, found = (np.abs(made - w) for made in (rounded, numpy(soft.tensor(True))))
    assert (found <= off + 1e-6).all()  # formats may draw the bound between two numbers elsewhere than half way
    if name == "affine":
        np.testing.assert_allclose(numpy(soft.tensor(True)), rounded, atol=1e-6)
    if q.quantizer.beside:
        return  # its scales are not learned
    shifted = learned.ShiftedRounding(q, "keep", "cpu", 0.5)
    np.testing.assert_allclose(numpy(shifted.tensor(True)), rounded, atol=1e-5)
    np.testing.assert_allclose(numpy(shifted.tensor(False)), rounded, atol=1e-5)


@pytest.mark.parametrize("name", COUNTED)
def test_whatever_is_chosen_is_one_of_the_two_neighbours(name: str) -> None:
    q = layer(quantizer=name, weight=dtype(name))
    soft = learned.SoftRounding(q, "keep", "cpu", steps=True)
    with torch.no_grad():
        soft.logit.copy_(torch.from_numpy(normal(32, 6, seed=5)) * 4)
    up = numpy(soft.logit) > 0
    soft.write(q)
    found, w = q.stored(q.weight()), normal(32, 6)
    off = (found - w) / np.array(q.quantizer.spread(q.params(), w.shape, q.scheme).scale)
    low, high = (q.stored(q.rows(end)) for end in q.ends())
    inside = (w > low) & (w < high)
    assert (((off > 0) == up) | (off == 0))[inside].all()
    np.testing.assert_allclose(q.rounded(q.params()), q.weight(), atol=1e-6)  # they are numbers of the format


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gradient_of_a_scale_is_the_code_that_is_chosen_softly(seed: int) -> None:
    """clip(floor(w / s0) + h) - z, whatever the scale has become; and so by finite differences."""
    q = layer(seed, weight="uint4", weight_symmetric=False)
    soft = learned.SoftRounding(q, "keep", "cpu", steps=True)
    first, zero = each(q), np.repeat(np.asarray(q.params().zero_point).astype(float), 16, 0)
    with torch.no_grad():
        soft.scale.mul_(torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1.5, (2, 6)).astype(np.float32)))
        soft.logit.add_(torch.from_numpy(normal(32, 6, seed=seed + 7)))
    stretched = np.clip(1.2 / (1 + np.exp(-numpy(soft.logit).astype(float))) - 0.1, 0, 1)
    below = np.floor(q.stored(q.weight()).astype(float) / first) + zero
    codes = np.clip(below, 0, 15) * (1 - stretched) + np.clip(below + 1, 0, 15) * stretched - zero
    weighed = torch.from_numpy(normal(32, 6, seed=9))
    (soft.tensor(False) * weighed).sum().backward()
    expected = (codes * numpy(weighed)).reshape(2, 16, 6).sum(1)
    np.testing.assert_allclose(numpy(soft.scale.grad), expected, rtol=1e-3, atol=1e-3)
    step = 1e-3
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            soft.scale.add_(sign * step)
            ends.append(float((soft.tensor(False) * weighed).double().sum()))
            soft.scale.sub_(sign * step)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(
        expected.sum(), abs=2e-3 * np.abs(codes).sum() ** 0.5 + 1e-2
    )


@pytest.mark.parametrize("beta", [2.0, 8.0, 20.0])
def test_what_is_undecided_counts_by_its_distance_from_both_neighbours(beta: float) -> None:
    q = layer(weight="int3")
    soft = learned.SoftRounding(q, "keep", "cpu")
    w, step = q.stored(q.weight()).astype(float), each(q)
    part = w / step - np.floor(w / step)
    free = (np.floor(w / step) >= -4) & (np.floor(w / step) < 3)
    expected = (1 - np.abs(2 * part - 1) ** beta)[free].sum()
    assert float(soft.undecided(beta).detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_shifts_and_ranges_by_their_formula(seed: int, symmetric: bool) -> None:
    """s clip(round(w / s + v) + z) with s and z of the shrunk range (arXiv:2309.05516, eq. 2 and 3)."""
    rng = np.random.default_rng(seed)
    options = {"weight": "int4"} if symmetric else {"weight": "uint4", "weight_symmetric": False}
    q = layer(seed, **options)
    made = learned.ShiftedRounding(q, "minmax", "cpu", 0.5)
    v = rng.uniform(-0.5, 0.5, (32, 6)).astype(np.float32)
    a, b = (rng.uniform(0.5, 1, (2, 6)).astype(np.float32) for _ in range(2))
    with torch.no_grad():
        made.shift.copy_(torch.from_numpy(v))
        made.reach.copy_(torch.from_numpy(a))
        made.depth.copy_(torch.from_numpy(b))
    w = q.stored(q.weight()).reshape(2, 16, 6)
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    if symmetric:
        step, zero, ends = a * np.maximum(-low / 8.5, high / 7.5), np.zeros((2, 6)), (-8, 7)
    else:
        step = (a * high - b * low) / 15
        zero, ends = np.clip(np.rint(-b * low / step), 0, 15), (0, 15)
    codes = np.clip(np.rint(w / step[:, None] + v.reshape(2, 16, 6)) + zero[:, None], *ends)
    expected = ((codes - zero[:, None]) * step[:, None]).reshape(32, 6)
    for hard in (True, False):
        assert np.isclose(numpy(made.tensor(hard)), expected, atol=1e-5).mean() > 0.99  # but for ties
    made.write(q)
    assert np.isclose(q.stored(q.weight()), expected, atol=1e-5).mean() > 0.99
    np.testing.assert_allclose(q.rounded(q.params()), q.weight(), atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_of_shifts_and_ranges_by_their_formula(seed: int) -> None:
    """Straight through the rounding: of v the step where nothing is clipped; of s what is lost, or the end's code."""
    q = layer(seed, weight="uint4", weight_symmetric=False)
    made = learned.ShiftedRounding(q, "minmax", "cpu", 0.5)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        made.shift.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, (32, 6)).astype(np.float32)))
        made.reach.mul_(0.7)
        made.depth.mul_(0.8)
    weighed = torch.from_numpy(normal(32, 6, seed=3))
    (made.tensor(False) * weighed).sum().backward()
    s, z = (p.double() for p in (made.params().scale.detach(), made.params().zero_point.detach()))
    s, z = s.requires_grad_(), z.requires_grad_()
    v = made.shift.detach().double().requires_grad_()
    w = made.weight.double().reshape(2, 16, 6)
    steps = w / s[:, None] + v.reshape(2, 16, 6)
    plain = (steps.round() - steps).detach() + steps + z[:, None]
    inside = (steps + z[:, None] > 0) & (steps + z[:, None] < 15)
    codes = torch.where(inside, plain, plain.detach().clamp(0, 15))
    ((codes - z[:, None]) * s[:, None] * weighed.reshape(2, 16, 6)).sum().backward()
    np.testing.assert_allclose(numpy(made.shift.grad), numpy(v.grad), rtol=1e-4, atol=1e-5)
    # d s / d a = high / 15, d z / d a = low b / s^2 high / 15, straight through the rounding of z
    low, high = (e.double() for e in (made.low, made.high))
    moved = 0.8 * low / s.detach() ** 2
    np.testing.assert_allclose(
        numpy(made.reach.grad), numpy(s.grad * high / 15 + z.grad * moved * high / 15), rtol=1e-3, atol=1e-3
    )


def test_zeros_of_a_pruned_weight_stay_whatever_is_learned() -> None:
    w = normal(32, 6)
    w[::2] = 0
    made, _ = kit.apply(model(ONE, {"w": w}), Quantize(mode="weight", weight="int4"), ctx=context(None, None))
    edit.find(made, "m").metadata_props[SPARSITY] = "2:4"
    (q,) = learning.takes(made, PassReport())
    soft, shifted = learned.SoftRounding(q, "mse", "cpu"), learned.ShiftedRounding(q, "mse", "cpu", 0.5)
    with torch.no_grad():
        soft.logit.fill_(9.0)
        shifted.shift.fill_(0.5)
    for one in (soft, shifted):
        assert not any(numpy(one.tensor(hard))[::2].any() for hard in (True, False))
        one.write(q)
        assert not q.stored(q.weight())[::2].any()


def test_what_cannot_be_learned_is_a_skip() -> None:
    text = """
    g (bool c, float[N, 8] x, float[8, 8] a, float[8, 8] b) => (float[N, 8] y) {
        h = MatMul(x, a)
        y = If (c) <then_branch = p () => (float[N, 8] u) { u = MatMul(h, b) },
                    else_branch = q () => (float[N, 8] v) { v = Relu(h) }>
    }
    """
    made, _ = kit.apply(
        model(text, {"a": normal(8, 8), "b": normal(8, 8, seed=1)}), Quantize(mode="weight"), ctx=context(None, None)
    )
    report = PassReport()
    (q,) = learning.takes(made, report)
    assert q.layer.weight_value.name == "a" and "in a body" in report.skips[0].why
    q.pair.encode.inputs[1].name = "shared"
    edit.new_node("Relu", [q.pair.encode.inputs[1]], after=q.layer.node, origin=q.layer.node)
    report = PassReport()
    assert not learning.takes(made, report) and any("shared" in s.why for s in report.skips)
