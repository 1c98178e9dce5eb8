"""What an audit says, whatever the runtime: sites with their kernels, conversions between them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.keys import SPARSITY
from graphpress.report.html import drawn
from graphpress.report.tables import Table, percent, scheme


@dataclass(frozen=True)
class AuditRow:
    """One site.

    Attributes:
        node: Name of the node in the lowered graph.
        op: Its operator there.
        scheme: How it was quantized, as the pass noted it.
        verdict: ``integer`` (products of integers), ``weight-only`` (low-bit weights, float products), ``fallback``
            (quantized, yet computed in float), ``float`` (never quantized), ``sparse`` (zeros are left out), ``untold``
            (the runtime does not say).
        kernel: The operator that ran.
        reason: The violated rule of a fallback; how a weight-only site computes.
        microseconds: Of one run, the fastest seen; 0 where it did not run (the other branch of an If).
        share: Of the time of all nodes.
        macs: Multiply-adds in the run.
    """

    node: str
    op: str
    scheme: str
    verdict: str
    kernel: str
    reason: str
    microseconds: float
    share: float
    macs: int


@dataclass(frozen=True)
class Conversion:
    """A change of type or layout between two sites: what it is, its neighbours ("" at the model's edge), its time."""

    op: str
    source: str
    sink: str
    microseconds: float


@dataclass(frozen=True)
class Audit:
    """What ran. ``integer_mac_share`` is None where nothing multiplies."""

    target: str
    isa: str
    runtime: str
    sites: tuple[AuditRow, ...]
    conversions: tuple[Conversion, ...]
    microseconds: float
    feeds: dict[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        return sum(r.macs for r in self.sites)

    @property
    def integer_mac_share(self) -> float | None:
        """None also where the runtime does not tell of all."""
        if any(r.verdict == "untold" and r.macs for r in self.sites):
            return None
        return sum(r.macs for r in self.sites if r.verdict == "integer") / self.macs if self.macs else None

    def _repr_html_(self) -> str:
        return drawn(self.tables())

    def tables(self) -> list[Table]:
        """What a terminal shows: the sum, the sites, the conversions."""
        head = [
            ("runtime", self.runtime), ("target", f"{self.target} ({self.isa})"),
            ("one run", f"{self.microseconds:.0f} µs"), ("multiply-adds", f"{self.macs:,}"),
            ("of them on integer kernels", percent(self.integer_mac_share)),
            *((f"input {name}", what) for name, what in self.feeds.items()),
        ]  # fmt: skip
        sites = [
            (
                r.node,
                r.op,
                scheme(r.scheme),
                r.verdict,
                r.kernel,
                f"{r.microseconds:.0f}",
                percent(r.share),
                r.reason,
            )
            for r in self.sites
        ]
        between = [(c.op, c.source or "-", c.sink or "-", f"{c.microseconds:.0f}") for c in self.conversions]
        return [
            Table("Audit", ("", ""), head),
            Table("Sites", ("site", "op", "scheme", "runs as", "kernel", "µs", "time", "why"), sites),
            Table("Conversions left", ("op", "from", "to", "µs"), between),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data, rows in the order of the graph."""
        figures = {"macs": self.macs, "integer_mac_share": self.integer_mac_share}
        return dataclasses.asdict(self) | figures


def size_only(node: ir.Node, reason: str, runtime: str) -> str:
    """The reason of a row, and that a pattern of zeros saves bytes and no time where the runtime multiplies dense."""
    pattern = node.metadata_props.get(SPARSITY)
    note = f"{pattern} for size only: {runtime} multiplies dense" if pattern else ""
    return "; ".join(part for part in (reason, note) if part)


def made_up_feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs for a model nobody gave data for: normal floats, zeros for integers, 1 for every open dimension.

    Raises:
        BadRequest: An input is no tensor.
    """
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.dtype is None or value.dtype == ir.DataType.STRING or value.shape is None:
            raise BadRequest("no input can be made up for it", where=f"input {value.name!r}", fix="Give feeds.")
        shape = [d if isinstance(d, int) else 1 for d in value.shape]
        dtype = value.dtype.numpy()
        numbers = rng.normal(size=shape) if value.dtype.is_floating_point() else np.zeros(shape)
        feeds[value.name or ""] = numbers.astype(dtype)
    return feeds
