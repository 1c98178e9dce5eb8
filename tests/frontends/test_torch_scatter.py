"""What is scattered to one place and reduced, as in torch."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.frontends import torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, Tensor = torch.nn, torch.Tensor
REDUCED = ("sum", "prod", "mean", "amax", "amin")


class Scattered(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        own = torch.arange(6.0).reshape(2, 3) - 2
        return {f"{r}{i}": own.scatter_reduce(1, index, x, r, include_self=bool(i)) for r in REDUCED for i in (0, 1)}


def test_every_reduction_is_torchs() -> None:
    generator, module = torch.Generator().manual_seed(0), Scattered().eval()
    x, index = torch.randn(2, 5, generator=generator), torch.tensor([[0, 2, 0, 0, 2], [1, 1, 0, 1, 1]])
    given = kit.run(torch_export.trace(module, (x, index)), {"x": x.numpy(), "index": index.numpy()})
    for name, wanted in module(x, index).items():
        np.testing.assert_allclose(given[name], wanted.numpy(), rtol=1e-6, err_msg=name)
