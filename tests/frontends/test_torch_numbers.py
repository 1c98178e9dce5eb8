"""Numbers less integers and truth values, which torch makes floats where the number is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import graphpress as gp


class Masks(nn.Module):
    """How masks of integers become what is added to scores."""

    def forward(self, mask: Tensor) -> tuple[Tensor, ...]:
        short = mask.to(torch.int8)
        return (1.0 - mask) * -3.0, torch.rsub(mask, 1.5, alpha=2), 1 - mask, 0.5 - short, 2.0 - (mask - 0.5)


def test_a_number_less_integers() -> None:
    mask, module = torch.tensor([[0, 1, 2], [5, -1, 1]]), Masks()
    model = gp.trace(module, (mask,))
    for given in (gp.lower(model, "torch-cpu")(mask), gp.to_torch(model)(mask)):
        for a, b in zip(given, module(mask), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
