"""What one kernel takes, as data: operator, mode, storage types, granularities and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.types import Kind, Role, Scheme, Site

MODES = ("static", "dynamic", "weight")
OUTPUTS = ("required", "optional", "none", "same", "absorbed")
Schemes: TypeAlias = Mapping[Site, Scheme]


@dataclass(frozen=True)
class AttributeIs:
    """The attribute is absent or equal."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"attr:{self.name}=={self.value}"

    def broken(self, node: ir.Node, schemes: Schemes) -> str | None:
        have = edit.attribute(node, self.name)
        if have is None or _text(have) == self.value:
            return None
        return f"{self.name} is {_text(have)}, the kernel wants {self.value}"


@dataclass(frozen=True)
class InputIs:
    """An input is not given (``absent``), or is a constant (absent counts as one: ``constant``)."""

    what: str
    slot: int

    def __str__(self) -> str:
        return f"{self.what}:{self.slot}"

    def broken(self, node: ir.Node, schemes: Schemes) -> str | None:
        value = node.inputs[self.slot] if self.slot < len(node.inputs) else None
        if value is None or (self.what == "constant" and edit.is_constant(value)):
            return None
        have = "given" if self.what == "absent" else "computed"
        return f"input {self.slot} is {have}, the kernel wants it {self.what}"


@dataclass(frozen=True)
class GroupSizes:
    """Weights by group have one of these group sizes."""

    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"group_size:{','.join(map(str, self.sizes))}"

    def broken(self, node: ir.Node, schemes: Schemes) -> str | None:
        weights = [v for s, v in schemes.items() if s.node == node.name and s.role is Role.WEIGHT]
        groups = [v.granularity.group_size for v in weights if v.granularity.kind is Kind.GROUP]
        wrong = next((n for n in groups if n not in self.sizes), None)
        if wrong is None:
            return None
        return f"group size {wrong}, the kernel takes {','.join(map(str, self.sizes))}"


Condition: TypeAlias = AttributeIs | InputIs | GroupSizes


def condition(text: str) -> Condition:
    """``attr:NAME==VALUE``, ``absent:SLOT``, ``constant:SLOT`` or ``group_size:16,32`` as a value.

    Raises:
        BadRequest: It is none of these.
    """
    kind, _, rest = text.partition(":")
    name, equals, value = rest.partition("==")
    if kind == "attr" and name and equals and value:
        return AttributeIs(name, value)
    if kind in ("absent", "constant") and rest.isdecimal():
        return InputIs(kind, int(rest))
    if kind == "group_size" and all(n.isdecimal() for n in rest.split(",")):
        return GroupSizes(tuple(int(n) for n in rest.split(",")))
    what = "is no condition: attr:NAME==VALUE, absent:SLOT, constant:SLOT or group_size:16,32"
    raise BadRequest(what, where=f"condition {text!r}")


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
        conditions: What else must hold of a node and its weights.
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
    conditions: tuple[Condition, ...] = ()

    def violation(self, node: ir.Node, schemes: Schemes) -> str | None:
        """The first rule that ``node`` under ``schemes`` breaks, or None."""
        return next(_violations(self, node, schemes), None)

    def violations(self, node: ir.Node, schemes: Schemes) -> list[str]:
        """All of them."""
        return list(_violations(self, node, schemes))

    def unmet(self, node: ir.Node, schemes: Schemes | None = None) -> str | None:
        """The first condition that does not hold for ``node``, or None."""
        return next(self._unmet(node, schemes or {}), None)

    def _unmet(self, node: ir.Node, schemes: Schemes) -> Iterator[str]:
        return (why for c in self.conditions if (why := c.broken(node, schemes)))


_CHOICES = {"mode": MODES, "output": OUTPUTS}
_STORAGE = frozenset(f"{u}int{n}" for u in ("", "u") for n in (2, 4, 8, 16)) | {"float8e4m3fn", "float8_e4m3fn"}


