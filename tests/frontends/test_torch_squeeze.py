"""squeeze takes away what is 1 where the module is traced, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import graphpress as gp
from graphpress.graph import edit


class Squeezed(nn.Module):
    def forward(self, x: torch.Tensor, one: torch.Tensor) -> dict[str, torch.Tensor]:
        wide = x * 2
        return {
            "nothing": wide.squeeze(1) + 1, "varies": wide.squeeze(0) + 1, "from the end": wide.squeeze(-2) + 1,
            "one": wide[:, :, None].squeeze(2) + 1, "some": wide[:, None, :, None].squeeze((0, 1, 3, -1)) + 1,
            "all": wide[:, None].squeeze() + 1, "none": wide.squeeze((0, 1)) + 1, "scalar": one.squeeze(0) + 1,
        }  # fmt: skip


def test_only_what_is_one() -> None:
    """A batch that varies stays, also where it is 1."""
    x, one = torch.randn(3, 5, 4), torch.tensor(2.0)
    model = gp.trace(Squeezed(), (x, one), dynamic_shapes={"x": {0: torch.export.Dim("batch")}, "one": None})
    assert sum(node.op_type == "Squeeze" for node in edit.nodes(model)) <= 3
    for batch in (3, 2, 1):
        x = torch.randn(batch, 5, 4)
        want = Squeezed()(x, one)
        feeds = {"x": x.numpy(), "one": one.numpy()}
        for got in (gp.lower(model)(feeds).values(), gp.lower(model, "torch-cpu")(x, one).values()):
            for (name, y), found in zip(want.items(), got, strict=True):
                np.testing.assert_array_equal(np.asarray(found), y.reshape(found.shape), err_msg=name)
                assert name == "scalar" or found.shape == (batch, 5, 4)
