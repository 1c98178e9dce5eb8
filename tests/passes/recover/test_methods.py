"""What a training method may count on: roles, state, selection apart from the loss, arrays beside the inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphpress import catalog
from graphpress.errors import BadRequest, CalibrationError, GraphpressError
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import Saved, TrainingState
from graphpress.passes.recover.engine.trainer import Trainer
from graphpress.passes.recover.losses.base import Loss, Seen
from graphpress.passes.recover.losses.mse import Mse
from graphpress.passes.recover.methods.base import Method, Update
from graphpress.passes.recover.recover import Recover
from tests import kit
from tests.passes.recovering import X, arrays, chain, context, error, int4, recover

torch = pytest.importorskip("torch")
SHORT = Recover(steps=40, lr=5e-3, batch_size=16)


class Stop:
    """Ctrl-C at some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        for i, item in enumerate(items, 1):
            if "recover" in label and i == self.after:
                raise KeyboardInterrupt
            yield item


# -- a loss whose target moves ---------------------------------------------------------------------------------------


@dataclass
class Moving(Loss):
    """(1 + 20 t) |s - ((1 - t) s0 + t T)|^2, t from 0 to 1 by what it is told: 0 at first, and growing for a while."""

    start: float = 0.0

    def __post_init__(self) -> None:
        self.t, self.values = self.start, list[float]()

    def __call__(self, seen: Seen) -> Any:
        s, wanted = seen.pairs()[0]
        return (1 + 20 * self.t) * (s - ((1 - self.t) * s.detach() + self.t * wanted)).square().mean()

    def fixed(self) -> Loss:
        return Mse()

    def after_step(self, value: float, step: int, total: int | None) -> None:
        assert total is not None
        self.values.append(value)
        self.t = self.start + (1 - self.start) * (step + 1) / total

    def state(self) -> dict[str, Any]:
        return {"t": self.t, "values": list(self.values)}

    def load(self, state: Any) -> None:
        self.t, self.values = state["t"], list(state["values"])


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.losses(), "moving", Moving)


@pytest.mark.parametrize("start", [0.0, 0.05])
def test_a_loss_whose_target_moves_trains_and_does_not_choose(moving: None, start: float) -> None:
    """At t = 0 it is 0, so that nothing seems to be won; then it rises, so that every step seems worse."""
    teacher = chain()
    student = int4(teacher)
    after, report = recover(student, replace(SHORT, losses={"moving": {"start": start}}), context(teacher))
    assert report.metrics["steps"] == 40.0
    assert error(after, teacher, {"x": X}) < 0.6 * error(student, teacher, {"x": X})
    assert report.metrics["loss before"] == pytest.approx(error(student, teacher, {"x": X}), rel=0.5)  # the fixed one


def test_a_loss_with_state_goes_on_to_the_same_bytes(moving: None, tmp_path: Path) -> None:
    teacher = chain()
    options = replace(SHORT, losses={"moving": {}, "mse": {"weight": 0.1}}, accumulate=2, select="ema", ema=0.9)
    expected = arrays(recover(int4(teacher), options, context(teacher))[0])
    kept = replace(options, state=str(tmp_path / "state"))
    for after in (9, 17):
        with pytest.raises(KeyboardInterrupt):
            recover(int4(teacher), kept, context(teacher, progress=Stop(after)))
    found = arrays(recover(int4(teacher), kept, context(teacher))[0])
    assert all(expected[n].tobytes() == found[n].tobytes() for n in expected)


def test_a_loss_is_told_the_mean_of_a_step_over_its_pieces() -> None:
    told: list[tuple[float, int, int | None]] = []

    class Told(Moving):
        def after_step(self, value: float, step: int, total: int | None) -> None:
            told.append((value, step, total))

    values = []
    for size, accumulate in ((32, 1), (8, 4)):
        loss = Told(1.0)
        w = torch.nn.Parameter(torch.tensor(2.0))
        x = torch.arange(32.0)
        method = Fit(w, loss)
        batches = [{"x": x[i : i + size]} for i in range(0, 32, size)]
        settings = Settings(steps=3, lr=0.1, accumulate=accumulate)
        made = Trainer(method, method.setup(None), lambda n, b=batches: [b[n % len(b)]], settings)
        made.run()
        values.append([v for v, _, _ in told])
        assert [(n, total) for _, n, total in told] == [(0, 3), (1, 3), (2, 3)]
        told.clear()
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


# -- roles -----------------------------------------------------------------------------------------------------------


class Fit(Method):
    """y = w x towards y = 3 x, by a loss that has state."""

    def __init__(self, w: Any, loss: Loss) -> None:
        self.w, self.loss, self.value = w, loss, 0.0

    def setup(self, scope: Any) -> dict[str, TrainedRole]:
        return {"student": TrainedRole({"w": self.w})}

    def losses(self, batch: Any, update: Update) -> Any:
        found = self.loss(Seen(batch, {"y": self.w * batch["x"]}, {"y": 3 * batch["x"]}, ("y",)))
        self.value += update.share * float(found.detach())
        return {"student": found}

    def after_step(self, update: Update) -> None:
        self.loss.after_step(update.ranks.total({"": self.value})[""], update.number, update.total)
        self.value = 0.0


