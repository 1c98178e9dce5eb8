"""What cannot be traced is refused with the module, the line and the way out."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import graphpress as gp
from graphpress.errors import BadRequest, GraphpressError, Unsupported

X = torch.randn(4, 4)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # here
            return x
        return -x


class Count(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x * i for i in range(int(x.max()))])  # here


class Eigen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x).real  # here


class Misfit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)  # here


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, -1) + torch.ones(4, 4)


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sum += x.sum(0)
        return x + self.sum


class Thing(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x + 1, object()


class Print(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("sum", x.sum().item())  # noqa: T201
        return x + 1


class Counter(nn.Module):
    """Writes a buffer that no output needs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ReLU(), inner])

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def line(module: type[nn.Module]) -> str:
    lines, start = inspect.getsourcelines(module)
    return f"{__file__}:{start + next(i for i, text in enumerate(lines) if '# here' in text)}"


@pytest.mark.parametrize(
    ("inner", "path", "words"),
    [
        (Branch, "blocks.1", "depends on the values of a tensor. Use torch.where"),
        (Count, "blocks.1", "depends on the values of a tensor"),
        (Eigen, "blocks.1", "ONNX has no form of the operator aten.linalg_eig. Write it with other operators"),
        (Misfit, "blocks.1.fc", "got [4, 4] X [3, 3]"),
    ],
)
def test_error_names_module_and_line(inner: type[nn.Module], path: str, words: str) -> None:
    with pytest.raises(Unsupported) as error:
        gp.trace(Outer(inner()), X)
    assert error.value.where == f"module {path!r}, {line(inner)}"
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("inner", "code"), [(Branch, "if x.sum() > 0:"), (Count, "int(x.max())")])
def test_error_shows_the_line_that_asks_for_a_value(inner: type[nn.Module], code: str) -> None:
    with pytest.raises(Unsupported, match="depends on the values of a tensor") as error:
        gp.trace(Outer(inner()), X)
    shown = str(error.value).split("`")[1]
    assert code in shown


def test_module_keeps_its_mode_after_a_failure() -> None:
    module = Outer(Branch()).train()
    with pytest.raises(Unsupported):
        gp.trace(module, X)
    assert all(m.training for m in module.modules())


B = Dim("b")
RELU = Outer(nn.ReLU())


@pytest.mark.parametrize(
    ("args", "kwargs", "shapes", "words"),
    [
        ((), None, None, "missing a required argument: 'x'"),
        ((X, X), None, None, "too many positional arguments"),
        ((X,), {"mask": X}, None, "unexpected keyword argument 'mask'"),
        ((X,), None, {"y": {0: B}}, "must be the arg names ['x']"),
        ((X,), None, ({5: B},), "index out of range"),
        ((X,), None, ({0: Dim("b", max=2)},), "4 not in range"),
    ],
)
def test_wrong_arguments(args: Any, kwargs: Any, shapes: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=r"forward\(x\) takes them") as error:
        gp.trace(RELU, args, kwargs, shapes)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("module", "shapes", "where", "words"),
    [
        (Outer(Fixed()), ({0: B},), "dynamic dimension 'b'", "fixes the size"),
        (Outer(Cache()), None, "buffer 'blocks.1.sum'", "keeps no state"),
        (Thing(), None, "module Thing", "something else than tensors"),
    ],
)
def test_what_would_be_lost_is_refused(module: nn.Module, shapes: Any, where: str, words: str) -> None:
    with pytest.raises(Unsupported, match=words) as error:
        gp.trace(module, X, None, shapes)
    assert error.value.where == where


@pytest.mark.parametrize("length", [1, 3])
def test_recurrence_over_a_dynamic_length_is_refused(length: int) -> None:
    with pytest.raises(Unsupported, match=r"a dynamic length|fixes the size"):
        gp.trace(nn.LSTM(4, 3), torch.randn(length, 2, 4), None, ({0: B},))


@pytest.mark.parametrize(
    ("module", "args", "words"),
    [
        (lambda x: x, (X,), "not an nn.Module"),
        (nn.Linear(2, 2, device="meta"), (X[:, :2],), "parameter 'weight'.*meta device"),
    ],
)
def test_what_is_no_module(module: Any, args: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        gp.trace(module, args)


def test_exported_program_takes_no_arguments() -> None:
    with pytest.raises(BadRequest, match="has its inputs"):
        gp.trace(torch.export.export(nn.ReLU(), (X,)), (X,))


@pytest.mark.parametrize("module", [Print(), Counter()])
def test_harmless_side_effects_pass(module: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    assert [n.op_type for n in gp.trace(module, X).graph] in (["Add"], ["Mul"])
    assert "".join(capfd.readouterr()) == ""


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(GraphpressError, match=r"pip install 'graphpress\[torch\]'"):
        gp.trace(None, X)
