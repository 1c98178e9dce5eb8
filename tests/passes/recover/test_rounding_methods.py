"""AdaRound, BRECQ, GENIE-M and AutoRound on the engine: what they win out of sample, resumed, and each by itself."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.engine import fisher
from graphpress.passes.recover.engine.fisher import Fisher
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.losses.base import Seen
from graphpress.passes.recover.losses.mse import Mse
from graphpress.passes.recover.methods.brecq import Brecq
from graphpress.passes.recover.recover import Recover
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.learned import SoftRounding
from tests.passes import quantizing
from tests.passes.quantizing import normal
from tests.passes.recover.test_methods import Stop
from tests.passes.recovering import X, arrays, chain, context, error, int4, recover

torch = pytest.importorskip("torch")
METHODS = ["adaround", "autoround", "brecq", "genie_m"]
SHORT = Recover(mode="blocks", steps=24, batch_size=16, samples=64)
WIDTH, ROWS = 64, 48
FOUR = {"weight": "uint4", "weight_symmetric": False}


@functools.cache
def inputs(seed: int, rows: int = 512) -> np.ndarray:
    """Correlated, with a spectrum from 1 to 10^-1.5 and four loud channels."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(WIDTH, WIDTH)) * np.logspace(0, -1.5, WIDTH)[:, None]
    x = np.random.default_rng(seed + 100).normal(size=(rows + 256, WIDTH)) @ mixing
    x[:, rng.permutation(WIDTH)[:4]] *= 6
    return x.astype(np.float32)


def one_layer(seed: int) -> ir.Model:
    text = f"g (float[N, {WIDTH}] x, float[{WIDTH}, {ROWS}] w) => (float[N, {ROWS}] y) {{ y = MatMul(x, w) }}"
    return quantizing.model(text, {"w": normal(WIDTH, ROWS, seed=seed)})


def lost(seed: int, weight: str, method: Any, steps: int) -> tuple[float, float]:
    """Relative squared error out of sample, to nearest and by a method."""
    teacher, x = one_layer(seed), inputs(seed)
    student = int4(teacher, weight=weight, weight_observer="mse", kernels="preferred")
    options = Recover(mode="blocks", method=method, steps=steps, batch_size=64, samples=512)
    after, _ = recover(student, options, context(teacher, {"x": x[:-256]}))
    return error(student, teacher, {"x": x[-256:]}), error(after, teacher, {"x": x[-256:]})


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["adaround", "autoround", {"brecq": {"fisher": False}}, "genie_m"], ids=str)
def test_outputs_come_closer_out_of_sample(method: Any, seed: int) -> None:
    nearest, after = lost(seed, "int3", method, 120)
    assert after <= 0.9 * nearest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight", ["int2", "int3", "int4"])
def test_steps_learned_with_the_rounding_lose_less_than_rounding_alone(weight: str, seed: int) -> None:
    """GENIE-M < AdaRound < to nearest, and AutoRound is of their kind."""
    nearest, genie = lost(seed, weight, "genie_m", 1000)
    ada, auto = (lost(seed, weight, method, 1000)[1] for method in ("adaround", "autoround"))
    assert genie < ada < nearest
    assert genie <= 0.9 * nearest and auto <= 0.9 * nearest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["adaround", "brecq", "genie_m"])
def test_in_the_end_every_weight_is_one_of_its_neighbours(
    method: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights: list[np.ndarray] = []
    exported = SoftRounding.exported

    def watched(self: SoftRounding) -> Any:
        heights.append(self.height.detach().numpy()[self.free.numpy()])
        return exported(self)

    monkeypatch.setattr(SoftRounding, "exported", watched)
    teacher = one_layer(seed)
    options = Recover(mode="blocks", method=method, steps=1500, batch_size=64, samples=512, select="last")
    recover(int4(teacher, weight="int3"), options, context(teacher, {"x": inputs(seed)}))
    assert (np.abs(heights[-1] - np.round(heights[-1])) <= 0.05).mean() >= 0.93


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m not in ("autoround", "genie_m"))) for m in METHODS]
)
def test_an_interrupted_training_goes_on_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    teacher = chain()
    options = replace(SHORT, method=method)
    expected = arrays(recover(int4(teacher), options, context(teacher))[0])
    kept = replace(options, state=str(tmp_path / "state"))
    with pytest.raises(KeyboardInterrupt):
        recover(int4(teacher), kept, context(teacher, progress=Stop(11)))
    found = arrays(recover(int4(teacher), kept, context(teacher))[0])
    assert all(expected[n].tobytes() == found[n].tobytes() for n in expected)
    assert any(expected[n].tobytes() != a.tobytes() for n, a in arrays(int4(teacher)).items())


