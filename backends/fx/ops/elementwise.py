"""One element at a time: arithmetic, comparison, logic, activation functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Operand, Tensor


def add(a: Operand, b: Operand) -> Tensor:
    return a + b


def sub(a: Operand, b: Operand) -> Tensor:
    return a - b


def mul(a: Operand, b: Operand) -> Tensor:
    return a * b


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def identity(x: Tensor) -> Tensor:
    return x


OPS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": add, "Identity": identity, "Mul": mul, "Neg": torch.neg, "Relu": relu,
    "Sigmoid": torch.sigmoid, "Sub": sub,
}  # fmt: skip
