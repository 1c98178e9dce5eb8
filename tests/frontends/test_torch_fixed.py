"""Numbers that modules keep as buffers, layers that are moved to where they are, checks of values, random numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import Unsupported
from graphpress.frontends import torch_export
from tests import kit

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class Padded(nn.Module):
    """A causal convolution that pads by what its buffers say, by reflection where it can, as those of codecs do."""

    def __init__(self, size: int, stride: int, persistent: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, size, stride)
        self.register_buffer("size", torch.tensor(size), persistent=persistent)
        self.register_buffer("stride", torch.tensor(stride), persistent=persistent)
        self.register_buffer("odd", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.size - self.stride
        frames = torch.ceil((x.shape[-1] - self.size + total) / self.stride + 1).to(torch.int64) - 1
        more = frames * self.stride + self.size - total - x.shape[-1]
        mode = "reflect" if x.shape[-1] > max(total, more) else "constant"
        return self.conv(functional.pad(x, (total, more), mode)) * self.odd[:, None]


class Moved(nn.Module):
    """A router: its layer is brought to its type at each call, and what it gives is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        self.layer.weight.data = torch.arange(12.0).reshape(3, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.layer = self.layer.to(torch.float32)
        y = torch.softmax(self.layer(x), -1)
        aten = torch.ops.aten
        return y, aten._is_all_true(y > 0.2), aten._is_any_true(y > 0.2)


@pytest.mark.parametrize(("size", "stride", "length"), [(4, 2, 9), (5, 1, 3)])
def test_numbers_in_buffers_are_known(size: int, stride: int, length: int) -> None:
    module = Padded(size, stride).eval()
    buffers, own = dict(module.named_buffers()), type(module)
    x = torch.randn(2, 2, length, generator=torch.Generator().manual_seed(0))
    model = torch_export.trace(module, (x,))
    with torch.no_grad():
        (given,), wanted = kit.run(model, {"x": x.numpy()}).values(), module(x).numpy()
    np.testing.assert_allclose(given, wanted, atol=1e-6)
    assert type(module) is own and dict(module.named_buffers()).items() == buffers.items()


def test_those_of_a_state_dict_are_not() -> None:
    module = Padded(4, 2, persistent=True).eval()
    with pytest.raises(Unsupported, match="depends on the values of a tensor"):
        torch_export.trace(module, (torch.randn(2, 2, 9),))
    assert list(module._buffers) == ["size", "stride", "odd"] and type(module) is Padded


def test_a_layer_moved_to_where_it_is_and_what_all_or_any_say() -> None:
    module, to = Moved().eval(), nn.Module.to
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 3, 5)[:, None]
    model = torch_export.trace(module, (x,))
    assert nn.Module.to is to
    for rows, every, some in ((x[:1], True, True), (x, False, True)):
        full = rows.expand(5, 4).contiguous() if len(rows) == 1 else rows
        made = list(kit.run(model, {"x": full.numpy()}).values())
        with torch.no_grad():
            np.testing.assert_allclose(made[0], module(full)[0].numpy(), atol=1e-6)
        assert [made[1].item(), made[2].item()] == [every, some]
    assert [o.dtype for o in model.graph.outputs] == [ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.BOOL]


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x) * torch.rand(x.shape)


def test_random_numbers_are_drawn() -> None:
    """ONNX Runtime has no kernel of them at opset 22 or 23."""
    x = torch.zeros(50, 40)
    model = torch_export.trace(Noisy(), (x,))
    assert model.opset_imports[""] == 21
    (y,) = kit.run(model, {"x": x.numpy()}).values()
    assert abs(y.mean()) < 0.1 and abs((y**2).mean() - 1 / 3) < 0.1  # the mean of u^2, times 1
