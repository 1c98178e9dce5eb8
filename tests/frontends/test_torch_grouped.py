"""Grouped products: rows in the order of their experts, each by its expert's matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import graphpress as gp
from graphpress.frontends import torch_export
from tests import kit

if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # transformers 5 declares it where it is installed

    @torch.library.custom_op("transformers::grouped_mm_fallback", mutates_args=())
    def _fallback(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        starts = [0, *offs.tolist()]
        return torch.cat([input[a:b] @ w for a, b, w in zip(starts, starts[1:], weight, strict=False)])

    _fallback.register_fake(lambda input, weight, offs: input.new_empty(input.shape[0], weight.shape[2]))


def product(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return torch.ops.transformers.grouped_mm_fallback(x, weight, offs)


def of_torch(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return nn.functional.grouped_mm(x.bfloat16(), weight.bfloat16(), offs=offs).float()


class Experts(nn.Module):
    """Each token goes through the expert that its first feature names."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor] = product, experts: int = 3) -> None:
        super().__init__()
        self.product, self.experts, self.weight = product, experts, nn.Parameter(torch.randn(experts, 8, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        expert, order = torch.sort(x[:, 0].to(torch.int64).clamp(0, self.experts - 1))
        ends = torch.cumsum((expert.unsqueeze(1) == torch.arange(self.experts)).sum(0), 0).to(torch.int32)
        made = self.product(x[order], self.weight.transpose(1, 2), ends)
        return made[torch.argsort(order)]


def tokens(seed: int, used: int = 3) -> Tensor:
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = torch.arange(12) % used
    return x


def by_hand(module: Experts, x: Tensor) -> np.ndarray:
    weight = module.weight.detach().double().numpy()
    return np.stack([weight[int(row[0])] @ row for row in x.double().numpy()])


@pytest.mark.parametrize("used", [3, 1])  # with one, the others get no rows
def test_each_row_meets_the_matrix_of_its_group(used: int) -> None:
    module = Experts().eval()
    model = torch_export.trace(module, (tokens(0),))
    x = tokens(1, used)
    (given,) = kit.run(model, {"x": x.numpy()}).values()
    np.testing.assert_allclose(given, by_hand(module, x), rtol=0, atol=1e-5)
    torch.testing.assert_close(gp.lower(model, "torch-cpu")(x), torch.from_numpy(given), rtol=0, atol=1e-5)


@pytest.mark.skipif(not hasattr(nn.functional, "grouped_mm"), reason="this torch has none")
def test_the_operator_of_torch() -> None:
    module, x = Experts(of_torch).eval(), tokens(1)
    made = gp.lower(torch_export.trace(module, (tokens(0),)), "torch-cpu")
    np.testing.assert_allclose(made(x).detach().numpy(), by_hand(module, x), rtol=0, atol=0.05)  # bfloat16


def test_experts_are_sites_and_an_idle_one_needs_no_rows() -> None:
    model = torch_export.trace(Experts().eval(), (tokens(0),))
    products = [n for n in model.graph if n.op_type == "MatMul"]
    assert len(products) == 3
    assert all(isinstance(n.inputs[1], ir.Value) and n.inputs[1].is_initializer() for n in products)
    data = {"x": np.concatenate([tokens(seed).numpy() for seed in range(4)])}
    low, report = gp.compile(model, "w8a8", data, gate=False, prove=False)
    assert sum(bool(s.scheme) for s in report.sites) == 3
    x = tokens(1, 1)
    (given,), (wanted,) = (kit.run(m, {"x": x.numpy()}).values() for m in (low, model))
    assert ((given - wanted) ** 2).sum() < 1e-3 * (wanted**2).sum()
