"""Prove what runs in torch: for each site what torch dispatched, its time, or the rule that stopped a kernel."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from graphpress.backends import macs
from graphpress.backends.audited import Audit, AuditRow, Conversion, made_up_feeds, size_only
from graphpress.backends.fx.choice import DENSE, REFUSED
from graphpress.backends.fx.kernels.base import Kernel
from graphpress.backends.fx.lower import execute
from graphpress.backends.fx.values import NODE
from graphpress.backends.macs import Shapes
from graphpress.graph import edit, quantized
from graphpress.keys import SCHEME
from graphpress.runner import Arrays
from graphpress.target import Target

BUDGET, MOST_RUNS = 0.3, 10  # seconds of repeated runs, the fastest counts
_WORTH_A_ROW = 0.01  # share of time from which on a node has a row even if nothing about it is quantized
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeToken", "Cast")
_SMALL_TALK = (
    "view",
    "detach",
    "alias",
    "t",
    "transpose",
    "permute",
    "expand",
    "empty",
    "_to_copy",
    "unsqueeze",
    "slice",
)


@dataclass
class Dispatched:
    """One fx node as it ran: operators that torch dispatched, seconds of the fastest run, shapes in and out."""

    ops: list[str] = field(default_factory=list)
    seconds: float = float("inf")
    inputs: Shapes = field(default_factory=list)
    outputs: Shapes = field(default_factory=list)

    @property
    def kernel(self) -> str:
        """The operator that did the work: a product if there is one, else the last that is more than a view."""
        products = [o for o in self.ops if any(word in o for word in ("linear", "conv", "mm", "attention", "dot"))]
        work = [o for o in self.ops if o.partition("::")[2].partition(".")[0] not in _SMALL_TALK]
        return (products or work or self.ops or ["none"])[-1]


def audit(model: ir.Model, target: Target, feeds: Arrays | None = None) -> Audit:
    """Run a lowered model node by node and read back what torch did at every site.

    Args:
        model: A model for this target.
        target: Where it runs.
        feeds: Inputs; made up where absent (zeros for integers, 1 for open dimensions).

    Raises:
        BadRequest: The feeds do not fit the model, or the device is not there.
        Unsupported: An operator has no form in torch.
    """
    given = made_up_feeds(model) if feeds is None else feeds
    runner = execute(model, target=target)
    runner(given)  # refuses what does not fit, in words of its own
    ran = _run(runner.module, runner.arguments(given))
    return _TorchAuditor(model, target, runner.module, ran).audit(given)


class _Seen(TorchDispatchMode):
    """Notes the operators that reach torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(func.name())
        return func(*args, **(kwargs or {}))


class _Interpreter(fx.Interpreter):
    """Runs a module node by node and keeps what each did."""

    def __init__(
        self, module: fx.GraphModule, around: Callable[[fx.Node, Dispatched], contextlib.AbstractContextManager[Any]]
    ):
        super().__init__(module)
        self.ran: dict[str, Dispatched] = {}
        self.around = around

    def run_node(self, n: fx.Node) -> Any:
        ran = self.ran.setdefault(n.name, Dispatched())
        with self.around(n, ran):
            result = super().run_node(n)
        if not ran.outputs and n.op in ("call_function", "call_module", "call_method"):
            ran.inputs = _shapes(self.map_nodes_to_values(n.args, n))
            ran.outputs = _shapes(result)
        return result


def _run(module: fx.GraphModule, arguments: list[Any]) -> dict[str, Dispatched]:
    """Once to see what is dispatched, then for time as long as the budget lasts."""
    interpreter = _Interpreter(module, _dispatched)
    with torch.no_grad():
        interpreter.run(*arguments)
        interpreter.around = _timed
        end = time.perf_counter() + BUDGET
        for i in range(MOST_RUNS):
            if i < 2 or time.perf_counter() < end:
                interpreter.run(*arguments)
    return interpreter.ran


