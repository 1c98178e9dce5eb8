"""``bdkd``: student and teacher learn together, with forward and reverse divergence balanced for every sample.

(BD-KD, arXiv:2212.12965: both are trained online, both divergences are weighted by sample. The weights, by the gap
between the two entropies, are a choice made here, not the paper's. Nor are its settings known: on digits, students were
no less calibrated than by mutual learning at temperature 4 and weights of 0.1, but not at the defaults.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from graphpress.errors import BadRequest
from graphpress.passes.recover.engine import parameters
from graphpress.passes.recover.engine.roles import TrainedRole
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.student import look
from graphpress.passes.recover.losses.base import Seen, Tensors
from graphpress.passes.recover.losses.labels import Labels
from graphpress.passes.recover.methods.base import Method, Update

if TYPE_CHECKING:
    import torch


def softened_divergence(p: torch.Tensor, q: torch.Tensor, tau: float) -> torch.Tensor:
    """KL(softmax(p / tau) || softmax(q / tau)) of logits [..., classes], in nats: [...]."""
    log_p, log_q = (p / tau).log_softmax(-1), (q / tau).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def weights(q: torch.Tensor, p: torch.Tensor, delta: float, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(u, r): what forward and reverse divergence weigh, [...], by the gap H(q) - H(p) of the softened entropies.

    A student q that is less sure than its teacher p is to seek the mode, r = delta; another one is to cover the mass,
    u = delta. The other of the two weighs 1.
    """
    import torch

    with torch.no_grad():
        entropies = [-(x.exp() * x).sum(-1) for x in ((logits / tau).log_softmax(-1) for logits in (q, p))]
        unsure = entropies[0] > entropies[1]
        one, more = torch.ones_like(entropies[0]), torch.full_like(entropies[0], delta)
        return torch.where(unsure, one, more), torch.where(unsure, more, one)


def balanced(q: torch.Tensor, p: torch.Tensor, delta: float, tau: float) -> torch.Tensor:
    """tau^2 mean_i (u_i KL(p_i || q_i) + r_i KL(q_i || p_i)); p has no gradient."""
    p = p.detach()
    u, r = weights(q, p, delta, tau)
    return tau**2 * (u * softened_divergence(p, q, tau) + r * softened_divergence(q, p, tau)).mean()


@dataclass
class Bdkd(Method):
    """Student: CE + student_weight balanced(q, sg(p)). Teacher: CE + teacher_weight tau^2 KL(sg(q) || p).

    The teacher that learns is a copy: its graph stays as it was. Needs labels. What is kept is judged by the student's
    cross-entropy.

    Attributes:
        delta: The weight of the divergence that a sample needs more; 1: both count alike for all samples.
        temperature: tau, of divergences and of the entropies that choose.
        student_weight: Of the student's divergences beside the labels.
        teacher_weight: Of the teacher's divergence beside the labels.
        teacher_lr: The teacher's learning rate; None: the student's.
        axis: The axis of the classes.
        on: Name of the output that holds logits; None: the first.
    """

    compares: ClassVar[bool] = False

    delta: float = 2.0
    temperature: float = 2.0
    student_weight: float = 1.0
    teacher_weight: float = 1.0
    teacher_lr: float | None = None
    axis: int = -1
    on: str | None = None

    def __post_init__(self) -> None:
        if not (self.delta > 0 and self.temperature > 0 and min(self.student_weight, self.teacher_weight) >= 0):
            raise BadRequest("delta and temperature are positive, weights are not negative", where="method 'bdkd'")

    @property
    def features(self) -> tuple[str, ...]:
        return () if self.on is None else (self.on,)

    def setup(self, scope: Scope) -> dict[str, TrainedRole]:
        assert scope.before is not None and scope.taught is not None
        self.student, self.taught, self.label = scope.student, scope.taught, Labels(self.axis, self.on)
        self.look = partial(look, scope.student, None, scope.outputs)
        own = [n for n in parameters.trainable_of(scope.before).weights if n in scope.taught.parameters]
        settings = replace(scope.settings, lr=self.teacher_lr or scope.settings.lr)
        return {
            "student": scope.role(scope.student),
            "teacher": TrainedRole(scope.taught.train(own), settings, export=False),
        }

    def losses(self, batch: Tensors, update: Update) -> Mapping[str, torch.Tensor]:
        student = self.look(batch)
        teacher = replace(student, student=self.taught(batch))
        q, p = self.logits(student), self.logits(teacher)
        back = self.temperature**2 * softened_divergence(q.detach(), p, self.temperature).mean()
        return {
            "student": self.label(student) + self.student_weight * balanced(q, p, self.delta, self.temperature),
            "teacher": self.label(teacher) + self.teacher_weight * back,
        }

    def logits(self, seen: Seen) -> torch.Tensor:
        """[..., classes]."""
        return seen.student[self.on or seen.outputs[0]].movedim(self.axis, -1)

    def measure(self, batch: Tensors, update: Update) -> torch.Tensor | None:
        return self.label(self.look(batch))

    def explain(self, batch: Tensors) -> str:
        return self.student.explain(batch)


METHOD = Bdkd
