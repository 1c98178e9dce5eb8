"""What the phases of ``train-acm`` make small: functions of tensors, each with its formula.

(Adaptive Computation Modules, Wójcik et al., arXiv:2312.10193, sec. 3 and the released code; two traps of that code are
avoided: gates get the gradient of the task, and a token whose first learner is useless already is not sent to all.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphpress.ops import acm_torch
from graphpress.passes.acm.site import AcmSite
from graphpress.passes.recover.losses.base import Seen, Tensors

if TYPE_CHECKING:
    import torch

PRICE, BUDGET = "acm.price", "acm.budget"  # what a batch of the last phase holds beside the data's own inputs


@dataclass(frozen=True)
class Layer:
    """One ACM during training: its site, and the names of the values that the teacher has in its place.

    Attributes:
        site: Sizes and attributes.
        parameters: gate, gate_bias, w1, b1, w2, b2, by these names.
        reads: The teacher's value before the layer.
        gives: The teacher's value behind it.
    """

    site: AcmSite
    parameters: Mapping[str, torch.nn.Parameter]
    reads: str
    gives: str

    def prefixes(self, x: torch.Tensor) -> list[torch.Tensor]:
        """h_0 .. h_N, each [..., out]."""
        p = self.parameters
        return acm_torch.prefixes(x, p["w1"], p["b1"], p["w2"], p["b2"], self.site.form)

    def scores(self, x: torch.Tensor, price: torch.Tensor | float) -> torch.Tensor:
        """[..., choices]."""
        return acm_torch.scores(x, self.parameters["gate"], self.parameters["gate_bias"], price)


def prefix_error(prefixes: Sequence[torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """Mean over prefixes of |h_k - y|^2 / |y|^2: layers of any scale count alike."""
    power = wanted.square().mean().clamp_min(1e-12)
    errors = [(h - wanted).square().mean() for h in prefixes]
    return sum(errors[1:], start=errors[0]) / len(errors) / power


def labels(errors: torch.Tensor, ratio: float, least: int = 0) -> torch.Tensor:
    """How many learners a token needs: it stops before the first that is no use to it.

    Learner k is of no use where e_{k-1} / e_k < ratio. The released code counts that learner in, and sends tokens whose
    first learner is of no use to all N; here such a token takes ``least``.

    Args:
        errors: [..., N + 1], e_k = |h_k - y| for k = 0..N.
        ratio: The improvement that pays, 1.2 in the paper's runs.
        least: The fewest learners allowed.

    Returns:
        [...], int64.
    """
    import torch

    useless = errors[..., :-1] < ratio * errors[..., 1:]  # no division: an error may be 0
    none = torch.ones_like(useless[..., :1])
    first = torch.cat([useless, none], -1).to(torch.int8).argmax(-1)  # the last column stands for "none is useless"
    return first.clamp_min(least)


def errors(layer: Layer, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[..., N + 1]: e_k = |h_k - y| of each token, over the root of the mean of |y|^2."""
    import torch

    with torch.no_grad():
        found = torch.stack([(h - wanted).norm(dim=-1) for h in layer.prefixes(x)], -1)
        return found / wanted.square().sum(-1).mean().sqrt().clamp_min(1e-12)


def worth(found: torch.Tensor, price: torch.Tensor | float, least: int = 0) -> torch.Tensor:
    """argmin_k e_k^2 + price k over k = least..N, [...]: what a token should take where a learner costs that much."""
    import torch

    choices = torch.arange(found.shape[-1], dtype=found.dtype)
    return (found.square() + price * choices)[..., least:].argmin(-1) + least


