"""The trainer by itself: closed forms, constraints, resumption to the bit, numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine.constraints import AtLeast, Masked
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.seeding import reproducible
from graphpress.passes.recover.engine.state import TrainingState
from graphpress.passes.recover.engine.trainer import Diverged, Trainer
from graphpress.passes.recover.losses.base import Loss, Seen
from graphpress.passes.recover.losses.mse import Mse
from graphpress.passes.recover.methods.base import Method

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
X, TRUE = RNG.normal(size=(64, 8)), RNG.normal(size=(8, 3))
Y = X @ TRUE + 0.1 * RNG.normal(size=(64, 3))


def see(w: Any) -> Any:
    def look(batch: Any) -> Seen:
        return Seen(batch, {"y": batch["x"] @ w}, {"y": batch["y"]}, ("y",))

    return look


def rows(indices: Sequence[int] | slice = slice(None)) -> dict[str, Any]:
    return {"x": torch.tensor(X[indices]), "y": torch.tensor(Y[indices])}


def eight_at_a_time(step: int) -> list[dict[str, Any]]:
    start = step % 8 * 8
    return [rows(slice(start, start + 8))]


def everything(step: int) -> list[dict[str, Any]]:
    return [rows()]


def weight(seed: int = 1) -> Any:
    return torch.nn.Parameter(torch.tensor(np.random.default_rng(seed).normal(size=(8, 3))))


class One(Method):
    """A student that is one tensor."""

    def __init__(self, look: Any, loss: Any, place: str = "") -> None:
        self.look, self.loss, self.place = look, loss, place

    def setup(self, scope: Any) -> dict[str, TrainedRole]:
        return {}

    def losses(self, batch: Any, update: Any) -> Any:
        return {"student": self.measure(batch, update)}

    def measure(self, batch: Any, update: Any) -> Any:
        return self.loss(replace(self.look(batch), seed=update.seed))

    def explain(self, batch: Any) -> str:
        return self.place


def trainer(w: Any, loss: Any = None, look: Any = None, constraints: Any = (), place: str = "", **more: Any) -> Trainer:
    method = One(look or see(w), loss or Mse(), place)
    roles = {"student": TrainedRole({"w": w}, constraints=constraints)}
    return Trainer(method, roles, **({"batches": eight_at_a_time, "held": [rows()]} | more))


def test_a_linear_student_converges_to_the_least_squares_solution() -> None:
    w = weight()
    settings = Settings(steps=600, lr=0.05, optimizer="adam", clip=None)
    outcome = trainer(w, batches=everything, settings=settings).run()
    expected = np.linalg.lstsq(X, Y, rcond=None)[0]
    np.testing.assert_allclose(w.detach().numpy(), expected, atol=1e-5)
    residual = np.mean((X @ expected - Y) ** 2) / np.mean(Y**2)
    assert outcome.after == pytest.approx(residual, rel=1e-6)
    assert outcome.before > 10 * outcome.after
    assert outcome.steps == 600


def test_a_masked_student_converges_to_the_least_squares_solution_on_its_support() -> None:
    free = np.zeros((8, 3), bool)
    for column in range(3):
        free[RNG.permutation(8)[:4], column] = True
    w = weight()
    with torch.no_grad():
        w[~torch.tensor(free)] = 0.0
    settings = Settings(steps=800, lr=0.05, optimizer="adam", clip=None)
    trainer(w, batches=everything, settings=settings, constraints=[Masked(w, torch.tensor(free))]).run()
    for column in range(3):
        support = free[:, column]
        expected = np.linalg.lstsq(X[:, support], Y[:, column], rcond=None)[0]
        found = w.detach().numpy()[:, column]
        np.testing.assert_allclose(found[support], expected, atol=1e-4)
        assert (found[~support] == 0).all()


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_masked_elements_stay_zero_over_50_steps_with_momentum_and_weight_decay(optimizer: Any) -> None:
    free = torch.tensor(RNG.random((8, 3)) < 0.5)
    w = weight()
    with torch.no_grad():
        w.masked_fill_(~free, 0.0)
    settings = Settings(steps=50, lr=0.1, optimizer=optimizer, weight_decay=0.1)
    made = trainer(w, settings=settings, constraints=[Masked(w, free)])
    before = w.detach().clone()
    for _ in range(50):
        made.step()
        assert (w.detach()[~free] == 0).all()
    momentum = [t for key, t in made.updaters["student"].optimizer.state[w].items() if key != "step"]
    assert momentum
    assert all((t[~free] == 0).all() for t in momentum)
    assert (w.detach()[free] != before[free]).all()


def test_scales_stay_positive() -> None:
    scale = torch.nn.Parameter(torch.tensor([0.1, 0.2]))
    least = scale.detach() * 1e-3
    made = trainer(
        scale, look=lambda batch: Seen(batch, {"y": scale}, {"y": -torch.ones(2)}, ("y",)), batches=everything, held=(),
        settings=Settings(steps=20, lr=1.0), constraints=[AtLeast(scale, least)],
    )  # fmt: skip
    made.run()
    torch.testing.assert_close(scale.detach(), least)


def test_pieces_of_a_batch_count_by_their_samples() -> None:
    gradients = []
    for batch in ([rows()], [rows(slice(5)), rows(slice(5, 64))]):
        w = weight()
        one = trainer(
            w, loss=_Plain(), batches=lambda _, b=batch: b, held=(),
            settings=Settings(steps=1, lr=0.5, optimizer="sgd", warmup=0.0, clip=None, schedule="constant"),
        )  # fmt: skip
        before = w.detach().clone()
        one.step()
        gradients.append((before - w.detach()) / 0.5)
    torch.testing.assert_close(gradients[0], gradients[1])
    expected = 2 * X.T @ (X @ before.numpy() - Y) / Y.size
    np.testing.assert_allclose(gradients[0].numpy(), expected, rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class _Plain(Loss):
    """Mean squared error; ``noise`` adds what torch draws, ``at`` makes it no number at that step."""

    noise: float = 0.0
    at: int = -1
    seed: int = 0

    def __call__(self, seen: Seen) -> Any:
        given = seen.student["y"] + self.noise * torch.randn(seen.student["y"].shape)
        loss = (given - seen.teacher["y"]).square().mean()
        return loss * float("nan") if seen.seed == self.at and loss.requires_grad else loss


class _Stop:
    """A progress bar at which somebody presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        for i, item in enumerate(items, 1):
            if i == self.after:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, optimizer: Any) -> None:
    settings = Settings(steps=30, lr=0.03, optimizer=optimizer, weight_decay=0.01, seed=3, every=4)
    arguments = {"settings": settings, "loss": _Plain(noise=0.5)}
    whole = weight()
    expected = trainer(whole, **arguments).run()
    for stops in ([7], [1, 9, 3]):
        file = tmp_path / f"{optimizer}{len(stops)}.state"
        for after in stops:
            w = weight()
            torch.manual_seed(after)  # whatever the process drew before
            with pytest.raises(KeyboardInterrupt):
                trainer(w, store=TrainingState(file, "k"), **arguments).run(_Stop(after))
        w = weight()
        last = trainer(w, store=TrainingState(file, "k"), **arguments)
        assert last.number > 0
        outcome = last.run()
        assert w.detach().numpy().tobytes() == whole.detach().numpy().tobytes()
        assert replace(outcome, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    settings = Settings(steps=5, lr=0.1)
    first, again = weight(), weight()
    expected = trainer(first, settings=settings, store=TrainingState(tmp_path / "s", "k")).run()
    made = trainer(again, settings=settings, store=TrainingState(tmp_path / "s", "k"))
    made.batches = lambda step: pytest.fail("no step is left")
    assert made.run() == expected
    assert torch.equal(first, again)


def test_another_job_starts_afresh_and_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    settings = Settings(steps=5, lr=0.1)
    trainer(weight(), settings=settings, store=TrainingState(tmp_path / "s", "k")).run()
    other = TrainingState(tmp_path / "s", "other")
    assert not other.finished and other.running is None
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"precious")
    with pytest.raises(BadRequest, match="no state of a recovery"):
        TrainingState(foreign, "k")
    assert foreign.read_bytes() == b"precious"
    with pytest.raises(BadRequest, match="folder"):
        TrainingState(tmp_path / "none" / "s", "k")


