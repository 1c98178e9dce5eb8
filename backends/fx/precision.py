"""A module may be moved to another float type, but numbers that it makes of integers stay what the graph says.

torch promotes such a pair where it computes elementwise, as the traced module would have. Products and the like refuse
it: there the numbers that were made take the type of the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import torch

_MAKERS = frozenset({"Range", "ConstantOfShape", "EyeLike", "OneHot", "RandomNormal", "RandomUniform"})
_REFUSE = frozenset(
    {
        "Attention", "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "GroupNormalization",
        "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "RMSNormalization", "RNN", "ScatterElements",
        "ScatterND",
    }
)  # fmt: skip


def as_type(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``x`` in the type of ``like``."""
    return x.to(like.dtype)


def conversions(nodes: Iterable[ir.Node]) -> dict[tuple[ir.Node, int], ir.Value]:
    """For inputs that stay behind when the module moves to another float type: whose type they are to take."""
    made: set[ir.Value] = set()
    found: dict[tuple[ir.Node, int], ir.Value] = {}
    for node in nodes:
        floats = [(slot, v) for slot, v in enumerate(node.inputs) if v is not None and _is_float(v)]
        behind = [(slot, v) for slot, v in floats if v in made]
        leads = next((v for _, v in floats if v not in made), None)
        refuses = node.op_type in _REFUSE and leads is not None
        if refuses and leads is not None:
            found |= {(node, slot): leads for slot, _ in behind}
        if not refuses and (behind or _makes(node, bool(floats))):
            made.update(v for v in node.outputs if _is_float(v))
    return found


def _makes(node: ir.Node, reads_floats: bool) -> bool:
    """Whether a node gives floats that come from none."""
    return not node.domain and not reads_floats and (node.op_type in _MAKERS or node.op_type == "Cast")


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and value.dtype.bitwidth >= 16
