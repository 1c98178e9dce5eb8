"""Two small networks in every form in which half precision comes, with what they give in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.nn import functional as F

from graphpress.frontends import torch_export
from graphpress.graph import edit

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARRAYS: Mapping[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# What a form is called -> the half type of its weights. The first two are what the others are compared with.
FORMS = {
    "float32": "float16", "float32 (bfloat16 weights)": "bfloat16", "float16 traced": "float16",
    "bfloat16 traced": "bfloat16", "float16 ONNX": "float16", "Cast ends": "float16", "weights behind Cast": "float16",
    "mixed": "float16",
}  # fmt: skip


class TinyVision(nn.Module):
    """Convolutions with BatchNorm, a residual, and a linear layer: [N, 3, 12, 12] to [N, 10]."""

    shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.norm1(self.stem(x)))
        h = h + self.block(h)
        return self.head(h.mean((2, 3)))


class TinyBlock(nn.Module):
    """A linear layer, then attention and a feed-forward layer, each behind a norm: [N, 8, 32] to [N, 8, 16]."""

    shape = (8, 32)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 32)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(32) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.block = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        n = self.norm1(h)
        q, k, v = (f(n).unflatten(-1, (4, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.o(mixed)
        h = h + self.block(self.norm2(h))
        return self.head(self.norm3(h))


NETWORKS: Mapping[str, type[TinyVision] | type[TinyBlock]] = {"vision": TinyVision, "block": TinyBlock}


class InHalf(nn.Module):
    """A module that computes in half precision among others that do not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.half()).float()


@dataclass(frozen=True)
class Sample:
    """A network in one form.

    Attributes:
        model: As it comes.
        data: Samples for its input, in the input's type.
        fresh: Likewise, for a comparison.
        wanted: What the network gives on ``fresh`` in float64, its weights being the same.
    """

    model: ir.Model
    data: dict[str, np.ndarray]
    fresh: dict[str, np.ndarray]
    wanted: np.ndarray


def sample(network: str, form: str, *, quantized: ir.Model | None = None) -> Sample:
    """The network in that form.

    Args:
        network: A key of ``NETWORKS``.
        form: A key of ``FORMS``.
        quantized: Stands for the float32 graph, where an ONNX form is made of one with Q/DQ.
    """
    kind = FORMS[form]
    torch.manual_seed(0)
    module = NETWORKS[network]().eval()
    _settle(module)
    module = module.to(DTYPES[kind]).float()
    rng = np.random.default_rng(1)
    data, fresh = (rng.normal(size=(n, *module.shape)).astype(ARRAYS[kind]).astype(np.float32) for n in (32, 64))
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(torch.from_numpy(fresh).double()).numpy()
    model = _model(module, form, kind, quantized)
    own = model.graph.inputs[0]
    assert own.dtype is not None
    data, fresh = (a.astype(own.dtype.numpy()) for a in (data, fresh))
    return Sample(model, {own.name or "": data}, {own.name or "": fresh}, wanted)


def _settle(module: nn.Module) -> None:
    """Statistics and scales as training leaves them: no norm is the identity."""
    generator = torch.Generator().manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.6, 1.6, generator=generator)
            nn.init.uniform_(part.bias, -0.3, 0.3, generator=generator)
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            nn.init.uniform_(part.running_mean, -0.3, 0.3, generator=generator)
            nn.init.uniform_(part.running_var, 0.4, 1.4, generator=generator)


def _model(module: Any, form: str, kind: str, quantized: ir.Model | None) -> ir.Model:
    if form.endswith("traced"):
        return _traced(module.to(DTYPES[kind]), DTYPES[kind])
    if form == "mixed":
        module.block = InHalf(module.block)
    model = quantized.clone() if quantized is not None else _traced(module, torch.float32)
    if form in ("float16 ONNX", "Cast ends"):
        to_half(model, ir.DataType.FLOAT16, ends=form == "float16 ONNX")
    if form == "weights behind Cast":
        weights_to_half(model, ir.DataType.FLOAT16)
    return model


def _traced(module: Any, dtype: torch.dtype) -> ir.Model:
    example = torch.zeros(2, *module.shape, dtype=dtype)
    return torch_export.trace(module, (example,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})


def to_half(model: ir.Model, kind: ir.DataType, *, ends: bool) -> None:
    """Make halves of all floats of a graph, in place; inputs and outputs too, or behind a Cast as converters do it."""
    edit.index(model)
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    for value in [*model.graph.initializers.values(), *inputs, *(o for n in edit.nodes(model) for o in n.outputs)]:
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(value.const_value.numpy().astype(kind.numpy()), name=value.name)
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(kind)
    for node in edit.nodes(model):
        if node.op_type == "Cast" and edit.attribute(node, "to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(kind))
    if not ends:
        first = next(iter(model.graph))
        for value in inputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            made = edit.new_node("Cast", [value], {"to": int(kind)}, before=first, name=f"{value.name}_to_half")
            edit.like(made.outputs[0], value, kind)
            for user, slot in [u for u in value.uses() if u.node is not made]:
                user.replace_input_with(slot, made.outputs[0])
        for i, value in enumerate(outputs):
            maker, public = value.producer(), value.name
            assert maker is not None
            value.name = f"{public}_half"
            made = edit.new_node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, after=maker, name=f"{public}_back")
            model.graph.outputs[i] = edit.like(made.outputs[0], value, ir.DataType.FLOAT)
            made.outputs[0].name = public


def weights_to_half(model: ir.Model, kind: ir.DataType) -> None:
    """Store float weights as halves behind a Cast to float32, in place."""
    edit.index(model)
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 16:
            half = edit.add_const(model.graph, value.const_value.numpy().astype(kind.numpy()), f"{value.name}_half")
            made = edit.new_node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, before=first).outputs[0]
            edit.like(made, value)
            for user, slot in list(value.uses()):
                user.replace_input_with(slot, made)
            edit.remove_unused([value])
