"""Quantiles of a normal distribution."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.frontends import torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, Tensor = torch.nn, torch.Tensor


class Quantile(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rare = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(0.95))
        return torch.erfinv(x), x * rare


def test_as_in_torch_over_the_whole_range() -> None:
    near = 1 - 10.0 ** -torch.arange(1, 7.5, 0.5)
    x = torch.cat([torch.linspace(-1, 1, 201), near, -near, torch.tensor([1e-20, 0.0, 2.0])])
    model = torch_export.trace(Quantile().eval(), (x,))
    given, scaled = kit.run(model, {"x": x.numpy()}).values()
    wanted = torch.erfinv(x.double()).numpy()
    np.testing.assert_allclose(given, wanted, rtol=2e-6)
    np.testing.assert_allclose(scaled, x.numpy() * 1.6448536, rtol=1e-6)
