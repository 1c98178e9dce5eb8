"""The same quantized graph in ONNX Runtime and in torch, site by site: by how many quantization steps do codes differ?

Torch runs node by node, and after each node goes on from ONNX Runtime's value, so that every site is judged on the same
inputs and differences do not add up.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx as torch_fx

from graphpress.backends import reference
from graphpress.backends.audited import made_up_feeds
from graphpress.backends.fx import dtypes
from graphpress.backends.fx.kernels.base import Kernel
from graphpress.backends.fx.lower import execute
from graphpress.backends.fx.values import NODE, VALUE
from graphpress.report.html import drawn
from graphpress.report.tables import Table
from graphpress.runner import Arrays
from graphpress.target import Target

_CLOSE = 1e-5  # of the largest magnitude: floats that differ by less are the same


@dataclass(frozen=True)
class ParityRow:
    """One value that both runtimes give.

    Attributes:
        node: Whose it is; for a kernel that stands for several nodes, the product.
        value: Its name in the graph.
        kernel: Whether a low-bit kernel made it.
        dtype: Its ONNX type.
        elements: How many it has.
        differing: How many of them are not equal; of floats, by more than 1e-5 of the largest magnitude.
        worst: Largest difference: in quantization steps for integers, over the largest magnitude for floats.
    """

    node: str
    value: str
    kernel: bool
    dtype: str
    elements: int
    differing: int
    worst: float


@dataclass(frozen=True)
class Parity:
    """All values of the main graph that torch makes, in its order."""

    target: str
    rows: tuple[ParityRow, ...]

    @property
    def codes(self) -> tuple[ParityRow, ...]:
        """The rows of integers of at most 16 bits: quantized values."""
        return tuple(r for r in self.rows if r.dtype.lstrip("U").startswith("INT") and r.dtype[-2:] not in ("32", "64"))

    @property
    def worst_step(self) -> float:
        return max((r.worst for r in self.codes), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "worst_step": self.worst_step,
            "rows": [dataclasses.asdict(r) for r in self.rows],
        }

    def _repr_html_(self) -> str:
        return drawn(self.tables())

    def tables(self) -> list[Table]:
        shown = [r for r in self.rows if r.kernel or r in self.codes]
        rows = [
            (r.node, r.dtype, "kernel" if r.kernel else "", f"{r.elements:,}", f"{r.differing:,}", f"{r.worst:.3g}")
            for r in shown
        ]
        head = [
            ("quantized values compared", f"{sum(r.elements for r in self.codes):,} at {len(self.codes)} sites"),
            ("of them different", f"{sum(r.differing for r in self.codes):,}"),
            ("largest difference", f"{self.worst_step:g} quantization steps"),
        ]
        columns = ("node", "type", "", "elements", "different", "by at most (steps; floats: of the largest)")
        return [Table("Sites", columns, rows), Table(f"Parity of {self.target} with ONNX Runtime", ("", ""), head)]


def parity(model: ir.Model, target: Target, feeds: Arrays | None = None) -> Parity:
    """Compare every value that torch gives for a model with that of ONNX Runtime, optimisation off.

    Args:
        model: A portable model.
        target: A torch target.
        feeds: Inputs; made up where absent.

    Raises:
        BadRequest: The feeds do not fit the model, or the device is not there.
        Unsupported: A runtime has no form of an operator.
    """
    feeds = made_up_feeds(model) if feeds is None else feeds
    runner = execute(model, target=target)
    made = [n.meta[VALUE] for n in runner.module.graph.nodes if VALUE in n.meta and n.op != "placeholder"]
    expected = reference.execute(model, list(dict.fromkeys(made)))(feeds)
    types = {v.name: v.dtype.name if v.dtype else None for n in model.graph for v in n.outputs}
    lockstep = _Lockstep(runner.module, expected, types, runner.device)
    with torch.no_grad():
        lockstep.run(*runner.arguments(feeds))
    return Parity(target.name, tuple(lockstep.rows))


class _Lockstep(torch_fx.Interpreter):
    """Compares what each fx node gives, then goes on from what it should have given."""

    def __init__(
        self, module: torch_fx.GraphModule, expected: Arrays, types: dict[Any, str | None], device: str
    ) -> None:
        super().__init__(module)
        self.expected, self.types, self.device = expected, types, device
        self.rows: list[ParityRow] = []

    def run_node(self, n: torch_fx.Node) -> Any:
        result = super().run_node(n)
        name = n.meta.get(VALUE)
        if name not in self.expected or not isinstance(result, torch.Tensor):
            return result
        wanted, kind = self.expected[name], self.types.get(name)
        given = dtypes.to_numpy(result, kind)
        kernel = n.op == "call_module" and isinstance(self.module.get_submodule(str(n.target)), Kernel)
        self.rows.append(
            ParityRow(n.meta.get(NODE) or name, name, kernel, kind or str(wanted.dtype), *_compare(given, wanted))
        )
        return dtypes.from_numpy(np.ascontiguousarray(wanted), kind or "FLOAT").to(self.device, result.dtype)


def _compare(given: np.ndarray, wanted: np.ndarray) -> tuple[int, int, float]:
    """(elements, how many differ, the largest difference)."""
    if wanted.dtype.kind in "biu":
        steps = np.abs(given.astype(np.int64) - wanted.astype(np.int64))
        return steps.size, int((steps > 0).sum()), float(steps.max(initial=0))
    a, b = given.astype(np.float64), wanted.astype(np.float64)
    errors = np.abs(np.where(a == b, 0.0, a - b)) / max(float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), 1e-30)
    return errors.size, int((errors > _CLOSE).sum()), float(errors.max(initial=0.0))