def price_of(share: float, found: Sequence[torch.Tensor], layers: Sequence[Layer], halvings: int = 16) -> float:
    """The price at which ``worth`` takes this share of all learners, each counted with its work."""
    low, high = 0.0, max(float(e.max()) for e in found) ** 2 + 1.0
    work = [y.site.learner_macs for y in layers]
    total = sum(w * y.site.learners for w, y in zip(work, layers, strict=True))
    for _ in range(halvings):
        middle = (low + high) / 2 if low else high / 2**4  # most prices of interest are small
        means = [float(worth(e, middle, y.site.least).double().mean()) for e, y in zip(found, layers, strict=True)]
        taken = sum(w * m for w, m in zip(work, means, strict=True)) / total
        low, high = (middle, high) if taken > share else (low, middle)
    return high


def negative_likelihood(layer: Layer, x: torch.Tensor, price: float, target: torch.Tensor) -> torch.Tensor:
    """Of the gate's choosing ``target`` [...] learners at this price, mean over tokens."""
    log = layer.scores(x, price).log_softmax(-1)
    return -log.gather(-1, (target - layer.site.least)[..., None]).mean()


@dataclass(frozen=True)
class GateChoice:
    """What the gates of all layers make of a batch.

    Attributes:
        share: Learners taken over all there are, each with its work: forward the real ones, backward the softmax's.
        by_sample: The same for each sample, [samples]: parts of the leading axis that all layers have in common, for
            some hold windows or frames of a sample there.
        mixture: For each layer the distribution of choices over the batch, [choices].
    """

    share: torch.Tensor
    by_sample: torch.Tensor
    mixture: list[torch.Tensor]


def choice(layers: Sequence[Layer], values: Tensors, price: torch.Tensor) -> GateChoice:
    """From what the layers read in this batch."""
    import torch

    total = sum(layer.site.learner_macs * layer.site.learners for layer in layers)
    samples = math.gcd(*(len(values[layer.site.input.name or ""]) for layer in layers))
    cost, mixture = [], []
    for layer in layers:
        scores = layer.scores(values[layer.site.input.name or ""], price)
        hard = acm_torch.straight_through(scores)
        counts = torch.arange(layer.site.least, layer.site.learners + 1, dtype=hard.dtype, device=hard.device)
        taken = (hard * counts).sum(-1)
        cost.append(taken.reshape(samples, -1).mean(-1) * (layer.site.learner_macs / total))
        mixture.append(hard.reshape(-1, hard.shape[-1]).mean(0))
    by_sample = torch.stack(cost).sum(0)
    return GateChoice(by_sample.mean(), by_sample, mixture)


def entropy_loss(mixture: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_e: minus the entropy of the batch's mean choice, as a share of the largest, mean over layers: no collapse."""
    terms = [(p * p.clamp_min(1e-9).log()).sum() / math.log(max(len(p), 2)) for p in mixture]
    return sum(terms[1:], start=terms[0]) / len(terms)


def diversity_loss(by_sample: torch.Tensor) -> torch.Tensor:
    """L_d: minus twice the mean difference of cost between two samples, so that the work depends on the input."""
    if len(by_sample) < 2:
        return by_sample.sum() * 0.0
    differences = (by_sample[:, None] - by_sample[None]).abs().sum()
    return -2.0 * differences / (len(by_sample) * (len(by_sample) - 1))


@dataclass(frozen=True)
class GateTerms:
    """budget |C / C_max - b| + entropy L_e + diversity L_d, beside what the outputs are compared by.

    Attributes:
        layers: All ACMs.
        budget: Weight of the distance from the budget.
        entropy: Weight of L_e.
        diversity: Weight of L_d.
    """

    layers: tuple[Layer, ...]
    budget: float
    entropy: float
    diversity: float

    def add(self, total: torch.Tensor, seen: Seen) -> torch.Tensor:
        """``total`` with them."""
        wanted = float(seen.batch[BUDGET])
        if wanted >= 1:
            return total  # every token takes every learner: the gates have nothing to say
        made = choice(self.layers, {**seen.batch, **seen.student}, seen.batch[PRICE])
        total = total + self.budget * (made.share - wanted).abs()
        return total + self.entropy * entropy_loss(made.mixture) + self.diversity * diversity_loss(made.by_sample)
