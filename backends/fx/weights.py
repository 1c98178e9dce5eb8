"""Stored tensors as parameters and buffers under their own names, sharing the graph's memory until they are written."""

from __future__ import annotations

import itertools
import json
import keyword
from collections.abc import Iterator

import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes

SOURCE, ROLE = "graphpress.source", "graphpress.role"  # as the torch frontend notes them on a value
_STATISTICS = {"BatchNormalization": (3, 4), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}


class Shelf:
    """The parameters and buffers of one module."""

    def __init__(self, learnable: bool = False) -> None:
        self.root = torch.nn.Module()
        self.learnable = learnable  # scales and zero points of Q/DQ become parameters
        self._paths: dict[int, str] = {}

    def path(self, value: ir.Value, transposed: bool = False) -> str:
        """The attribute path of a constant; it is put on the shelf when it is first asked for.

        ``transposed`` keeps a matrix as torch's modules do: (out, in).
        """
        if id(value) not in self._paths:
            self._paths[id(value)] = self._put(value, transposed)
        return self._paths[id(value)]

    def _put(self, value: ir.Value, transposed: bool) -> str:
        tensor = share(value)
        data = tensor.t() if transposed else tensor
        name = value.name or "constant"
        kept: torch.Tensor = data
        if trainable(value, self.learnable):
            kept = torch.nn.Parameter(data if data.is_floating_point() else data.float())
            disown_before_update(kept)
        persistent = value.metadata_props.get(ROLE) != "temporary"
        path = place(self.root, name, kept, persistent=persistent)
        for other in json.loads(value.metadata_props.get(SOURCE, "{}")).get("tied", ()):
            place(self.root, other, kept, persistent=persistent)
        return path


def share(value: ir.Value) -> torch.Tensor:
    """The tensor of a constant, in the memory that the graph has it in."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return dtypes.from_numpy(tensor.numpy(), tensor.dtype.name)


def transform(value: ir.Value) -> str:
    """How a weight was computed from torch's parameter, as the frontend noted it."""
    return str(json.loads(value.metadata_props.get(SOURCE, "{}")).get("transform", ""))


def trainable(value: ir.Value, learnable: bool = False) -> bool:
    """Whether a constant is a parameter: noted so, or a float tensor of a rank that is neither statistics nor scale."""
    role = value.metadata_props.get(ROLE)
    statistics = [u.node.op_type for u in value.uses() if u.idx in _STATISTICS.get(u.node.op_type, ())]
    if statistics:
        return learnable and "BatchNormalization" not in statistics
    if value.dtype is None or not value.dtype.is_floating_point() or dtypes.carried(value.dtype.name):
        return False
    if value.dtype.bitwidth < 16:
        return False
    return role == "parameter" if role else value.is_initializer() and value.shape is not None and len(value.shape) > 0


def disown_before_update(parameter: torch.nn.Parameter) -> None:
    """Give a parameter memory of its own when its first gradient arrives, before any optimiser can write to it."""

    def disown(p: torch.Tensor) -> None:
        p.data = p.data.clone()
        handle.remove()

    handle = parameter.register_post_accumulate_grad_hook(disown)


def disown(module: torch.nn.Module) -> None:
    """Give every parameter and buffer memory of its own: to be called before one is written in place by hand."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def place(root: torch.nn.Module, name: str, tensor: torch.Tensor, *, persistent: bool = True) -> str:
    """Register ``tensor`` under a dotted name, in modules made for its parts; the path it got in the end."""
    module, path = _place(root, name or "constant")
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(path[-1], tensor)
    else:
        module.register_buffer(path[-1], tensor, persistent=persistent)
    return ".".join(path)


def place_module(root: torch.nn.Module, name: str, module: torch.nn.Module) -> str:
    """Register a module under a dotted name, or one that is free; the name it got."""
    holder, path = _place(root, name or "kernel")
    holder.add_module(path[-1], module)
    return ".".join(path)


def _place(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, list[str]]:
    """Where something of this name shall be: the module for it, and a path to it that is free."""
    *folders, leaf = name.split(".") if all(name.split(".")) else [name.replace(".", "_")]
    path = []
    for folder in folders:
        folder = next(n for n in _names(folder) if n in module._modules or not hasattr(module, n))
        if folder not in module._modules:
            module.add_module(folder, torch.nn.Module())
        module = module.get_submodule(folder)
        path.append(folder)
    return module, [*path, next(n for n in _names(leaf) if not hasattr(module, n))]


def _names(name: str) -> Iterator[str]:
    """A name as Python can have it behind a dot, and others if that is taken."""
    if not keyword.iskeyword(name):
        yield name
    yield from (f"{name}_{i}" for i in itertools.count(1))
