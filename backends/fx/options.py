"""What holds for a whole module while it is built: how quantizers are treated, which kernels stand for what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch


@dataclass(frozen=True)
class Chosen:
    """A kernel for a product of the graph.

    Attributes:
        node: The product.
        module: What computes it.
        source: What the module is called with.
        quantizer: The node that quantizes ``source`` at run time, and the function that does so for all its readers;
            the module is called with what it gives as well.
    """

    node: ir.Node
    module: torch.nn.Module
    source: ir.Value
    quantizer: tuple[ir.Node, Callable[..., Any]] | None = None


@dataclass(frozen=True)
class Kernels:
    """What kernels stand for.

    Attributes:
        at: The kernel whose last node this is.
        replaced: Nodes that need not be computed.
        refused: Why a quantized product has no kernel, by node name.
        dense: Why a pruned float product is multiplied dense, by node name.
    """

    at: Mapping[ir.Node, Chosen] = field(default_factory=dict)
    replaced: Collection[ir.Node] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    dense: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What holds for a whole module.

    Attributes:
        opset: Of the default domain.
        straight_through: Quantizers pass gradients on: codes stay floats.
        learned: What of them are parameters: "" for nothing, "scales" for scales and zero points as they stand,
            "steps" for the logarithm of what a scale is multiplied by, and the zero points that may move.
        kernels: What need not be computed as written.
        asked: Values that are given besides the graph's outputs.
    """

    opset: int
    straight_through: bool = False
    learned: str = ""
    kernels: Kernels = field(default_factory=Kernels)
    asked: Collection[ir.Value] = ()
