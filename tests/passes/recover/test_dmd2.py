"""A generator, a critic, two time scales and an average as a method: DMD2 (arXiv:2405.14867) on a ring of 8 modes.

The teacher is the exact velocity of the mixture on the clock x_t = (1 - t) x_0 + t eps; one step from noise is judged
by the sliced Wasserstein distance to the data. Euler's one step of the teacher has 1.28 there, its two steps 0.42.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.selection import Selection
from graphpress.passes.recover.engine.state import Saved, TrainingState
from graphpress.passes.recover.engine.trainer import Trainer
from graphpress.passes.recover.methods.base import Method, Update

torch = pytest.importorskip("torch")
MODES, RADIUS, STD = 8, 2.0, 0.15
ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTERS = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], -1)


def clean(x: Any, t: Any) -> Any:
    """E[x_0 | x_t] of the mixture, for x [N, 2] and t [N, 1]."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    away = x[:, None] - (1 - t)[:, None] * CENTERS
    r = (-away.square().sum(-1) / (2 * variance)).softmax(-1)
    means = CENTERS + ((1 - t) * STD**2 / variance)[:, None] * away
    return (r[..., None] * means).sum(1)


def data(n: int, generator: Any = None) -> Any:
    modes = torch.randint(MODES, (n,), generator=generator)
    return CENTERS[modes] + STD * torch.randn(n, 2, generator=generator)


def distance(a: Any, b: Any) -> float:
    """Sliced Wasserstein over 128 fixed directions, mean absolute difference of sorted projections."""
    angles = torch.arange(128) * (math.pi / 128)
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


class Net(torch.nn.Module):
    """v(x, t): 2 + 9 features of the time, three layers of 128."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [11, 128, 128, 128]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.SiLU())]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(128, 2))

    def forward(self, x: Any, t: Any) -> Any:
        waves = t * torch.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return self.layers(torch.cat([x, t, waves.sin(), waves.cos()], -1))


@dataclass
class Dmd2(Method):
    """One step from noise: the student against a critic of its samples, which learns at every step.

    ``every`` is the ratio of the time scales; the average of the student is what comes out.
    """

    start: dict[str, Any]
    every: int = 4
    decay: float = 0.99
    size: int = 256
    count: int = field(default=0, init=False)

    def setup(self, scope: Any) -> dict[str, TrainedRole]:
        self.student, self.critic, self.mean = Net(), Net(), Net()
        for net in (self.student, self.critic, self.mean):
            net.load_state_dict(self.start)
        fast = Settings(lr=1e-3, optimizer="adam", betas=(0.0, 0.999), schedule="constant", warmup=0.0, clip=10.0)
        slow = Settings(lr=5e-4, optimizer="adam", betas=(0.0, 0.999), schedule="cosine", warmup=0.0, clip=10.0)
        return {
            "student": TrainedRole(dict(self.student.named_parameters()), slow),
            "critic": TrainedRole(dict(self.critic.named_parameters()), fast, export=False),
        }

    def cadence(self, number: int) -> tuple[str, ...]:
        return ("student",) if number % (self.every + 1) == self.every else ("critic",)

    def sample(self, net: Any, noise: Any) -> Any:
        return noise - net(noise, torch.ones(len(noise), 1))

    def losses(self, batch: Any, update: Update) -> Any:
        with torch.set_grad_enabled("student" in update.roles):
            x = self.sample(self.student, torch.randn(self.size, 2))
        if "critic" in update.roles:  # a velocity of its own samples, over the whole clock
            t, eps = torch.rand(self.size, 1), torch.randn(self.size, 2)
            return {"critic": (self.critic((1 - t) * x + t * eps, t) - (eps - x)).square().mean()}
        t, eps = 0.02 + 0.96 * torch.rand(self.size, 1), torch.randn(self.size, 2)
        with torch.no_grad():
            noised = (1 - t) * x + t * eps
            fake, real = noised - t * self.critic(noised, t), clean(noised, t)
            pull = (fake - real) / (x - real).abs().mean(-1, keepdim=True)
        return {"student": 0.5 * (x - (x - pull).detach()).square().mean()}

    def after_step(self, update: Update) -> None:
        if "student" in update.roles:
            self.count += 1
            for mean, now in zip(self.mean.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(now, 1 - min(self.decay, self.count / (self.count + 9)))

    def state(self) -> Saved:
        return Saved({n: p.detach().clone() for n, p in self.mean.named_parameters()}, {"count": self.count})

    def load(self, saved: Saved) -> None:
        with torch.no_grad():
            for name, parameter in self.mean.named_parameters():
                parameter.copy_(saved.tensors[name])
        self.count = int(saved.facts["count"])


def warm(steps: int) -> dict[str, Any]:
    """A net that knows the teacher's velocity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(steps):
            t = torch.rand(256, 1).clamp_min(0.01)
            x = (1 - t) * data(256) + t * torch.randn(256, 2)
            loss = (net(x, t) - (x - clean(x, t)) / t).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.state_dict()


