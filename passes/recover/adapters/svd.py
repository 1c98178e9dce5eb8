"""``svd``: the part of a weight that a few singular vectors hold, computed beside the layer in floats (SVDQuant).

W = L R + rest (Li et al., SVDQuant, arXiv:2411.05007): the layer keeps the rest, which has less to round, and reads
what is quantized; the branch reads what came before that. It stays when the layer is quantized: only before, it can be
folded. Rank r adds r (in + out) floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.recover.adapters import beside
from graphpress.passes.recover.adapters.base import Adapter, Attached, Scribe, take_away
from graphpress.passes.recover.adapters.beside import DOWN, UP
from graphpress.passes.recover.adapters.low_rank import factors, start
from graphpress.passes.structure.layers.linear import Linear, linear


@dataclass(frozen=True)
class Svd(Adapter):
    """L R beside a float layer, which keeps the rest of its weight.

    Attributes:
        rank: Columns of L; of a smaller matrix those beyond its own rank are zero.
    """

    rank: int = 32

    name = "svd"
    splits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadRequest(f"rank {self.rank} is not positive", where="adapter 'svd'")

    def refusal(self, model: ir.Model, layer: Linear) -> str | None:
        if layer.groups != 1:
            return "a convolution in groups has a matrix for each of them"
        if layer.node.inputs[1] is not layer.weight_value:
            return "its weight is quantized: what a branch takes over has to go before"
        return None

    def write(self, model: ir.Model, layer: Linear, ctx: Context) -> None:
        weight = layer.weight().astype(np.float64)
        self.place(layer, *start(weight.reshape(len(weight), -1), self.rank))

    def place(self, layer: Linear, left: np.ndarray, right: np.ndarray) -> tuple[ir.Value, ir.Value]:
        """Write these factors (L [out, rank], R [rank, in]) and leave the rest; the constants that hold R and L."""
        weight = layer.weight().astype(np.float64)
        down, up = beside.write(Scribe(self.name, layer), left, right)
        held = product(*(np.asarray(edit.constant(v)) for v in (down, up)))
        layer.set_weight(weight - held.reshape(weight.shape))
        return down, up

    @classmethod
    def fold(cls, model: ir.Model, attached: Attached, ctx: Context) -> None:
        """Give the layer back what the branch holds, while it is in floats."""
        view = linear(edit.find(model, attached.site))
        where = f"adapter 'svd' at {attached.site!r}"
        if isinstance(view, str):
            raise BadRequest(view, where=where)
        if view.node.inputs[1] is not view.weight_value:
            fix = "Fold it before quantize, or let it stay: it is part of the result."
            raise BadRequest("its layer is quantized, and has no room for what the branch holds", where=where, fix=fix)
        held = product(attached.array(model, DOWN), attached.array(model, UP))
        if not np.isfinite(held).all():
            raise BadRequest("it is not finite", where=where)
        weight = view.weight().astype(np.float64)
        view.set_weight(weight + held.reshape(weight.shape))
        take_away(model, attached, "sum")


def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """L R [out, in] in float64, of the constants as the graph holds them."""
    left, right = factors(down, up)
    return np.asarray(left.astype(np.float64) @ right.astype(np.float64))


ADAPTER = Svd
