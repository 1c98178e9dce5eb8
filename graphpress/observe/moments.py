"""Second moments of what linear layers read: the Hessians of GPTQ, SparseGPT and their kin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest, StaleSite, nearest
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.observe.im2col import Window
from graphpress.observe.inner import stream
from graphpress.runner import Arrays, Executor, Progress, quiet

_ELEMENTS = 1 << 22  # of unfolded rows that are held at a time
_BATCH = 8  # samples in a run
WIDE = 4096  # inputs above which moments are float32: at 8,192 a matrix takes 256 MB
_PANEL = 512  # of their rows that are added to at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """What is remembered of the rows x that a layer multiplies its weight with.

    Attributes:
        matrix: [groups, K, K], the mean of ``x x^T`` over tokens (positions, for a Conv); K is
            in / groups * prod(kernel), in the order of the weight's own elements. float64, of very wide layers float32.
        count: Tokens.
    """

    matrix: np.ndarray
    count: int

    def error(self, difference: np.ndarray) -> float:
        """Mean over tokens of ``|D x|^2``, summed over output channels.

        Args:
            difference: D, [out, K] or the weight's own shape [out, in / groups, *kernel].
        """
        groups, width, _ = self.matrix.shape
        rows = difference.astype(self.matrix.dtype).reshape(groups, -1, width)
        if self.matrix.dtype == np.float64:
            return float(np.einsum("gok,gok->", rows @ self.matrix, rows))
        parts = (rows[:, i : i + _PANEL] for i in range(0, rows.shape[1], _PANEL))
        return sum(float(np.sum((part @ self.matrix) * part, dtype=np.float64)) for part in parts)


@dataclass(frozen=True)
class Collected(Mapping[str, Moments]):
    """The outcome: node name -> Moments.

    Attributes:
        found: By node; nodes that read one value in one way share one object.
        unobserved: Nodes whose input cannot be seen or never was, with the reason.
    """

    found: Mapping[str, Moments] = field(default_factory=dict)
    unobserved: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Moments:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class Rows:
    """The rows that a MatMul, Gemm or Conv reads. Equal ones of one value are the same rows."""

    value: str
    window: Window | None = None

    @classmethod
    def of(cls, node: ir.Node) -> Rows:
        """What a node with a weight at input 1 reads from input 0."""
        assert node.inputs[0] is not None
        name = node.inputs[0].name or ""
        return cls(name, Window.of(node, _kernel(node))) if node.op_type == "Conv" else cls(name)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[groups, tokens, K] of the value's array."""
        return x.reshape(1, -1, x.shape[-1]) if self.window is None else self.window.rows(x)


def _kernel(node: ir.Node) -> Sequence[int]:
    given = edit.attribute(node, "kernel_shape")
    if given is not None:
        return tuple(given)
    value = node.inputs[1]
    assert value is not None and value.shape is not None, "the weight of a Conv has a known shape"
    return tuple(value.shape.numpy()[2:])


class Sum:
    """A running sum of second moments."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None
        self.count = 0
        self.found: Moments | None = None

    def update(self, rows: Rows, x: np.ndarray) -> None:
        """Add one batch of the value that ``rows`` reads; elements that are not finite count as 0."""
        assert self.found is None, "the moments were taken"
        if not x.size:
            return  # of a body that did not run
        step = len(x) if rows.window is None else max(1, _ELEMENTS // max(x[:1].size * _taps(rows.window), 1))
        for i in range(0, len(x), max(step, 1)):
            unfolded = rows(x[i : i + step])
            parts = unfolded.astype(np.float32 if unfolded.shape[-1] > WIDE else np.float64)
            if not np.isfinite(parts.sum()):  # one pass, where all are finite
                parts = np.nan_to_num(parts, posinf=0.0, neginf=0.0)
            self._add(parts)
            self.count += parts.shape[1]

    def _add(self, parts: np.ndarray) -> None:
        groups, _, width = parts.shape
        if width <= WIDE:
            product = np.stack([part.T @ part for part in parts])
            self.total = product if self.total is None else self.total + product
            return
        if self.total is None:
            self.total = np.zeros((groups, width, width), np.float32)
        for total, part in zip(self.total, parts, strict=True):
            for start, end in _panels(width):  # up to the diagonal
                total[start:end, :end] += part[:, start:end].T @ part[:, :end]

    def moments(self) -> Moments:
        """The mean; nothing can be added any more."""
        if self.found is None:
            assert self.total is not None
            width = self.total.shape[-1]
            self.total /= max(self.count, 1)
            for start, end in _panels(width) if width > WIDE else ():
                lower = np.tril(self.total[:, start:end, :end], start)
                self.total[:, :end, start:end] = np.swapaxes(lower, 1, 2)
                self.total[:, start:end, start:end] += np.tril(lower[:, :, start:], -1)
            self.found = Moments(self.total, self.count)
        return self.found


def _panels(width: int) -> Iterator[tuple[int, int]]:
    return ((i, min(i + _PANEL, width)) for i in range(0, width, _PANEL))


def add_up(sums: Mapping[Rows, Sum], batches: Iterable[Arrays]) -> None:
    """Add what each of ``sums`` reads, batch by batch."""
    for values in batches:
        for rows, total in sums.items():
            total.update(rows, values[rows.value])


def _taps(window: Window) -> int:
    return int(np.prod(window.kernel))


def collect_moments(
    model: ir.Model,
    sites: Sequence[str],
    data: CalibrationData,
    execute: Executor,
    *,
    batch_size: int = _BATCH,
    progress: Progress = quiet,
) -> Collected:
    """Second moments of the input of each site, over all of ``data``.

    Only the inputs leave the runtime, a batch at a time. The input is what the graph as it stands gives: behind
    quantization nodes, the quantized one.

    Args:
        model: Not changed.
        sites: Names of MatMul, Gemm and Conv nodes of any graph; input 0 is read, input 1 is the weight.
        data: Bound to the model here.
        execute: Builds the runner; several runs of it are under way at a time.
        batch_size: Samples a run.
        progress: Shows the batches.

    Raises:
        StaleSite: The model has no such node.
        BadRequest: It is no MatMul, Gemm or Conv.
        CalibrationError: The data does not fit the model.
    """
    nodes = {n.name or "": n for n in edit.nodes(model)}
    reads = {name: _rows(nodes, name) for name in sites}
    seen = stream(model, [r.value for r in reads.values()], data, execute, batch_size=batch_size, progress=progress)
    sums = {r: Sum() for r in reads.values() if r.value not in seen.unobserved}
    add_up(sums, seen.batches)
    found = {rows: total.moments() for rows, total in sums.items() if total.count}
    never = "no element of its input was seen: its branch never ran"
    lost = {name: seen.unobserved.get(r.value, never) for name, r in reads.items() if r not in found}
    return Collected({name: found[r] for name, r in reads.items() if r in found}, lost)


def _rows(nodes: Mapping[str, ir.Node], name: str) -> Rows:
    node = nodes.get(name)
    if node is None:
        raise StaleSite("the graph has no such node", where=f"node {name!r}", fix=nearest(name, nodes))
    if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain != "":
        raise BadRequest(f"a {node.op_type} has no moments", where=f"node {name!r}")
    return Rows.of(node)