def capability(data: Mapping[str, Any], native: str) -> Capability:
    """One entry of a target's table; ``native`` stands for the fast activation type of the machine.

    Raises:
        BadRequest: A field is unknown, missing, or has a value that it does not take.
    """
    known = Capability.__dataclass_fields__
    if missing := {"op", "mode", "kernel"} - data.keys():
        raise BadRequest(f"lacks {', '.join(sorted(missing))}", where="capability")
    where = f"capability {data['op']} {data['mode']} {data['kernel']}".strip()
    if unknown := data.keys() - known:
        raise BadRequest(f"has no field {', '.join(sorted(unknown))}", where=where, fix=f"Known: {', '.join(known)}.")
    values = {k: _field(k, v, where) for k, v in data.items()}
    values["activation"] = tuple(native if d == "native" else d for d in values.get("activation", ()))
    for key in ("activation", "weight"):
        if wrong := set(values.get(key, ())) - _STORAGE:
            raise BadRequest(f"{key} is {', '.join(sorted(wrong))}, which is no storage type", where=where)
    try:
        values["conditions"] = tuple(condition(c) for c in values.get("conditions", ()))
    except BadRequest as e:
        raise BadRequest(e.what, where=f"{where}: {e.where}") from e
    return Capability(**values)


def _field(key: str, value: Any, where: str) -> Any:
    if key in ("op", "mode", "kernel", "output"):
        fits, wanted = isinstance(value, str), "text"
    elif key == "weight_axis":
        fits, wanted = isinstance(value, int), "a number"
    else:
        kind, wanted = (int, "a list of numbers") if key.endswith("_slots") else (str, "a list of words")
        fits = isinstance(value, list) and all(isinstance(v, kind) for v in value)
    if fits and key in _CHOICES and value not in _CHOICES[key]:
        fits, wanted = False, f"one of {', '.join(_CHOICES[key])}"
    if not fits:
        raise BadRequest(f"{key} is {value!r}, not {wanted}", where=where)
    return tuple(value) if isinstance(value, list) else value


def _violations(c: Capability, node: ir.Node, schemes: Schemes) -> Iterator[str]:
    yield from c._unmet(node, schemes)
    for slot in c.activation_slots or range(len(node.inputs)):
        yield from _activation(c, node, slot, schemes)
    for slot in c.weight_slots:
        yield from _weight(c, node, slot, schemes)
    if c.output == "required" and not _output_quantized(node, schemes):
        yield "its output is not quantized (no trailing Q)"


def _activation(c: Capability, node: ir.Node, slot: int, schemes: Schemes) -> Iterator[str]:
    if c.mode == "weight" or slot >= len(node.inputs) or node.inputs[slot] is None:
        return
    scheme = _scheme(schemes, node, slot)
    if scheme is None:
        yield f"input {slot} stays float"
    elif scheme.dtype not in c.activation:
        yield f"input {slot} is {scheme.dtype}, {c.kernel or 'it'} takes {' or '.join(c.activation)}"
    elif scheme.granularity.kind not in c.activation_granularity:
        yield f"input {slot} is {scheme.granularity}, {c.kernel} takes {' or '.join(c.activation_granularity)}"


def _weight(c: Capability, node: ir.Node, slot: int, schemes: Schemes) -> Iterator[str]:
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


def _scheme(schemes: Schemes, node: ir.Node, slot: int) -> Scheme | None:
    name = node.name or ""
    return schemes.get(Site(name, slot, Role.ACTIVATION)) or schemes.get(Site(name, slot, Role.WEIGHT))


def _same_axis(a: int, b: int, value: ir.Value | None) -> bool:
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return a == b or (rank > 0 and a % rank == b % rank)


def _output_quantized(node: ir.Node, schemes: Schemes) -> bool:
    if Site(node.name or "", 0, Role.OUTPUT) in schemes:
        return True
    uses = [u for v in node.outputs for u in v.uses()]
    return bool(uses) and all(Site(u.node.name or "", u.idx, Role.ACTIVATION) in schemes for u in uses)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
