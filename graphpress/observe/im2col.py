"""A convolution as a matrix product: the rows that its weights are multiplied with (im2col)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit


@dataclass(frozen=True)
class Window:
    """What a Conv slides over its input; one entry for each spatial axis.

    Attributes:
        kernel, strides, dilations: As in ONNX.
        pads: (before, after) of each axis, or None with ``auto_pad`` SAME, where they follow from the input's size.
        upper: With SAME: the odd element of padding comes after.
        groups: Of channels.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    upper: bool = True
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int]) -> Window:
        """The window of a Conv whose weight ends in ``kernel``."""
        n = len(kernel)
        ones = [1] * n
        strides, dilations = (tuple(edit.attribute(node, name, ones)) for name in ("strides", "dilations"))
        auto = edit.attribute(node, "auto_pad", "NOTSET")
        given = edit.attribute(node, "pads", [0] * (2 * n)) if auto == "NOTSET" else [0] * (2 * n)
        pads = None if auto.startswith("SAME") else tuple(zip(given[:n], given[n:], strict=True))
        return cls(tuple(kernel), strides, dilations, pads, auto != "SAME_LOWER", edit.attribute(node, "group", 1))

    def padding(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(before, after) of each axis for an input of these spatial sizes."""
        if self.pads is not None:
            return self.pads
        found = []
        for n, k, s, d in zip(size, self.kernel, self.strides, self.dilations, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.upper else (large, small))
        return tuple(found)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """[groups, positions, in / groups * prod(kernel)] of ``x`` [batch, in, *size].

        Row ``p`` of group ``g`` times ``weight[g].reshape(out / groups, -1)`` transposed is the output there;
        positions run over the batch, then over the output's spatial axes.
        """
        axes = tuple(range(2, x.ndim))
        x = np.pad(x, ((0, 0), (0, 0), *self.padding(x.shape[2:])))
        reach = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)
        taps = tuple(slice(None, None, d) for d in self.dilations)
        view = view[(slice(None), slice(None), *(slice(None, None, s) for s in self.strides), *taps)]
        batch, channels, *rest = view.shape
        size, kernel = rest[: len(axes)], rest[len(axes) :]
        view = view.reshape(batch, self.groups, channels // self.groups, *size, *kernel)
        # batch, group, channel, size.., kernel.. -> group, batch, size.., channel, kernel..
        spatial = tuple(range(3, 3 + len(axes)))
        order = (1, 0, *spatial, 2, *(3 + len(axes) + i for i in range(len(axes))))
        width = channels // self.groups * math.prod(kernel)
        return view.transpose(order).reshape(self.groups, batch * math.prod(size), width)