@dataclass
class Duel(Method):
    """A critic c follows a student s, and the student runs towards 2 c; nothing is detached. A mean of s beside it."""

    every: int = 3

    def setup(self, scope: Any) -> dict[str, TrainedRole]:
        self.s = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.c = torch.nn.Parameter(torch.tensor([0.5, 0.25]))
        self.mean = self.s.detach().clone()
        plain = Settings(optimizer="sgd", schedule="constant", warmup=0.0, clip=None, lr=0.1)
        adam = Settings(optimizer="adam", betas=(0.0, 0.99), lr=0.05)
        return {"student": TrainedRole({"s": self.s}, plain), "critic": TrainedRole({"c": self.c}, adam, export=False)}

    def cadence(self, number: int) -> tuple[str, ...]:
        return ("student", "critic") if number % self.every == 0 else ("critic",)

    def losses(self, batch: Any, update: Update) -> Any:
        noise = 0.1 * torch.randn(2)
        shared = (self.s * self.c).sum()
        return {
            "student": (self.s - 2 * self.c).square().sum() + shared,
            "critic": (self.c - self.s + noise).square().sum() + shared,
        }

    def after_step(self, update: Update) -> None:
        self.mean.lerp_(self.s.detach(), 0.5)

    def state(self) -> Saved:
        return Saved({"mean": self.mean.clone()}, {"said": "mean"})

    def load(self, saved: Saved) -> None:
        self.mean.copy_(saved.tensors["mean"])


def duel(steps: int = 12, **more: Any) -> tuple[Duel, Trainer]:
    method = Duel()
    roles = method.setup(None)
    return method, Trainer(method, roles, lambda n: [{"x": torch.zeros(1)}], Settings(steps=steps, seed=4), **more)


def test_a_loss_moves_its_own_role_alone_and_those_that_are_due() -> None:
    method, made = duel()
    velocity = torch.zeros(2)
    for number in range(6):
        s, c = method.s.detach().clone(), method.c.detach().clone()
        made.step()
        if number % 3 == 0:  # plain SGD with its own rate, by the closed form, momentum 0.9 from the second update on
            gradient = 2 * (s - 2 * c) + c
            velocity = 0.9 * velocity + gradient
            torch.testing.assert_close(method.s.detach(), s - 0.1 * velocity)
        else:
            assert torch.equal(method.s, s)
        assert not torch.equal(method.c, c)
    assert method.s.grad is None and method.c.grad is None
    assert made.updaters["critic"].optimizer.param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize("by", ["last", "ema"])
def test_several_roles_go_on_to_the_same_bits(tmp_path: Path, by: Any) -> None:
    selection = Selection(by, 0.9)
    whole, made = duel(selection=selection)
    made.run()
    for stops in ([5], [1, 4, 2]):
        file = tmp_path / f"{by}{len(stops)}"
        for after in stops:
            torch.manual_seed(after)
            _, made = duel(selection=selection, store=TrainingState(file, "k"))
            with pytest.raises(KeyboardInterrupt):
                made.run(Stop(after))
        method, made = duel(selection=selection, store=TrainingState(file, "k"))
        assert made.number > 0
        made.run()
        for name in ("s", "c", "mean"):
            assert getattr(method, name).detach().numpy().tobytes() == getattr(whole, name).detach().numpy().tobytes()
        again, made = duel(selection=selection, store=TrainingState(file, "k"))  # ended: what it came to
        made.run()
        assert torch.equal(again.s, whole.s) and torch.equal(again.mean, whole.mean)


def test_the_moving_average_is_kept_and_only_of_what_is_exported() -> None:
    method, made = duel(selection=Selection("ema", 0.5))
    mean = method.s.detach().clone()
    for number in range(1, 13):
        made.step()
        decay = min(0.5, (1 + number) / (10 + number))
        mean = decay * mean + (1 - decay) * method.s.detach()
    critic = method.c.detach().clone()
    made.run()
    torch.testing.assert_close(method.s.detach(), mean)
    assert torch.equal(method.c, critic)


def test_a_divergence_of_one_role_updates_none() -> None:
    method, made = duel()
    with torch.no_grad():
        method.c.fill_(float("inf"))
    s = method.s.detach().clone()
    with pytest.raises(GraphpressError, match="the loss of student is"):
        made.step()
    assert torch.equal(method.s, s)


# -- selection -------------------------------------------------------------------------------------------------------


def test_the_users_metric_may_choose() -> None:
    """It likes large weights of the first layer: the last of a growing training, by the graph that would come out."""
    teacher = chain()
    scores: list[float] = []

    def metric(runner: Any) -> float:
        y = runner({"x": X})["y"]
        scores.append(float(np.abs(y).mean()))
        return scores[-1]

    after, report = recover(int4(teacher), replace(SHORT, select="metric", lr=0.05), context(teacher, evaluate=metric))
    assert report.metrics["metric after"] == max(scores) >= report.metrics["metric before"] == scores[0]
    assert float(np.abs(kit.run(after, {"x": X})["y"]).mean()) == pytest.approx(max(scores), rel=1e-5)


