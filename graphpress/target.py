"""What a runtime on one kind of machine computes in integers: a table of capabilities, read from targets/*.json.

The table holds what probes saw on the installed runtime (``backends/ort/probe.py``); a test holds the two equal.
Nothing is probed on load. A JSON file of the user's own is read in the same way.
"""

from __future__ import annotations

import enum
import functools
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress import shipped
from graphpress.capability import Capability, Schemes, capability
from graphpress.errors import BadRequest, nearest
from graphpress.graph.movement import TABLE
from graphpress.types import Role, Scheme, Site

ISAS = ("x86-64+vnni", "x86-64", "arm64")
RUNTIMES = ("ort", "fx")


class Fact(enum.StrEnum):
    """What is known of one runtime beside its kernels. No pass and no rule knows a runtime's bugs otherwise."""

    DEQUANTIZES_IN_EVERY_RUN = "dequantizes-in-every-run"
    """A DequantizeLinear of a constant that no kernel reads is computed in every run, or becomes a product that rounds
    activations; the same in plain operators is folded once, at load."""
    ROUNDS_FLOAT_WEIGHTS = "rounds-float-weights"
    """A float weight between DequantizeLinear and QuantizeLinear is rounded to int8, one scale for all channels."""
    SLOW_CAUSAL_MASK = "slow-causal-mask"
    """Masked scores of causal attention become denormal numbers, with which softmax and a product are computed."""
    FAILS_ON_BATCHED_WEIGHTS = "fails-on-batched-weights"
    """A constant batch of matrices with column scales is fused into an integer kernel that fails at run time."""
    MULTIPLIES_UNSIGNED_EXACTLY = "multiplies-unsigned-exactly"
    """Products of u8 x u8 are exact where those of u8 x s8 are not, so that wide weights can be stored unsigned."""
    KEEPS_KERNELS_TO_ITSELF = "keeps-kernels-to-itself"
    """The provider takes whole subgraphs and does not tell what computes them."""