@pytest.mark.parametrize("method", METHODS)
def test_weights_lie_on_their_grid_and_what_is_measured_is_what_comes_out(method: str) -> None:
    teacher = chain()
    options = {"weight_granularity": "per_group", "group_size": 16}
    student = int4(teacher, **options | ({"weight": "int3"} if method == "brecq" else FOUR))
    after, report = recover(student, replace(SHORT, method=method), context(teacher))
    for q in grids.quantized_layers(after, PassReport()):
        np.testing.assert_array_equal(q.rounded(q.params()), q.weight())
    assert report.metrics["loss after"] <= report.metrics["loss before"]  # type: ignore[operator]
    assert method == "brecq" or error(after, teacher, {"x": X}) < error(student, teacher, {"x": X})


def test_a_training_that_helps_nothing_leaves_scales_as_they_were() -> None:
    teacher = chain()
    student = int4(teacher)
    wild = replace(SHORT, method={"autoround": {"observer": "minmax"}}, lr=0.4, steps=2, inputs="teacher")
    after, report = recover(student, wild, context(teacher))
    if not report.changed:
        assert all(arrays(after)[n].tobytes() == a.tobytes() for n, a in arrays(student).items())
    assert error(after, teacher, {"x": X}) <= 1.2 * error(student, teacher, {"x": X})


@pytest.mark.parametrize("symmetric", [True, False])
def test_autoround_begins_with_the_whole_range_where_both_its_ends_are_learned(symmetric: bool) -> None:
    """A rate of almost nothing keeps what it began with: with zero points the weights' ends, else what loses least."""
    teacher, x = one_layer(0), inputs(0)
    student = int4(teacher, weight="int2", weight_symmetric=symmetric, weight_observer="minmax")
    found = dict[Any, ir.Model]()
    for observer in (None, "minmax", "mse"):
        method = {"autoround": {} if observer is None else {"observer": observer}}
        options = Recover(mode="blocks", method=method, steps=1, lr=1e-9, batch_size=64, samples=512, select="last")
        found[observer] = recover(student, options, context(teacher, {"x": x}))[0]
    scales = {o: next(iter(grids.quantized_layers(m, PassReport()))).params().scale for o, m in found.items()}
    alike, other = ("mse", "minmax") if symmetric else ("minmax", "mse")
    np.testing.assert_allclose(scales[None], scales[alike], rtol=1e-6)
    assert not np.allclose(scales[None], scales[other], rtol=1e-2)


def test_layers_of_adaround_take_turns_on_the_rounded_ones_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks the second has two layers: the first five steps are its first one's."""
    text = """g (float[N, 8] x, float[8, 8] a, float[8, 8] b, float[8, 8] c) => (float[N, 8] y) {
        p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) s = Add(x, r) t = MatMul(s, c) y = Add(t, q)
    }"""
    teacher = quantizing.model(text, {n: normal(8, 8, seed=i) for i, n in enumerate("abc")})
    seen: list[tuple[str, bool]] = []
    tensor = SoftRounding.tensor

    def watched(self: SoftRounding, hard: bool) -> Any:
        if torch.is_grad_enabled():
            seen.append((self.name, hard))
        return tensor(self, hard)

    monkeypatch.setattr(SoftRounding, "tensor", watched)
    recover(int4(teacher), replace(SHORT, method="adaround", steps=9), context(teacher))
    second = [[("b", False), ("c", False)]] * 5 + [[("b", True), ("c", False)]] * 4
    assert seen == [("a", False)] * 9 + [pair for step in second for pair in step]


# -- what the outputs mind ---------------------------------------------------------------------------------------------


