"""State dicts of modules and of the modules of their graphs: weights read in several forms, and parametrized ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import graphpress as gp
from graphpress.backends.fx import build
from graphpress.errors import BadRequest
from graphpress.frontends import torch_export


class Shared(nn.Module):
    """One weight read in the ways that are asked for, one after the other."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.ways, self.own, self.mid = ways, nn.Parameter(torch.randn(24, 16) / 4), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for way in self.ways:
            x = {
                "linear": lambda x: F.linear(x, self.own),
                "turned": lambda x: F.linear(x, self.own.t()),
                "matmul": lambda x: x @ self.own,
                "turned matmul": lambda x: x @ self.own.mT,
                "conv": lambda x: F.conv1d(x.mT, self.own.unsqueeze(-1)).mT,
                "transposed conv": lambda x: F.conv_transpose1d(x.mT, self.own.unsqueeze(-1)).mT,
                "mid": self.mid,
            }[way](x).tanh()
        return x


WAYS = {
    "plain and transposed": ("linear", "turned"),
    "transposed and plain": ("linear", "matmul"),
    "plain twice": ("linear", "turned", "linear"),
    "product and linear": ("mid", "turned matmul", "turned"),
    "convolution and linear": ("conv", "turned"),
    "convolution and its transpose": ("conv", "transposed conv"),
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 16)], ids=["2-D", "3-D"])
def test_a_weight_read_in_several_forms_is_one_parameter(ways: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and any("conv" in w for w in ways):
        shape = (1, *shape)
    module, other, x = Shared(*ways).eval(), Shared(*ways).eval(), torch.randn(shape)
    model = torch_export.trace(module, (x,))
    for made in (gp.lower(model, "torch-cpu"), gp.to_torch(model), copy.deepcopy(gp.to_torch(model))):
        assert {n for n, _ in made.named_parameters()} == {n for n, p in module.named_parameters() if _read(ways, n)}
        torch.testing.assert_close(made(x), module(x))
        given = made.load_state_dict(other.state_dict(), strict="mid" in ways)
        assert not given.missing_keys
        torch.testing.assert_close(made(x), other(x))
    assert not other.load_state_dict(gp.to_torch(model).state_dict(), strict=False).unexpected_keys
    torch.testing.assert_close(other(x), module(x))


def _read(ways: tuple[str, ...], name: str) -> bool:
    return "mid" in ways or not name.startswith("mid.")


def test_a_weight_that_a_pass_changed_in_one_place_is_two_again() -> None:
    module, x = Shared("linear", "turned").eval(), torch.randn(2, 3, 16)
    model = torch_export.trace(module, (x,))
    one, _ = (v for name, v in model.graph.initializers.items() if name.startswith("own"))
    one.const_value = ir.tensor(one.const_value.numpy() * 2)
    made = build(model)
    assert len([n for n, _ in made.named_parameters()]) == 2
    assert all(name.endswith("_folded") for name in made.state_dict())


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Joined(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        return weight.split(len(weight) // 2)


def _under(kind: Callable[[], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def put(layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", kind())
        return layer

    return put


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm, "old weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm, "old spectral_norm": nn.utils.spectral_norm,
    "of one": _under(Halved), "of several": _under(Joined),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_parametrized_weight_was_folded_and_says_so(kind: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(KINDS[kind](nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 8)), torch.randn(2, 3, 16)
    module(x)  # spectral_norm looks for the largest singular value in training only: a random guess of it may be near 0
    module.eval()
    made = gp.lower(torch_export.trace(module, (x,)), "torch-cpu")
    wanted = module(x)
    torch.testing.assert_close(made(x), wanted)
    for taken in (made, copy.deepcopy(made)):
        with pytest.raises(BadRequest, match=r"'0\.[\w.]+': .* was folded at trace.* trace it again"):
            taken.load_state_dict(module.state_dict())
        own = {name: torch.zeros_like(t) for name, t in taken.state_dict().items()}
        taken.load_state_dict(own)
        assert taken(x).abs().max() == 0
    assert made.load_state_dict(module.state_dict(), strict=False).unexpected_keys
