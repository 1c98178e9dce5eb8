"""Routers that loop over the experts that were hit, or over something that must not be gone over whole."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import Unsupported
from graphpress.frontends import torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
Tensor, nonzero, iterate = torch.Tensor, torch.Tensor.nonzero, torch.Tensor.__iter__


class Experts(nn.ModuleDict):
    """Each token goes to one expert; those without a token are passed over."""

    def __init__(self, form: str) -> None:
        super().__init__({f"expert_{i}": nn.Linear(4, 4) for i in range(3)})
        self.router, self.form = nn.Linear(4, 3, bias=False), form
        self.router.weight.data = torch.arange(12.0).reshape(3, 4).sin()

    def forward(self, x: Tensor) -> Tensor:
        weight, which = self.router(x).softmax(-1).max(-1)
        mask = functional.one_hot(which, 3).T
        hit = mask.sum(-1).gt(0)
        found = {
            "method": hit.nonzero,
            "function": lambda: torch.nonzero(hit),
            "tuple": lambda: hit.nonzero(as_tuple=True)[0],
        }
        result = torch.zeros_like(x)
        for expert in found[self.form]():
            index = expert if self.form == "tuple" else expert[0]
            (rows,) = torch.where(mask[index])
            result.index_add_(0, rows, self[f"expert_{index}"](x[rows]) * weight[rows, None])
        return result


class Counted(nn.Module):
    """Each round adds one, so that going over all is something else."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for _ in (x > 0).nonzero():
            total = total + 1
        return x * total


@pytest.mark.parametrize("form", ["method", "function", "tuple"])
def test_experts_without_a_token_are_traced_and_add_nothing(form: str) -> None:
    torch.manual_seed(0)
    module = Experts(form).eval()
    model = torch_export.trace(module, (torch.randn(6, 4),), dynamic_shapes={"x": {0: torch.export.Dim("tokens")}})
    for x in (torch.randn(9, 4), torch.ones(2, 4), -torch.ones(5, 4)):  # all, and a single expert
        with torch.no_grad():
            np.testing.assert_allclose(kit.run(model, {"x": x.numpy()})["output"], module(x).numpy(), atol=1e-6)
    assert (Tensor.nonzero, Tensor.__iter__) == (nonzero, iterate)


def test_a_loop_that_counts_is_refused() -> None:
    with pytest.raises(Unsupported, match="depends on the values of a tensor"):
        torch_export.trace(Counted().eval(), (torch.tensor([1.0, -1.0, 2.0]),))
    assert (Tensor.nonzero, Tensor.__iter__) == (nonzero, iterate)
