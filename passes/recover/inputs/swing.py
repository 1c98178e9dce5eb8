"""Swing convolution (GENIE, arXiv:2212.04780, section 3.2): strided layers see their input at a random offset.

A strided layer reads some phases of its input more than others, and inputs that are found through it show that as a
checkerboard. While inputs are made, what it reads is padded by one row on each side, as a mirror would, and cut back to
its size at an offset of 0, 1 or 2: one Gather along each axis. The model that is compressed has nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphpress.contracts import PassReport
from graphpress.graph import edit

if TYPE_CHECKING:
    import torch

_AXES = (2, 3)


@dataclass(frozen=True)
class Swing:
    """Inputs that were added to a graph.

    Attributes:
        sizes: Of the axis that each moves, by name.
    """

    sizes: Mapping[str, int]

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Which rows each gathers this time."""
        import torch

        offsets = torch.randint(0, 3, (len(self.sizes),), generator=generator).tolist()
        return {
            name: torch.from_numpy(mirrored(size, offset - 1))
            for (name, size), offset in zip(self.sizes.items(), offsets, strict=True)
        }


def mirrored(size: int, by: int) -> np.ndarray:
    """Rows 0 .. size - 1 moved by ``by``, those beyond an end mirrored at it; int64."""
    rows = np.abs(np.arange(size) + by)
    return np.where(rows >= size, 2 * (size - 1) - rows, rows)


def swung(model: ir.Model, report: PassReport) -> tuple[ir.Model, Swing]:
    """A copy whose strided convolutions swing; a Skip for each whose input has no known size."""
    model = model.clone()
    sizes: dict[str, int] = {}
    for node in list(model.graph):
        if node.op_type != "Conv" or node.domain or max(edit.attribute(node, "strides", (1,))) == 1:
            continue
        read = node.inputs[0]
        dims = [] if read is None or read.shape is None else list(read.shape)
        if len(dims) != 4 or not all(isinstance(d, int) and d > 1 for d in dims[2:]):
            report.skip(node, "it does not swing: the size of what it reads is unknown")
            continue
        for axis in _AXES:
            source, size = node.inputs[0], int(dims[axis])  # type: ignore[arg-type]
            assert source is not None
            name = f"swing.{len(sizes)}"
            rows = ir.Value(name=name, shape=ir.Shape([size]), type=ir.TensorType(ir.DataType.INT64))
            model.graph.inputs.append(rows)
            gather = edit.new_node("Gather", [source, rows], {"axis": axis}, before=node, origin=node)
            edit.like(gather.outputs[0], source)
            edit.set_input(node, 0, gather.outputs[0])
            sizes[name] = size
    return model, Swing(sizes)