def two(classes: bool) -> ir.Model:
    last = "y = Softmax(v)" if classes else "y = Tanh(v)"
    text = f"""g (float[N, 6] x, float[6, 5] a, float[5, 4] b) => (float[N, 4] y) {{
        u = MatMul(x, a) r = Relu(u) v = MatMul(r, b) {last}
    }}"""
    return quantizing.model(text, {"a": normal(6, 5), "b": normal(5, 4, seed=1)})


def block(teacher: ir.Model, end: str) -> Scope:
    ctx = context(teacher, {"x": normal(8, 6)})
    return Scope(teacher, teacher, ctx, (end,))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_squared_gradients_are_of_a_class_drawn_for_each_sample(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With z = v before the softmax the gradient of log p(c) is one-hot(c) - p; before b it is that times b^T."""
    monkeypatch.setattr(fisher, "_LEAST", 0.0)
    teacher = two(classes=True)
    u = torch.from_numpy(normal(64, 5, seed=seed)).abs()
    p = torch.softmax(u @ torch.from_numpy(normal(5, 4, seed=1)), -1)
    found = Fisher(block(teacher, "r"), ())({}, {"r": u}, seed)["fisher: r"]
    options = torch.stack([(torch.eye(4)[c] - p) @ torch.from_numpy(normal(5, 4, seed=1)).T for c in range(4)]).square()
    scale = (found / options).amax(-1).amin(0).median()  # one for all: the mean is 1
    fits = ((found - scale * options).abs() <= 1e-3 * found + 1e-5).all(-1).any(0)
    assert fits.all() and float(found.mean()) == pytest.approx(1, rel=1e-5)
    again = Fisher(block(teacher, "r"), ())({}, {"r": u}, seed)["fisher: r"]
    assert torch.equal(found, again)


def test_outputs_of_values_give_an_inner_product_with_signs() -> None:
    teacher = two(classes=False)
    v = torch.from_numpy(normal(64, 4))
    found = Fisher(block(teacher, "v"), ())({}, {"v": v}, 0)["fisher: v"]
    expected = (1 - torch.tanh(v) ** 2).square()
    torch.testing.assert_close(found, (expected / expected.mean()).clamp_min(1e-3), rtol=1e-3, atol=1e-6)
    there = Fisher(block(teacher, "y"), ())({}, {"y": torch.tanh(v)}, 0)["fisher: y"]  # the last block: nothing behind
    assert torch.equal(there, torch.ones_like(v))


def test_equal_weights_leave_the_squared_error() -> None:
    method = Brecq()
    s, t = torch.from_numpy(normal(8, 4)), torch.from_numpy(normal(8, 4, seed=1))
    plain = Seen({}, {"y": s}, {"y": t}, ("y",))
    ones = Seen({"fisher: y": torch.ones(8, 4)}, {"y": s}, {"y": t}, ("y",))
    expected = 4 * float((s - t).square().mean() / t.square().mean())  # four channels
    assert float(method.apart(plain, Mse())) == pytest.approx(expected, rel=1e-6)
    assert float(method.apart(ones, Mse())) == pytest.approx(expected, rel=1e-6)
    weights = torch.from_numpy(normal(8, 4, seed=2)).square()
    found = float(method.apart(Seen({"fisher: y": weights}, {"y": s}, {"y": t}, ("y",)), Mse()))
    assert found == pytest.approx(4 * float((weights * (s - t).square()).mean() / t.square().mean()), rel=1e-6)


# -- quantized activations, dropped at random --------------------------------------------------------------------------


def w4a4(teacher: ir.Model) -> ir.Model:
    options = Quantize(mode="static", weight="int4", activation="uint8", observer="mse", kernels="preferred")
    return quantizing.quantize(teacher, options, {"x": X})[0]


@pytest.mark.parametrize("method", ["brecq", "genie_m"])
def test_steps_of_activations_are_learned_on_request(method: str) -> None:
    teacher = chain()
    student = w4a4(teacher)
    for train in ("weights", "all"):
        options = replace(SHORT, method=method, train=train, select="last")
        after, _ = recover(student, options, context(teacher))
        steps = [n for n, a in arrays(student).items() if "scale" in n and a.size == 1]
        moved = [n for n in steps if arrays(after)[n].tobytes() != arrays(student)[n].tobytes()]
        assert len(steps) > 2 and (len(moved) > 2 if train == "all" else not moved)


def test_dropping_is_in_training_alone_and_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphpress.passes.recover.methods.genie_m import GenieM
    from graphpress.passes.recover.rounding.learning import Substituted

    shares: list[tuple[bool, float]] = []
    mixed: list[float] = []
    call, mix = Substituted.__call__, GenieM._mixed

    def watched(self: Substituted, batch: Any) -> Any:
        dropping = next(float(p.detach()) for n, p in self.parameters.items() if n.startswith("dropping"))
        shares.append((torch.is_grad_enabled(), dropping))
        return call(self, batch)

    def seen(self: GenieM, batch: Any) -> Any:
        found = mix(self, batch)
        for n in self.substituted.inputs:
            if f"float: {n}" in batch and not torch.equal(batch[n], batch[f"float: {n}"]):
                other = batch[n] != batch[f"float: {n}"]
                mixed.append(float((found[n] == batch[f"float: {n}"])[other].float().mean()))
        return found

    monkeypatch.setattr(Substituted, "__call__", watched)
    monkeypatch.setattr(GenieM, "_mixed", seen)
    teacher = chain()
    recover(w4a4(teacher), replace(SHORT, method={"genie_m": {"drop": 0.25}}), context(teacher))
    assert {share for training, share in shares if training} == {0.25}
    assert {share for training, share in shares if not training} == {0.0}
    assert np.mean(mixed) == pytest.approx(0.25, abs=0.03)


def test_one_way_back_gives_genie_m_the_gradients_of_losses_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What draws weights to their neighbours must not reach scales and steps, whose loss is the distance alone."""
    from graphpress.passes.recover.methods.genie_m import GenieM

    def apart(self: GenieM, batch: Any, update: Any) -> Any:
        self.chance(self.drop)
        total = self.apart(self.see(self._mixed(batch), update), lambda seen: self.total(seen, update))
        return dict.fromkeys(update.roles, total) | {"student": total + self.drawn(self.found, update.done)}

    counted: list[int] = []
    back = torch.autograd.backward

    def counting(*args: Any, **kwargs: Any) -> None:
        counted[-1] += 1
        back(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", counting)
    teacher, found = chain(), []
    for losses in (GenieM.losses, apart):
        monkeypatch.setattr(GenieM, "losses", losses)
        counted.append(0)
        options = replace(SHORT, method="genie_m", train="all", select="last", steps=8)
        found.append(arrays(recover(w4a4(teacher), options, context(teacher))[0]))
    assert all(found[0][n].tobytes() == found[1][n].tobytes() for n in found[0]) and found[0].keys() == found[1].keys()
    assert counted[0] * 2 == counted[1] > 0


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adaround"}, "block by block"),
        ({"method": "brecq"}, "block by block"),
        ({"method": "adaround", "mode": "blocks", "steps": None, "seconds": 1.0}, "by steps"),
        ({"method": {"autoround": {"least": 0.0}}}, "least"),
        ({"method": {"autoround": {"reach_lr": -1.0}}}, "reach_lr"),
        ({"method": {"genie_m": {"drop": 1.0}}}, "drop"),
        ({"method": {"genie_m": {"penalty": 0.0}}}, "penalty"),
        ({"method": {"autoround": {"observer": "median"}}}, "observer"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Recover(**options)


def test_a_model_without_quantized_weights_is_refused() -> None:
    teacher = chain()
    student = teacher.clone()
    student.graph.initializers["w1"].const_value = ir.tensor(normal(8, 16, seed=8), name="w1")
    with pytest.raises(BadRequest, match="nothing to train"):
        recover(student, replace(SHORT, method="autoround"), context(teacher))


@pytest.mark.parametrize("method", ["adaround", "brecq", "genie_m"])
def test_few_steps_are_as_long_as_it_takes_to_cross(method: str) -> None:
    rate = catalog.methods()[method]().usual_rate
    assert [rate(steps) for steps in (None, 20_000, 960)] == [0.01] * 3
    assert abs(rate(140) * 70 - 2 * math.log(11)) < 1e-12  # the logits of h = 0 and of h = 1 are -log 11 and log 11
    assert rate(5) == 0.1