@dataclass(frozen=True)
class Target:
    """A runtime, one of its providers, and the machine it runs on.

    Attributes:
        provider: What a session must really run on; none other takes its place.
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
        wide_moves: Data movement (``graph.movement``) that runs on 16-bit integers, on the target and in the oracle.
        kernels: Operators beyond standard ONNX (of ``com.microsoft``) that a lowered model may name.
        facts: What else is known of the runtime.
        package: What to install where the provider is missing.
        provider_options: Handed to the provider.
        threads_option: The provider's own option for the number of threads; "" where the session's counts.
        phases: Shapes that models are run in, by name: the size of axes of the inputs by name (``observe.shaped``).
        phase: In which shapes models are run: ``decode`` (one token at a time), ``prefill``, or shapes as text; ""
            where in those of the calibration data.
        shapes: Of that phase: latency is measured in them.
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
    wide_moves: frozenset[str] = frozenset()
    kernels: frozenset[str] = frozenset()
    facts: frozenset[Fact] = frozenset()
    package: str = ""
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)
    threads_option: str = ""
    phases: Mapping[str, Mapping[str, int]] = field(default_factory=dict, hash=False)
    phase: str = ""
    shapes: Mapping[str, int] = field(default_factory=dict, hash=False)
    _by_op: dict[tuple[str, str], tuple[Capability, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @classmethod
    def load(cls, name: str | Path, isa: str | None = None) -> Target:
        """Read ``targets/NAME.json``, or a JSON file of your own, for this machine or for another ``isa``.

        A phase of it may stand behind a colon, or shapes: ``ort-cpu:decode``, ``ort-cpu:batch=4,sequence=1``.

        Raises:
            BadRequest: There is no such target, file or phase, it does not know the machine, or something in it is
                wrong.
        """
        parts = _PHASE.fullmatch(str(name))
        assert parts is not None  # every text matches: the phase is optional
        plain, phase = parts.groups()
        found = _load(plain, isa or _isa())
        return found if phase is None else replace(found, phase=phase, shapes=_shapes(found, phase))

    @property
    def title(self) -> str:
        """The name, and the phase where there is one."""
        return f"{self.name}:{self.phase}" if self.phase else self.name

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
        broken = [c.violations(node, schemes) for c in found]
        nearest_by = min(broken, key=len)  # that of transB says nothing where alpha is wrong for all
        return nearest_by[0] if nearest_by else None


_PHASE = re.compile(r"(.*?)(?::([\w-]+|[^:/\\\\]*=[^:/\\\\]*))?", re.DOTALL)


def _shapes(target: Target, phase: str) -> Mapping[str, int]:
    """The sizes of axes in a phase that the target names, or that ``phase`` spells out."""
    if phase in target.phases:
        return target.phases[phase]
    where = f"target {target.name!r}, phase {phase!r}"
    if "=" not in phase:
        fix = f"{nearest(phase, target.phases)} Or write batch=1,sequence=1."
        raise BadRequest("there is no such phase", where=where, fix=fix)
    found = {}
    for part in phase.split(","):
        key, _, size = (word.strip() for word in part.partition("="))
        if not key or not size.isdecimal() or int(size) < 1:
            raise BadRequest(f"{part!r} is no size of an axis", where=where, fix="Write batch=1,sequence=1.")
        found[key] = int(size)
    return found


def _mode(schemes: Schemes) -> str:
    activations = [v for s, v in schemes.items() if s.role is not Role.WEIGHT]
    if not activations:
        return "weight"
    return "dynamic" if any(v.dynamic for v in activations) else "static"


@functools.cache
def _isa() -> str:
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return "arm64"
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "x86-64+vnni" if {"avx512_vnni", "avx_vnni"} & set(flags) else "x86-64"


def _load(name: str, isa: str) -> Target:
    known = shipped.targets()
    if name in known:
        return _parsed(known[name], name, f"target {name!r}", isa)
    if not name.endswith(".json"):
        raise BadRequest("there is no such target", where=f"target {name!r}", fix=nearest(name, known))
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "is no text"
        raise BadRequest(f"cannot be read: {why}", where=f"target {name!r}") from e
    return _parsed(text, Path(name).stem, f"target {name!r}", isa)


@functools.cache
def _parsed(text: str, name: str, where: str, isa: str) -> Target:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise BadRequest(f"is no JSON: {e.msg} in line {e.lineno}", where=where) from e
    if not isinstance(data, dict):
        raise BadRequest("is no JSON object", where=where)
    _check(data, where)
    if isa not in data["activation_dtype"]:
        raise BadRequest(f"does not know the machine {isa!r}", where=where)
    native = data["activation_dtype"][isa]
    try:
        capabilities = tuple(capability(c, native) for c in data["capabilities"])
    except BadRequest as e:
        raise BadRequest(e.what, where=f"{where}: {e.where}", fix=e.fix) from e
    return Target(
        name=name,
        runtime=data["runtime"],
        provider=data["provider"],
        activation_dtype=native,
        isa=isa,
        capabilities=capabilities,
        opsets=tuple(data["opsets"]),
        probed_with=data["probed_with"],
        weight_only_accuracy_level=data["weight_only_accuracy_level"],
        exact_codes=data.get("exact_codes", {}).get(isa),
        wide_moves=frozenset(data.get("wide_moves", ())),
        kernels=frozenset(data.get("kernels", ())),
        facts=frozenset(Fact(name) for name, isas in data.get("facts", {}).items() if isa in isas),
        package=data.get("package", ""),
        provider_options=data.get("provider_options", {}),
        threads_option=data.get("threads_option", ""),
        phases=data.get("phases", {}),
    )


# What a target's file holds: the type, and whether it must be there.
_KEYS: Mapping[str, tuple[type, bool]] = {
    "runtime": (str, True), "provider": (str, True), "probed_with": (str, True), "activation_dtype": (dict, True),
    "opsets": (list, True), "weight_only_accuracy_level": (int, True), "capabilities": (list, True),
    "exact_codes": (dict, False), "wide_moves": (list, False), "kernels": (list, False), "facts": (dict, False),
    "package": (str, False), "provider_options": (dict, False), "threads_option": (str, False),
    "phases": (dict, False),
}  # fmt: skip


def _check(data: Mapping[str, Any], where: str) -> None:
    """Refuse what a target's file cannot mean; capabilities are checked one by one, later."""
    for key in data:
        if key not in _KEYS:
            raise BadRequest(f"has no field {key!r}", where=where, fix=nearest(key, _KEYS))
    for key, (kind, needed) in _KEYS.items():
        if needed and key not in data:
            raise BadRequest(f"lacks {key!r}", where=where)
        if key in data and not isinstance(data[key], kind):
            raise BadRequest(f"{key} is {data[key]!r}, not a JSON {kind.__name__}", where=where)
    _check_values(data, where)


def _check_values(data: Mapping[str, Any], where: str) -> None:
    if data["runtime"] not in RUNTIMES:
        raise BadRequest(f"runtime is {data['runtime']!r}, not one of {', '.join(RUNTIMES)}", where=where)
    opsets = data["opsets"]
    if len(opsets) != 2 or not all(isinstance(n, int) for n in opsets) or opsets[0] > opsets[1]:
        raise BadRequest(f"opsets is {opsets}, not [first, last]", where=where)
    for op in data.get("wide_moves", ()):
        if op not in TABLE:
            raise BadRequest(f"wide_moves names {op!r}, which moves no data", where=where, fix=nearest(op, TABLE))
    facts = data.get("facts", {})
    for machine in (m for of in (data["activation_dtype"], data.get("exact_codes", {}), *facts.values()) for m in of):
        if machine not in ISAS:
            raise BadRequest(f"{machine!r} is no machine", where=where, fix=f"Known: {', '.join(ISAS)}.")
    for fact in facts:
        if fact not in set(Fact):
            raise BadRequest(f"{fact!r} is no known fact", where=where, fix=nearest(fact, [f.value for f in Fact]))
    _check_phases(data.get("phases", {}), where)
    wrong = [c for c in data["capabilities"] if not isinstance(c, dict)]
    if wrong:
        raise BadRequest(f"a capability is {wrong[0]!r}, not a JSON object", where=where)


def _check_phases(phases: Mapping[str, Any], where: str) -> None:
    for phase, shapes in phases.items():
        if not isinstance(shapes, dict) or not all(isinstance(n, int) and n > 0 for n in shapes.values()):
            raise BadRequest(f"phase {phase!r} is {shapes!r}, not sizes of axes by name", where=where)
