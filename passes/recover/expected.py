"""What the values of a graph are expected to be, without data: from what BatchNormalization has learned.

A value behind BatchNormalization is taken for normal, a Relu or Clip for a cut of it (Nagel et al., Data-free
quantization, arXiv:1906.04721, section 4.2 and appendix C). Summands are taken for independent, and their sum for
normal again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit
from graphpress.graph.movement import interval
from graphpress.graph.quantized import decodes, encodes
from graphpress.graph.statistics import read_statistics


@dataclass(frozen=True, eq=False)
class Expected:
    """Of the elements of a value, by channel (axis 1).

    Attributes:
        mean: float64 [channels].
        variance: float64 [channels]; NaN where it is not known.
    """

    mean: np.ndarray
    variance: np.ndarray

    def clipped(self, low: float, high: float) -> Expected:
        """Of normal numbers, each put into an interval."""
        from scipy.special import ndtr

        std = np.sqrt(self.variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (low - self.mean) / std, (high - self.mean) / std
        p, q = (np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi) for t in (a, b))
        below, above, inside = ndtr(a), ndtr(-b), ndtr(b) - ndtr(a)
        first, second = p - q, inside + _times(a, p) - _times(b, q)  # of z and z^2, z standard normal, from a to b
        mean = self.mean * inside + std * first + _times(low, below) + _times(high, above)
        square = self.mean**2 * inside + 2 * self.mean * std * first + self.variance * second
        square += _times(low**2, below) + _times(high**2, above)
        still = self.variance == 0
        return Expected(
            np.where(still, np.clip(self.mean, low, high), mean),
            np.where(still, 0.0, np.maximum(square - mean**2, 0.0)),
        )

    def mapped(self, by: Callable[[np.ndarray], np.ndarray]) -> Expected:
        """The same done to both."""
        return Expected(by(self.mean), by(self.variance))


def _times(x: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Their product, 0 where the share is, be x infinite."""
    return np.asarray(np.where(share > 0, x, 0.0) * share)


Known = Mapping[ir.Value, Expected]


def expected(graph: ir.Graph) -> Known:
    """Every value of a graph of which BatchNormalization tells something, through what stands in between."""
    known: dict[ir.Value, Expected] = {}
    for node in graph:
        made = _told(node) or _made(node, known)
        if made is not None and np.isfinite(made.mean).all():
            known[node.outputs[0]] = made
    return known


def _told(node: ir.Node) -> Expected | None:
    """By the note of a BatchNormalization that was folded, or by one that stands."""
    noted = read_statistics(node)
    if noted is not None:
        return Expected(noted[0], noted[1] ** 2)
    if node.op_type != "BatchNormalization" or node.domain or edit.attribute(node, "training_mode", 0):
        return None
    parts = [edit.constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parts):
        return None
    gamma, beta, _, var = (np.asarray(p, np.float64).ravel() for p in parts)
    return Expected(beta, gamma**2 * var / (var + edit.attribute(node, "epsilon", 1e-5)))


def _made(node: ir.Node, known: Known) -> Expected | None:
    """By what is known of its inputs."""
    given = [known.get(v) if v is not None else None for v in node.inputs]
    first = given[0] if given else None
    if encodes(node) or decodes(node) or (node.op_type, node.domain) == ("DynamicQuantizeLinear", ""):
        return first
    rule = _RULES.get(node.op_type) if not node.domain else None
    if node.op_type == "Concat" and edit.attribute(node, "axis") == 1 and given and all(given):
        return _joined([g for g in given if g is not None])
    if rule is None or first is None:
        return None
    return rule(node, first, known)


def _joined(parts: list[Expected]) -> Expected:
    return Expected(np.concatenate([p.mean for p in parts]), np.concatenate([p.variance for p in parts]))


def _same(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    return x


def _cut(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    ends = interval(node)
    return x.clipped(*ends) if ends is not None else None


def _sum(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    other = known.get(node.inputs[1]) if node.inputs[1] is not None else None
    if other is None or len(other.mean) != len(x.mean) or not _alike(node):
        return None
    return Expected(x.mean + other.mean, x.variance + other.variance)


def _alike(node: ir.Node) -> bool:
    """Whether a sum repeats nothing along its axes."""
    ranks = {len(v.shape) for v in node.inputs if v is not None and v.shape is not None}
    return len(ranks) == 1


def _pooled(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    """Means stay, unless zeros of a border are among what is averaged; how the sum of neighbours varies is unknown."""
    padded = any(edit.attribute(node, "pads") or ()) and edit.attribute(node, "count_include_pad", 0)
    return None if padded else Expected(x.mean, np.full_like(x.mean, np.nan))


def _reduced(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    axes = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else edit.attribute(node, "axes")
    if axes is None or not _spatial(axes, node.inputs[0]):
        return None
    return Expected(x.mean, np.full_like(x.mean, np.nan))


def _sliced(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    axes = edit.constant(node.inputs[3]) if len(node.inputs) > 3 else edit.attribute(node, "axes")
    return x if axes is not None and _spatial(axes, node.inputs[0]) else None


def _spatial(axes: object, value: ir.Value | None) -> bool:
    rank = len(value.shape) if value is not None and value.shape is not None else None
    return rank is not None and all(a % rank >= 2 for a in np.asarray(axes, int).ravel())


def _padded(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    """New channels of zeros; a border of zeros makes elements of one channel unlike."""
    pads = edit.constant(node.inputs[1]) if len(node.inputs) > 1 else edit.attribute(node, "pads")
    fill = edit.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if pads is None or fill is None or fill.any() or edit.attribute(node, "mode", "constant") != "constant":
        return None
    ends = np.asarray(pads, int).reshape(2, -1)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    if (ends < 0).any() or ends[:, [i for i in range(ends.shape[1]) if i != 1]].any():
        return None
    return x.mapped(lambda a: np.pad(a, tuple(ends[:, 1])))


def _as_row(node: ir.Node, x: Expected, known: Known) -> Expected | None:
    """[N, C, *size] as [N, C * size]: each channel as often as it has places."""
    given, made = node.inputs[0], node.outputs[0]
    if given is None or given.shape is None or made.shape is None or len(made.shape) < 2:
        return None
    if len(made.shape) > 2:
        return x if made.shape[1] == len(x.mean) else None
    size = made.shape[1]
    if not isinstance(size, int) or size % len(x.mean) or given.shape[1] != len(x.mean):
        return None
    return x.mapped(lambda a: np.repeat(a, size // len(x.mean)))


_RULES: Mapping[str, Callable[[ir.Node, Expected, Known], Expected | None]] = {
    **dict.fromkeys(("Identity", "Dropout", "Cast"), _same),
    **dict.fromkeys(("Relu", "Clip"), _cut),
    "Add": _sum,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), _pooled),
    "ReduceMean": _reduced,
    "Slice": _sliced,
    "Pad": _padded,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze"), _as_row),
}