def test_the_last_may_be_kept_though_it_is_worse() -> None:
    teacher = chain()
    wild = Recover(steps=5, lr=50.0, clip=None, warmup=0.0, schedule="constant", select="last")
    student = int4(teacher)
    after, report = recover(student, wild, context(teacher))
    assert report.metrics["loss after"] > report.metrics["loss before"]  # type: ignore[operator]
    assert error(after, teacher, {"x": X}) > error(student, teacher, {"x": X})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "destill"}, "Did you mean 'distill'"),
        ({"method": {"distill": {"rank": 3}}}, "no option 'rank'"),
        ({"method": {"distill": {}, "other": {}}}, "names 2 methods"),
        ({"mode": "blocks", "select": "metric"}, "of a whole model"),
        ({"ema": 1.0}, r"not in \[0, 1\)"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Recover(**options)


def test_a_metric_that_is_not_there_is_refused() -> None:
    teacher = chain()
    with pytest.raises(BadRequest, match="metric"):
        recover(int4(teacher), replace(SHORT, select="metric"), context(teacher))


# -- arrays beside the inputs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighed(Loss):
    """Each sample's squared error times its ``rho``."""

    by: dict[str, list[float]]  # any JSON

    @property
    def reads(self) -> tuple[str, ...]:
        return ("rho",)

    def __call__(self, seen: Seen) -> Any:
        s, wanted = seen.pairs()[0]
        return (seen.array("rho", "weighed") * (s - wanted).square().mean(-1)).mean() * self.by["factor"][0]


def test_a_loss_may_read_arrays_that_are_no_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    import graphpress as gp

    monkeypatch.setitem(catalog.losses(), "weighed", Weighed)
    rho = np.zeros(64, np.float32)
    rho[:32] = 1.0  # the rest does not count
    trained = {"steps": 20, "lr": 5e-3, "held_back": 0.2, "losses": {"weighed": {"by": {"factor": [2.0]}}}}
    recipe: dict[str, Any] = {
        "name": "r",
        "passes": [{"recipe": "clean"}, {"quantize": {"mode": "static", "weight": "int4"}}, {"recover": trained}],
    }
    made = []
    for factor in (1, 2):
        data = {"x": X, "rho": np.float32(factor) * rho}
        _, report = gp.compile(chain(), recipe, data, gate=False, prove=False)
        made.append(next(p for p in report.passes if p.name == "recover"))
    assert made[0].metrics["loss after"] < made[0].metrics["loss before"]  # type: ignore[operator]
    assert made[1].metrics["loss before"] == pytest.approx(2 * made[0].metrics["loss before"], rel=1e-5)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match="no such input"):
        gp.compile(chain(), "w8a8", {"x": X, "rho": rho}, gate=False, prove=False)
    with pytest.raises(BadRequest, match="the data has no rho"):
        recover(int4(chain()), Recover(**trained), context(chain()))


# -- precision and several processes -----------------------------------------------------------------------------------


def test_products_in_bfloat16_and_parameters_in_float32() -> None:
    teacher = chain()
    full = recover(int4(teacher), SHORT, context(teacher))[0]
    half = recover(int4(teacher), replace(SHORT, precision="bfloat16"), context(teacher))[0]
    assert all(a.dtype == b.dtype for a, b in zip(arrays(full).values(), arrays(half).values(), strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(arrays(full).values(), arrays(half).values(), strict=True))
    assert error(half, teacher, {"x": X}) < 0.6 * error(int4(teacher), teacher, {"x": X})


RANKED = """
import sys
import numpy as np
from dataclasses import replace
from tests.passes.recover.test_methods import Moving, SHORT
from tests.passes.recovering import arrays, chain, context, int4, recover
from graphpress import catalog
import os
catalog.losses()["moving"] = Moving
teacher = chain()
options = replace(SHORT, batch_size=8, accumulate=int(sys.argv[2]), losses={"mse": {}, "moving": {"start": 0.2}})
found = arrays(recover(int4(teacher), options, context(teacher))[0])
np.savez(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}", **{n: a for n, a in found.items() if a.dtype == np.float32})
"""


@pytest.mark.slow
def test_two_processes_train_as_one_that_takes_the_batches_of_both(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "ranked.py").write_text(RANKED)
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone = [sys.executable, str(tmp_path / "ranked.py"), str(tmp_path / "one"), "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = [*torchrun, str(tmp_path / "ranked.py"), str(tmp_path / "two"), "1"]
    for command in (alone, both):
        subprocess.run(command, env=env, check=True, timeout=300, cwd=checkout)
    one, first, second = (np.load(tmp_path / f"{name}.npz") for name in ("one.0", "two.0", "two.1"))
    start = arrays(int4(chain()))
    for name in one:
        assert first[name].tobytes() == second[name].tobytes()
        np.testing.assert_allclose(first[name], one[name], rtol=0, atol=1e-5, err_msg=name)
    assert any(not np.array_equal(one[name], start[name]) for name in one)
