"""One role's updates: its optimizer, the clipping of its gradients, and what holds for its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from graphpress.passes.recover.engine.ranks import Ranks
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.schedule import Settings, optimizer, set_rate

if TYPE_CHECKING:
    import torch


class Updater:
    """Of one role.

    Args:
        role: What is updated.
        settings: Of the training, where the role has none of its own.
    """

    def __init__(self, role: TrainedRole, settings: Settings) -> None:
        self.role, self.settings = role, role.settings or settings
        self.optimizer = optimizer(role.parameters.items(), role.rates, self.settings)

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.role.parameters

    def gather(self, ranks: Ranks) -> None:
        """Add the gradients up over all processes."""
        import torch

        if ranks.count > 1:
            for parameter in self.parameters.values():
                if parameter.grad is None:  # others may have one
                    parameter.grad = torch.zeros_like(parameter)
            ranks.add(p.grad for p in self.parameters.values() if p.grad is not None)

    def prepare(self) -> str | None:
        """What happens to gradients before the update: constraints, clipping. What is wrong with them, if anything."""
        import torch

        for constraint in self.role.constraints:
            constraint.before()
        parameters = list(self.parameters.values())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf, foreach=False))
        if math.isfinite(norm):
            return None
        broken = [n for n, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
        return f"the gradient of {broken[0]!r} is {norm}" if broken else f"the norm of the gradient is {norm}"

    def step(self, done: float) -> None:
        """The update, at the rate of this share of the training."""
        set_rate(self.optimizer, self.settings.lr * self.settings.factor(done))
        self.optimizer.step()
        for constraint in self.role.constraints:
            constraint.after()

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def forget(self) -> None:
        """Start anew with the parameters that the method says it has replaced."""
        for name in self.role.forget:
            self.optimizer.state.pop(self.parameters[name], None)
        self.role.forget.clear()

    def copy(self) -> dict[str, torch.Tensor]:
        """The parameters as they are."""
        return {n: p.detach().clone() for n, p in self.parameters.items()}

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Let the parameters be these."""
        import torch

        with torch.no_grad():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What the optimizer remembers, as (``what:parameter``, tensor)."""
        for name, parameter in self.parameters.items():
            for key, tensor in self.optimizer.state.get(parameter, {}).items():
                if tensor is not None:
                    yield f"{key}:{name}", tensor

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Let the optimizer remember what ``state`` gave."""
        self.optimizer.state.clear()
        for key, tensor in tensors.items():
            part, _, name = key.partition(":")
            parameter = self.parameters[name]
            kept = tensor.clone() if part == "step" else tensor.to(parameter.device, copy=True)
            self.optimizer.state[parameter][part] = kept