def test_a_failed_save_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrainingState(tmp_path / "s", "k", interval=0.0)
    made = trainer(weight(), settings=Settings(steps=5, lr=0.1), store=store)
    made.step()
    store.save("model", made.state())
    before = store.path.read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(BadRequest, match=r"cannot be written \(disk full\)"):
        store.save("model", made.state())
    assert store.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_loss_that_is_no_number_stops_and_keeps_the_best(tmp_path: Path) -> None:
    settings = Settings(steps=30, lr=0.05, every=5)
    reference = weight()
    good = trainer(reference, settings=settings, loss=_Plain())
    while good.number < 10:
        good.step()
    w, store = weight(), TrainingState(tmp_path / "s", "k")
    made = trainer(w, settings=settings, loss=_Plain(at=12), store=store, name="block 3", place="node 'n'")
    with pytest.raises(Diverged, match=r"block 3: the loss is nan in step 12; .* node 'n'") as caught:
        made.run()
    assert caught.value.step == 12
    assert torch.equal(w, reference)
    kept = TrainingState(tmp_path / "s", "k").under_way("block 3")
    assert kept is not None
    assert kept.facts["number"] == 12
    assert torch.equal(kept.tensors["p:student:w"], reference)
    assert all(t.isfinite().all() for t in kept.tensors.values())


