"""``lora``: a product of two thin matrices added to the weight (arXiv:2106.09685, sec. 4.1).

It stands in the weight's own space, before any quantization of it: the layer computes x Q(W + alpha / r B A), as in
QALoRA of EfficientDM (arXiv:2310.03270), so the fold into the float weight is exact for quantized layers too.
For a float layer that is x W + alpha / r x B A, term by term. Convolutions take it as well, at any kernel size.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.recover.adapters.base import Adapter, Attached, Scribe, dtype, evaluated
from graphpress.passes.structure.layers.linear import Linear


@dataclass(frozen=True)
class Lora(Adapter):
    """W + alpha / r B A, A [r, in] drawn, B [out, r] zero at first.

    Attributes:
        rank: r.
        alpha: What the product is multiplied by, times the rank; None: the rank, so the factor is 1.
    """

    rank: int = 8
    alpha: float | None = None

    name = "lora"

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.alpha is not None and not 0 < self.alpha < float("inf")):
            raise BadRequest(f"rank {self.rank}, alpha {self.alpha}: both are positive", where="adapter 'lora'")

    def refusal(self, model: ir.Model, layer: Linear) -> str | None:
        value = layer.weight_value
        if not value.is_initializer() or value.graph is not model.graph:
            return "its weight is no initializer of the main graph"
        made = (o for node in _between(layer) for o in node.outputs)
        readers = max(len({u.node for u in v.uses()}) for v in (value, *made))
        return None if readers == 1 else f"its weight has {readers} readers"

    def write(self, model: ir.Model, layer: Linear, ctx: Context) -> None:
        scribe, stored = Scribe(self.name, layer), layer.weight_value
        shape = [int(d) for d in stored.shape.numpy()] if stored.shape is not None else []
        reader, slot = _reader(layer)
        rows, columns = shape[0], int(np.prod(shape[1:]))
        reads = rows if layer.transposed else columns  # elements that one output sums: the fan-in of A
        rng = np.random.default_rng([ctx.seed, zlib.crc32((layer.node.name or "").encode())])
        bound = reads**-0.5  # Kaiming's uniform with slope sqrt(5)
        drawn = rng.uniform(-bound, bound, (self.rank, reads)).astype(dtype(layer).numpy())
        zero = np.zeros((layer.shape[0], self.rank), dtype(layer).numpy())
        a = scribe.constant("a", drawn.T if layer.transposed else drawn, trained=True)
        b = scribe.constant("b", zero.T if layer.transposed else zero, trained=True)
        factors = [a, b] if layer.transposed else [b, a]
        product = scribe.node("product", "MatMul", factors, [rows, columns], before=reader).outputs[0]
        factor = (self.rank if self.alpha is None else self.alpha) / self.rank
        if factor != 1.0:
            scale = scribe.constant("scale", np.array(factor, dtype(layer).numpy()))
            product = scribe.node("scaled", "Mul", [product, scale], [rows, columns], before=reader).outputs[0]
        if len(shape) != 2:
            size = scribe.constant("shape", np.array(shape, np.int64))
            product = scribe.node("kernel", "Reshape", [product, size], shape, before=reader).outputs[0]
        edit.set_input(reader, slot, scribe.node("sum", "Add", [stored, product], shape, before=reader).outputs[0])

    @classmethod
    def fold(cls, model: ir.Model, attached: Attached, ctx: Context) -> None:
        """Write the sum into the weight, as the runtime computes it: behind it, not a code is another."""
        add = attached.node(model, "sum")
        total, stored = add.outputs[0], add.inputs[0]
        assert stored is not None
        found = evaluated(model, total, ctx) if attached.array(model, "b").any() else None
        if found is not None and not np.isfinite(found).all():
            raise BadRequest("W + B A is not finite", where=f"adapter 'lora' at {attached.site!r}")
        for reader, slot in list(total.uses()):
            edit.set_input(reader, slot, stored)
        edit.remove_unused([total])
        if found is not None:
            edit.overwrite(stored, found)
        edit.index(model)


def _reader(layer: Linear) -> tuple[ir.Node, int]:
    """Who reads the float weight: the first node of its quantization, or the layer."""
    chain = _between(layer)
    return (chain[0], 0) if chain else (layer.node, 1)


def _between(layer: Linear) -> list[ir.Node]:
    """The nodes between the float weight and the layer."""
    found: list[ir.Node] = []
    value = layer.node.inputs[1]
    while value is not None and value is not layer.weight_value:
        node = value.producer()
        assert node is not None
        found.insert(0, node)
        value = node.inputs[0]
    return found


ADAPTER = Lora