def training(start: dict[str, Any], steps: int, **more: Any) -> tuple[Dmd2, Trainer]:
    method = Dmd2(start)
    roles = method.setup(None)
    settings = Settings(steps=steps, seed=1)
    return method, Trainer(method, roles, lambda n: [{"none": torch.zeros(1)}], settings, **more)


def test_the_teacher_is_exact() -> None:
    """Its error is orthogonal to functions of x_t, and no other guess of the clean sample is nearer."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = data(200_000, generator), torch.randn(200_000, 2, generator=generator)
    for t in (0.1, 0.5, 0.9):
        at = torch.full((len(x0), 1), t)
        noised = (1 - at) * x0 + at * eps
        error = x0 - clean(noised, at)
        for probe in (torch.ones_like(noised), noised, noised.sin()):
            assert float((error * probe).mean(0).abs().max()) < 0.01


def test_a_critic_like_the_teacher_leaves_the_student_alone() -> None:
    method, _ = training(warm(1), 12)
    method.critic = lambda x, t: (x - clean(x, t)) / t  # type: ignore[assignment]
    loss = method.losses({}, Update(4, roles=("student",)))["student"]
    found = torch.autograd.grad(loss, list(method.student.parameters()))
    assert max(float(g.abs().max()) for g in found) < 1e-5


def test_it_goes_on_to_the_same_bits_in_the_middle(tmp_path: Path) -> None:
    start = warm(20)
    selection = Selection("last")
    whole, made = training(start, 40, selection=selection)
    made.run()

    def stop(items: Any, label: str, total: int | None = None) -> Any:
        for i, item in enumerate(items, 1):
            if i == 17:
                raise KeyboardInterrupt
            yield item

    store = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        training(start, 40, selection=selection, store=TrainingState(store, "k"))[1].run(stop)
    again, made = training(start, 40, selection=selection, store=TrainingState(store, "k"))
    assert made.number == 17
    made.run()
    for name in ("student", "critic", "mean"):
        pairs = zip(getattr(whole, name).parameters(), getattr(again, name).parameters(), strict=True)
        assert all(a.detach().numpy().tobytes() == b.detach().numpy().tobytes() for a, b in pairs)


@pytest.mark.slow
def test_one_step_from_noise_comes_near_to_the_ring() -> None:
    start_time = time.process_time()
    method, made = training(warm(800), 5 * 400, selection=Selection("last"))
    made.run()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        x = method.sample(method.mean, torch.randn(4096, 2, generator=generator))
    truth = data(4096, generator)
    found = distance(x, truth)
    nearest = (x[:, None] - CENTERS).norm(dim=-1)
    near = nearest.min(-1).values < 3 * STD
    taken = nearest.argmin(-1)[near].bincount(minlength=MODES)
    seconds = time.process_time() - start_time
    inside, modes = float(near.double().mean()), int((taken > 100).sum())
    assert distance(data(4096, generator), truth) < 0.1  # what chance alone makes
    assert found <= 0.15
    assert modes == MODES
    assert inside > 0.5
    assert seconds < 90, f"distance {found:.3f}, {modes} modes, {inside:.2f} within"