@contextlib.contextmanager
def _dispatched(node: fx.Node, ran: Dispatched) -> Iterator[None]:
    with _Seen() as seen:
        yield
    ran.ops = seen.ops


@contextlib.contextmanager
def _timed(node: fx.Node, ran: Dispatched) -> Iterator[None]:
    _wait()
    start = time.perf_counter()
    yield
    _wait()
    ran.seconds = min(ran.seconds, time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _shapes(values: Any) -> Shapes:
    flat: list[Any] = []
    fx.node.map_aggregate(values if isinstance(values, tuple | list) else (values,), flat.append)
    return [(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for v in flat if isinstance(v, torch.Tensor)]


class _TorchAuditor:
    def __init__(self, model: ir.Model, target: Target, module: fx.GraphModule, ran: dict[str, Dispatched]) -> None:
        self.model, self.target, self.module, self.ran = model, target, module, ran
        self.nodes = {n.meta[NODE]: n for n in module.graph.nodes if NODE in n.meta}
        self.refused: dict[str, str] = module.meta.get(REFUSED, {})
        self.dense: dict[str, str] = module.meta.get(DENSE, {})
        self.total = sum(r.seconds for r in ran.values() if r.seconds < float("inf")) or 1e-12

    def audit(self, feeds: Arrays) -> Audit:
        rows = [row for node in edit.nodes(self.model) if (row := self.row(node)) is not None]
        device = torch.cuda.get_device_name() if self.target.provider == "cuda" else platform.machine()
        return Audit(
            target=self.target.name,
            isa=f"{self.target.isa}, {device}",
            runtime=f"torch {torch.__version__}",
            sites=tuple(rows),
            conversions=tuple(self.conversions()),
            microseconds=1e6 * self.total,
            feeds={k: f"{np.asarray(v).dtype}{list(np.shape(v))}" for k, v in feeds.items()},
        )

    def row(self, node: ir.Node) -> AuditRow | None:
        made = self.nodes.get(node.name or "")
        if made is None or node.op_type in (*_CONVERSIONS, "Constant", "Shape") or quantized.decodes(node):
            return None
        ran = self.ran[made.name]
        work = macs.multiply_adds(node, macs.KernelRun(node.name or "", node.op_type, 0.0, [(ran.inputs, ran.outputs)]))
        verdict, reason = self.verdict(node, made)
        share = ran.seconds / self.total
        if verdict == "float" and not work and share < _WORTH_A_ROW:
            return None
        scheme = node.metadata_props.get(SCHEME, "")
        return AuditRow(
            node.name or "", node.op_type, scheme, verdict, ran.kernel, reason, 1e6 * ran.seconds, share, work
        )

    def verdict(self, node: ir.Node, made: fx.Node) -> tuple[str, str]:
        kernel = self.module.get_submodule(str(made.target)) if made.op == "call_module" else None
        if isinstance(kernel, Kernel):
            sparse = kernel.kind == "sparse"
            return kernel.verdict, kernel.reason if sparse else size_only(node, kernel.reason, "torch")
        if (why := self.dense.get(node.name or "")) is not None:
            return "float", size_only(node, why, "torch")
        if (why := self.refused.get(node.name or "")) is not None:
            return "fallback", why
        if SCHEME in node.metadata_props:
            return (
                "fallback",
                f"{self.target.name} has no kernel for {node.op_type}: computed exactly from its codes, in float",
            )
        return "float", ""

    def conversions(self) -> Iterator[Conversion]:
        """What still changes types between sites, and whom it serves."""
        graph_nodes = {n.name: n for n in edit.nodes(self.model)}
        for name, made in self.nodes.items():
            node = graph_nodes.get(name)
            if node is not None and node.op_type in _CONVERSIONS and made.op == "call_function":
                source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
                sinks = [u.node.name for v in node.outputs for u in v.uses()]
                seconds = self.ran[made.name].seconds
                yield Conversion(
                    node.op_type, (source.name or "") if source else "", sinks[0] or "" if sinks else "", 1e6 * seconds
                )