def test_a_gradient_that_is_no_number_is_not_applied() -> None:
    w = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    made = trainer(
        w, look=lambda batch: Seen(batch, {"y": w.abs().sqrt()}, {"y": torch.ones(2)}, ("y",)), batches=everything,
        settings=Settings(steps=3),
    )  # fmt: skip
    with pytest.raises(Diverged, match="gradient of 'w' is nan in step 0"):
        made.step()
    torch.testing.assert_close(w.detach(), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("lr", [0.01, 1e6])
def test_it_never_ends_worse_than_it_began(lr: float) -> None:
    w = weight()
    with torch.no_grad():
        w.copy_(torch.tensor(np.linalg.lstsq(X, Y, rcond=None)[0]))
    before = w.detach().clone()
    outcome = trainer(w, settings=Settings(steps=20, lr=lr, clip=None)).run()
    assert outcome.after == outcome.before
    assert not outcome.improved
    assert torch.equal(w, before)


def test_without_held_back_samples_the_last_parameters_are_kept() -> None:
    w, again = weight(), weight()
    settings = Settings(steps=12, lr=0.1)
    outcome = trainer(w, settings=settings, held=()).run()
    assert math.isnan(outcome.before) and outcome.best_step == 12
    made = trainer(again, settings=settings, held=())
    for _ in range(12):
        made.step()
    assert torch.equal(w, again)


def test_a_time_limit_ends_it() -> None:
    w = weight()
    outcome = trainer(w, settings=Settings(steps=None, seconds=0.3, lr=0.01, every=10)).run()
    assert outcome.seconds < 1.0
    assert outcome.steps > 5
    assert outcome.after < outcome.before


def test_nothing_of_torch_is_different_afterwards() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    trainer(weight(), settings=Settings(steps=3), loss=_Plain(noise=1.0)).run()
    assert torch.equal(torch.randn(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(ZeroDivisionError), reproducible(1):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_learning_rate_follows_its_schedule() -> None:
    cosine = Settings(steps=100, warmup=0.0)
    assert [cosine.factor(d) for d in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    linear = Settings(steps=100, warmup=0.2, schedule="linear")
    assert [linear.factor(d) for d in (0.2, 0.6, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert 0 < linear.factor(0.0) < linear.factor(0.1) < linear.factor(0.19) < 1
    assert Settings(steps=100, schedule="constant").factor(0.9) == 1.0
    both = Settings(steps=100, seconds=10.0)
    assert (both.done(50, 1.0), both.done(10, 8.0), both.done(200, 0.0)) == (0.5, 0.8, 1.0)


@pytest.mark.parametrize(
    "options",
    [{"steps": None}, {"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"warmup": 1.0}, {"weight_decay": -1.0}],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="recover"):
        Settings(**options)
