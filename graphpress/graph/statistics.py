"""What training saw of an operator's output, which a folded BatchNormalization leaves behind for data-free methods."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphpress.keys import STATISTICS


def write_statistics(node: ir.Node, mean: np.ndarray, std: np.ndarray) -> None:
    """Keep mean and standard deviation of each output channel with the node."""
    data = {"mean": [float(f"{v:.8g}") for v in mean], "std": [float(f"{v:.8g}") for v in std]}
    STATISTICS.set(node, data)


def read_statistics(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, std) of each output channel as a folded BatchNormalization knew them, or None."""
    data = STATISTICS.get(node)
    if data is None:
        return None
    # A BatchNormalization makes its input's mean 0 and its variance var / (var + epsilon): beta and almost |gamma|.
    return np.asarray(data["mean"]), np.asarray(data["std"])
