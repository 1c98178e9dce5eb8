"""What a runtime on one kind of machine computes in integers: a table of capabilities, read from targets/*.json.

The table holds what probes saw on the installed runtime (``backends/ort/probe.py``); a test holds the two equal.
Nothing is probed on load.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress import shipped
from graphpress.errors import BadRequest, nearest
from graphpress.graph import edit
from graphpress.types import Kind, Role, Scheme, Site

_NATIVE = "native"  # in a table: the activation type that is fast on this machine


@dataclass(frozen=True)
class Capability:
    """One kernel and what it takes.

    Attributes:
        op: The operator that it computes.
        mode: ``static`` (calibrated ranges), ``dynamic`` (ranges found at run time), ``weight`` (low-bit weights only).
        kernel: The operator that runs in the end; "" where weights are stored low-bit and restored to float once, at
            load: smaller, not faster.
        activation: Storage types of computed inputs; a constant in an activation slot is stored like one.
        activation_granularity: Kinds of granularity of computed inputs.
        activation_slots: Inputs that hold activations; empty means every input.
        weight: Storage types of constant inputs.
        weight_granularity: Kinds of granularity of weights.
        weight_axis: The axis of per_channel or per_group, negative from the end; None where any will do.
        weight_slots: Inputs that hold weights. A computed tensor in one is an activation.
        output: ``required`` (a trailing Q makes the kernel), ``optional``, ``none`` (it gives floats), ``same`` (data
            movement: the output has the scale and zero point of the input) or ``absorbed`` (the following Q clips
            already, so the node goes).
        conditions: ``attr:NAME==VALUE`` (the attribute is absent or equal), ``absent:SLOT``, ``constant:SLOT``,
            ``group_size:16,32`` (of per_group weights).
    """

    op: str
    mode: str
    kernel: str
    activation: tuple[str, ...] = ()
    activation_granularity: tuple[str, ...] = ("per_tensor",)
    activation_slots: tuple[int, ...] = (0,)
    weight: tuple[str, ...] = ()
    weight_granularity: tuple[str, ...] = ()
    weight_axis: int | None = None
    weight_slots: tuple[int, ...] = ()
    output: str = "none"
    conditions: tuple[str, ...] = ()

    def violation(self, node: ir.Node, schemes: Mapping[Site, Scheme]) -> str | None:
        """The first rule that ``node`` under ``schemes`` breaks, or None."""
        return next(_violations(self, node, schemes), None)


@dataclass(frozen=True)
class Target:
    """A runtime, one of its providers, and the machine it runs on.

    Attributes:
        activation_dtype: The integer type of static activations that is fast here: uint8 on x86, int8 on ARM.
        isa: ``x86-64``, ``x86-64+vnni`` or ``arm64``.
        opsets: First and last default-domain opset at which every capability was seen.
        probed_with: Version of the runtime that the table was probed with.
        weight_only_accuracy_level: ``accuracy_level`` of MatMulNBits where activations were left float. 0 computes in
            float (2 and 8 bits are then restored to float at load: their float kernel is 3 to 30 times slower than
            fp32); 4 rounds activations to int8 by block: faster for few tokens, no longer weight-only.
        exact_codes: Largest magnitude of signed weight codes whose products with 8-bit activations are exact on this
            machine; None where all are. Without VNNI x86 adds pairs of u8 x s8 products in 16 bits, which saturate:
            255 * (64 + 64) is the last sum that fits.
    """

    name: str
    runtime: str
    provider: str
    activation_dtype: str
    isa: str
    capabilities: tuple[Capability, ...]
    opsets: tuple[int, int] = (13, 21)
    probed_with: str = ""
    weight_only_accuracy_level: int = 0
    exact_codes: int | None = None
    _by_op: dict[tuple[str, str], tuple[Capability, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, name: str, isa: str | None = None) -> Target:
        """Read ``targets/NAME.json`` for this machine, or for another ``isa``.

        Raises:
            BadRequest: There is no such target, or it does not know the machine.
        """
        return _load(name, isa or _isa())

    def find(self, op_type: str, mode: str) -> tuple[Capability, ...]:
        """The capabilities of an operator in one mode, best first."""
        if not self._by_op:
            for c in self.capabilities:
                self._by_op[c.op, c.mode] = (*self._by_op.get((c.op, c.mode), ()), c)
        return self._by_op.get((op_type, mode), ())

    @property
    def saturates(self) -> bool:
        """Whether sums of u8 x s8 products can be wrong on this machine: see ``exact_codes``."""
        return self.exact_codes is not None

    def allows(self, node: ir.Node, schemes: Mapping[Site, Scheme]) -> str | None:
        """Why ``node`` would not run on a low-bit kernel under ``schemes``, or None if it would.

        ``schemes`` may be a whole plan: a missing trailing Q is made good by readers that all quantize their input.
        """
        mine = {s: v for s, v in schemes.items() if s.node == node.name}
        if not mine:
            return "nothing of it is quantized"
        mode = _mode(mine)
        found = self.find(node.op_type, mode) if node.domain == "" else ()
        if not found:
            return f"{self.name} has no {mode} kernel for {node.op_type}"
        broken = [c.violation(node, schemes) for c in found]
        return None if None in broken else broken[0]


def _mode(schemes: Mapping[Site, Scheme]) -> str:
    activations = [v for s, v in schemes.items() if s.role is not Role.WEIGHT]
    if not activations:
        return "weight"
    return "dynamic" if any(v.dynamic for v in activations) else "static"


def _violations(c: Capability, node: ir.Node, schemes: Mapping[Site, Scheme]) -> Iterator[str]:
    yield from (why for text in c.conditions if (why := condition(text, node, schemes)))
    for slot in c.activation_slots or range(len(node.inputs)):
        yield from _activation(c, node, slot, schemes)
    for slot in c.weight_slots:
        yield from _weight(c, node, slot, schemes)
    if c.output == "required" and not _output_quantized(node, schemes):
        yield "its output is not quantized (no trailing Q)"


def _activation(c: Capability, node: ir.Node, slot: int, schemes: Mapping[Site, Scheme]) -> Iterator[str]:
    if c.mode == "weight" or slot >= len(node.inputs) or node.inputs[slot] is None:
        return
    scheme = _scheme(schemes, node, slot)
    if scheme is None:
        yield f"input {slot} stays float"
    elif scheme.dtype not in c.activation:
        yield f"input {slot} is {scheme.dtype}, {c.kernel or 'it'} takes {' or '.join(c.activation)}"
    elif scheme.granularity.kind not in c.activation_granularity:
        yield f"input {slot} is {scheme.granularity}, {c.kernel} takes {' or '.join(c.activation_granularity)}"


def _weight(c: Capability, node: ir.Node, slot: int, schemes: Mapping[Site, Scheme]) -> Iterator[str]:
    if slot >= len(node.inputs) or node.inputs[slot] is None:
        return
    scheme = _scheme(schemes, node, slot)
    if scheme is None:
        yield f"input {slot} stays float"
        return
    if Site(node.name or "", slot, Role.ACTIVATION) in schemes:
        if scheme.dtype not in c.activation or scheme.granularity.kind not in c.activation_granularity:
            yield f"computed input {slot} is {scheme}, the kernel takes {' or '.join(c.activation)}"
        return
    g = scheme.granularity
    if scheme.storage not in c.weight:
        yield f"weights are {scheme.dtype}, {c.kernel or c.op} takes {' or '.join(c.weight)}"
    elif g.kind not in c.weight_granularity:
        yield f"weights are {g}, {c.kernel or c.op} takes {' or '.join(c.weight_granularity)}"
    elif g.axis is not None and c.weight_axis is not None and not _same_axis(g.axis, c.weight_axis, node.inputs[slot]):
        yield f"weights are {g}, {c.kernel or c.op} wants axis {c.weight_axis}"


def _scheme(schemes: Mapping[Site, Scheme], node: ir.Node, slot: int) -> Scheme | None:
    name = node.name or ""
    return schemes.get(Site(name, slot, Role.ACTIVATION)) or schemes.get(Site(name, slot, Role.WEIGHT))


def _same_axis(a: int, b: int, value: ir.Value | None) -> bool:
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return a == b or (rank > 0 and a % rank == b % rank)


def _output_quantized(node: ir.Node, schemes: Mapping[Site, Scheme]) -> bool:
    if Site(node.name or "", 0, Role.OUTPUT) in schemes:
        return True
    uses = [u for v in node.outputs for u in v.uses()]
    return bool(uses) and all(Site(u.node.name or "", u.idx, Role.ACTIVATION) in schemes for u in uses)


def condition(text: str, node: ir.Node, schemes: Mapping[Site, Scheme]) -> str | None:
    """Why one of a capability's conditions does not hold for ``node``, or None if it does."""
    kind, _, rest = text.partition(":")
    if kind == "attr":
        name, _, want = rest.partition("==")
        have = edit.attribute(node, name)
        return None if have is None or _text(have) == want else f"{name} is {_text(have)}, the kernel wants {want}"
    if kind in ("absent", "constant"):
        value = node.inputs[int(rest)] if int(rest) < len(node.inputs) else None
        fine = value is None if kind == "absent" else edit.is_constant(value)
        return (
            None
            if fine
            else f"input {rest} is {'given' if kind == 'absent' else 'computed'}, the kernel wants it {kind}"
        )
    weights = [v for s, v in schemes.items() if s.node == node.name and s.role is Role.WEIGHT]
    sizes = [v.granularity.group_size for v in weights if v.granularity.kind is Kind.GROUP]
    return None if all(str(n) in rest.split(",") for n in sizes) else f"group size {sizes[0]}, the kernel takes {rest}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


@functools.cache
def _isa() -> str:
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return "arm64"
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "x86-64+vnni" if {"avx512_vnni", "avx_vnni"} & set(flags) else "x86-64"


@functools.cache
def _load(name: str, isa: str) -> Target:
    known = shipped.targets()
    if name not in known:
        raise BadRequest("there is no such target", where=f"target {name!r}", fix=nearest(name, known))
    data = json.loads(known[name])
    if isa not in data["activation_dtype"]:
        raise BadRequest(f"does not know the machine {isa!r}", where=f"target {name!r}")
    native = data["activation_dtype"][isa]
    return Target(
        name=name,
        runtime=data["runtime"],
        provider=data["provider"],
        activation_dtype=native,
        isa=isa,
        capabilities=tuple(_capability(c, native) for c in data["capabilities"]),
        opsets=tuple(data["opsets"]),
        probed_with=data["probed_with"],
        weight_only_accuracy_level=data["weight_only_accuracy_level"],
        exact_codes=data.get("exact_codes", {}).get(isa),
    )


def _capability(data: Mapping[str, Any], native: str) -> Capability:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    values["activation"] = tuple(native if d == _NATIVE else d for d in values.get("activation", ()))
    return Capability(**values)
