"""Rotary embeddings as products of complex numbers."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from graphpress.frontends import torch_complex, torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, Tensor = torch.nn, torch.Tensor

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "unsqueeze": lambda z: z.unsqueeze(1),
    "unsqueeze from the end": lambda z: z.unsqueeze(-2).transpose(1, 2).squeeze(1).unsqueeze(1),
    "none": lambda z: z[:, None],
    "expand": lambda z: z[:, None].expand(-1, 3, -1, -1),
    "repeat": lambda z: z[:, None].repeat(1, 3, 1, 1),
    "select": lambda z: torch.stack([z.select(-1, i) for i in range(4)], -1).unsqueeze(1),
    "index": lambda z: z[:, torch.tensor([4, 2, 0, 1, 3])].unsqueeze(1),
    "index_select": lambda z: z.index_select(-2, torch.tensor([4, 2, 0, 1, 3])).unsqueeze(1),
    "split": lambda z: torch.cat(z.split(3, -1)[::-1], -1).roll(3, -1).unsqueeze(1),
    "split by sizes": lambda z: torch.cat(z.split([1, 2, 1], -1), -1).unsqueeze(1),
    "unbind": lambda z: torch.stack(z.unbind(-1), -1).unsqueeze(1),
}


class Rotary(nn.Module):
    """[batch, heads, length, 8], turned by angles that grow with the place, in every form."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.register_buffer("speeds", 10.0 ** -torch.arange(4.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        places = torch.arange(5.0, device=x.device)[None] + x[:, 0, :1, 0].round()
        angles = places[..., None] * self.speeds
        turns = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return {name: torch.view_as_real(pairs * FORMS[name](turns)).flatten(3) for name in self.names}


@pytest.mark.parametrize(
    "names", [("none", "expand"), pytest.param(tuple(FORMS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_turned_as_in_torch(names: tuple[str, ...]) -> None:
    module = Rotary(names).eval()
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    given = kit.run(torch_export.trace(module, (x,)), {"x": x.numpy()})
    for (form, wanted), got in zip(module(x).items(), given.values(), strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6, err_msg=form)


def test_the_exporter_can_read_the_signature_of_each_form() -> None:
    """It warns of those it cannot read, and passes their arguments on as they come."""
    for target, form in torch_complex.table(torch).items():
        hints = typing.get_type_hints(getattr(form, "func", form))
        assert hints.keys() >= {a.name for a in target._schema.arguments}, target
