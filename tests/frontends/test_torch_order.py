"""Running extremes and products, order statistics, places among sorted numbers: as in torch, of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from graphpress.frontends import torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, Tensor = torch.nn, torch.Tensor

BOUNDS = torch.linspace(-2, 2, 9)
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "cummax": lambda x: torch.cummax(x, -1),
    "cummax, first axis": lambda x: torch.cummax(x, 1),
    "cummin": lambda x: torch.cummin(x, 1),
    "cummax of integers": lambda x: torch.cummax((x * 2).long(), 1),
    "cumprod": lambda x: x.cumprod(1),
    "cumprod of integers in floats": lambda x: (x * 2).long().cumprod(1, dtype=torch.float32),
    "cumprod of short integers": lambda x: (x * 2).int().cumprod(1),
    "kthvalue": lambda x: x.kthvalue(2, 1),
    "median": lambda x: x.median(-1, keepdim=True),
    "median over a length": lambda x: x.median(1)[0],
    "median of all": lambda x: x.median(),
    "sort": lambda x: torch.sort(x, dim=1, descending=True, stable=True),
    "searchsorted": lambda x: torch.searchsorted(BOUNDS, x),
    "searchsorted by row": lambda x: torch.searchsorted(x.sort(-1)[0], x, right=True),
    "bucketize": lambda x: torch.bucketize(x, BOUNDS, right=True, out_int32=True),
}


class Forms(nn.Module):
    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)

    def forward(self, x: Tensor) -> dict[str, Any]:
        made = {name: FORMS[name](x) for name in self.names}
        return {k: tuple(v) if isinstance(v, tuple) else (v,) for k, v in made.items()}


@pytest.mark.parametrize(
    ("names", "dynamic"),
    [
        (("cummax", "median", "searchsorted", "cumprod of integers in floats"), False),
        pytest.param(tuple(FORMS), False, marks=pytest.mark.slow),
        pytest.param(tuple(FORMS), True, marks=pytest.mark.slow),
    ],
    ids=["some", "all", "all, of any length"],
)
def test_as_in_torch(names: tuple[str, ...], dynamic: bool) -> None:
    generator, module = torch.Generator().manual_seed(0), Forms(names).eval()
    shapes = {"x": {1: torch.export.Dim("length", min=2)}} if dynamic else None
    model = torch_export.trace(module, (torch.randn(2, 5, 3, generator=generator),), dynamic_shapes=shapes)
    for length in (5, 2, 33) if dynamic else (5,):
        x = (torch.randn(2, length, 3, generator=generator) * 4).round() / 4  # with ties
        given = iter(kit.run(model, {"x": x.numpy()}).values())
        for form, made in module(x).items():
            for i, wanted in enumerate(t.numpy() for t in made):
                got = next(given)
                assert got.dtype == wanted.dtype, form
                if form not in ("kthvalue", "median") or i == 0:  # of equals, torch takes any place
                    np.testing.assert_allclose(got, wanted, rtol=1e-6, err_msg=form)
