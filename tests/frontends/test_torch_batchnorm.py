"""A norm that tracing folds into the layer before it leaves its statistics there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphpress as gp
from graphpress.graph import edit
from graphpress.graph.statistics import read_statistics
from graphpress.passes.clean.fold_batchnorm import FoldBatchnorm
from tests import kit


class Net(nn.Module):
    """A layer without norm, then each kind of layer that a norm is folded into."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 3, 1)
        self.conv, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.bn2 = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, eps=1e-2)
        self.fc, self.bn3 = nn.Linear(6, 5), nn.BatchNorm1d(5)
        generator = torch.Generator().manual_seed(0)
        for norm in (self.bn1, self.bn2, self.bn3):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                assert tensor is not None
                tensor.normal_(generator=generator)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.01, 2, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv(self.plain(x))))
        x = self.bn2(self.up(x)).mean((2, 3))
        return self.bn3(self.fc(x))


@pytest.mark.parametrize("by_pass", [False, True])
def test_statistics_stay_with_the_layer(by_pass: bool) -> None:
    net = Net().eval()
    model = gp.trace(net, (torch.randn(2, 3, 8, 8),), fold_batchnorm=not by_pass)
    if by_pass:
        assert kit.ops(model).count("BatchNormalization") == 3
        model, _ = kit.apply(model, FoldBatchnorm())
    found = {n.op_type: k for n in edit.nodes(model) if (k := read_statistics(n)) is not None}
    norms = {"Conv": net.bn1, "ConvTranspose": net.bn2, "Gemm": net.bn3}
    assert found.keys() == norms.keys()
    for op, norm in norms.items():
        var = norm.running_var.numpy().astype(np.float64)
        std = abs(norm.weight.detach().numpy()) * np.sqrt(var / (var + norm.eps))
        np.testing.assert_allclose(found[op][0], norm.bias.detach().numpy(), rtol=1e-6)
        np.testing.assert_allclose(found[op][1], std, rtol=1e-5)
