"""``module.train()`` reaches BatchNormalization and Dropout, as in the module that was traced."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

import graphpress as gp
from tests import kit


def test_batch_normalization_trains_as_in_torch_and_leaves_the_graph_alone() -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    model = gp.trace(source, (torch.randn(2, 3, 6, 6),), fold_batchnorm=False)
    stored = model.graph.initializers["1.running_mean"].const_value.numpy().copy()  # type: ignore[union-attr]
    student, x = gp.to_torch(model), torch.randn(2, 3, 6, 6)
    source = copy.deepcopy(source)
    for mode in (False, True, True, False):
        student.train(mode)
        source.train(mode)
        torch.testing.assert_close(student(x), source(x), rtol=1e-5, atol=1e-6)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(
            student.get_buffer(f"1.{name}"), source.get_buffer(f"1.{name}"), rtol=1e-6, atol=1e-7
        )
    assert not np.array_equal(student.get_buffer("1.running_mean").numpy(), stored)
    value = model.graph.initializers["1.running_mean"].const_value
    np.testing.assert_array_equal(value.numpy(), stored)  # type: ignore[union-attr]


def test_dropout_drops_in_training_only_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    module = gp.to_torch(
        kit.parse("g (float[N] x) => (float[N] y) <float ratio = {0.25}> { [drop] y = Dropout(x, ratio) }")
    )
    x = torch.ones(10_000)
    assert torch.equal(module(x), x)
    y = module.train()(x)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float(y.mean()) - 1) < 0.03  # four standard deviations of the mean are 0.023
    assert torch.equal(module.eval()(x), x)
    assert not module.state_dict().keys() - {"ratio"}
