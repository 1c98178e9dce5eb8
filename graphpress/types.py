"""The vocabulary: granularity, scheme, site, plan, numerics class, stage. Frozen values, JSON both ways.

A *site* is a named edge (node, input or output slot, role). A *scheme* says how the tensor on that edge is
stored. A *plan* maps sites to schemes: every search returns one, ``apply-plan`` writes one into the graph.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from graphpress.errors import BadRequest, nearest


class Numerics(enum.StrEnum):
    """What a pass promises about the outputs of the model."""

    EXACT = "exact"  # the same function; only the order of float additions may differ
    CLOSE = "close"  # the same function in real arithmetic, re-associated or fused
    LOSSY = "lossy"  # the function changes: quantization, pruning


class Stage(enum.StrEnum):
    """Where a graph stands on its way to a runtime."""

    FLOAT = "float"  # no quantization written yet
    QDQ = "qdq"  # quantization stands in the graph as Q/DQ (weights float behind Q -> DQ until folded)
    LOWERED = "lowered"  # rewritten for one target; no portable pass may run any more


class Role(enum.StrEnum):
    """What the tensor on an edge is to its node."""

    WEIGHT = "weight"  # a constant input
    ACTIVATION = "activation"  # a computed input
    OUTPUT = "output"  # an output of the node


class Kind(enum.StrEnum):
    """The families of granularity."""

    TENSOR = "per_tensor"
    CHANNEL = "per_channel"
    GROUP = "per_group"
    TOKEN = "per_token"


@dataclass(frozen=True, order=True)
class Granularity:
    """How many scales a tensor has.

    ``axis`` is the axis that keeps its own scales (per_channel) or that is cut into groups (per_group);
    ``group_size`` counts elements along it. per_token has one scale for each row of the last axis, computed at
    run time.
    """

    kind: Kind = Kind.TENSOR
    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if (self.axis is None) != (self.kind in (Kind.TENSOR, Kind.TOKEN)):
            raise BadRequest(
                f"{self.kind} {'takes no' if self.axis is not None else 'needs an'} axis", where="granularity"
            )
        if (self.group_size is None) != (self.kind is not Kind.GROUP):
            raise BadRequest("group_size goes with per_group only, and per_group needs it", where="granularity")

    def __str__(self) -> str:
        parts = [str(self.kind)] + [str(v) for v in (self.axis, self.group_size) if v is not None]
        return ":".join(parts)

    @classmethod
    def parse(cls, text: str, axes: Mapping[Kind, int | None] = MappingProxyType({})) -> Granularity:
        """The inverse of ``str``: ``per_tensor``, ``per_channel:0``, ``per_group:1:64``, ``per_token``.

        ``per_channel`` and ``per_group:64`` leave the axis to ``axes``.

        Raises:
            BadRequest: It says anything else, or has no axis to go along.
        """
        kind, *numbers = text.split(":")
        if kind in axes and len(numbers) == (kind == Kind.GROUP):
            if (axis := axes[Kind(kind)]) is None:
                raise BadRequest(f"{kind} needs an axis, and the operator has none that goes without saying")
            numbers = [str(axis), *numbers]
        try:
            return cls(Kind(kind), *(int(n) for n in numbers))
        except (ValueError, TypeError) as e:
            raise BadRequest(f"unknown granularity {text!r}", fix=nearest(kind, [k.value for k in Kind])) from e


PER_TENSOR = Granularity()
PER_TOKEN = Granularity(Kind.TOKEN)


def per_channel(axis: int) -> Granularity:
    """One scale for each index of ``axis``."""
    return Granularity(Kind.CHANNEL, axis)


def per_group(axis: int, group_size: int) -> Granularity:
    """One scale for each ``group_size`` consecutive elements along ``axis``."""
    return Granularity(Kind.GROUP, axis, group_size)


Integer: TypeAlias = Literal["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"]
SmallFloat: TypeAlias = Literal["float8e4m3fn", "float8e5m2"]
ActivationType: TypeAlias = Literal[Integer, SmallFloat]
WeightType: TypeAlias = Literal[Integer, "int3", "ternary", "binary", SmallFloat]


@dataclass(frozen=True)
class Storage:
    """A type of codes: the one table of them.

    Attributes:
        name: As schemes have it.
        bits, low, high: Of the codes; of floats the largest numbers.
        opset, onnx: The first opset whose Q/DQ has it; the ONNX type, whose range may be wider.
        floating: Whether codes are floats: numbers in scales, not evenly spaced.
        dense: Where a file packs codes (``ops.dense_codes``): how many a byte of each plane holds.
    """

    name: str
    bits: int
    low: int
    high: int
    opset: int
    onnx: str
    floating: bool = False
    dense: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str) -> Storage:
        """The type of a name.

        Raises:
            BadRequest: There is none.
        """
        if name not in STORAGE:
            raise BadRequest(f"unknown storage type {name!r}", fix=nearest(name, STORAGE))
        return STORAGE[name]

    @classmethod
    def of_codes(cls, dtype: ir.DataType | None) -> Storage | None:
        """The type whose codes an ONNX type holds; None for types that are no codes of at most 16 bits."""
        return None if dtype is None else STORAGE.get(dtype.name.lower())

    @property
    def stored_bits(self) -> int:
        """Of one code in a tensor of the ONNX type."""
        return STORAGE[self.onnx].bits

    def file_bits(self, count: int) -> int:
        """What a file takes for so many codes, in whole bytes."""
        return sum(8 * -(-count // n) for n in self.dense) if self.dense else 8 * -(-count * self.stored_bits // 8)


def _storage(name: str, bits: int, opset: int) -> Storage:
    low = 0 if name.startswith("u") else -(1 << (bits - 1))
    return Storage(name, bits, low, low + (1 << bits) - 1, opset, name)


STORAGE = {
    s.name: s
    for s in (
        _storage("int8", 8, 13),
        _storage("uint8", 8, 13),
        _storage("int16", 16, 21),
        _storage("uint16", 16, 21),
        _storage("int4", 4, 21),
        Storage("int3", 3, -4, 3, 21, "int4", dense=(4, 8)),
        _storage("uint4", 4, 21),
        _storage("int2", 2, 25),
        _storage("uint2", 2, 25),
        Storage("ternary", 2, -1, 1, 21, "int4", dense=(5,)),
        Storage("binary", 1, -1, 1, 21, "int4", dense=(8,)),
        Storage("float8e4m3fn", 8, -448, 448, 19, "float8e4m3fn", floating=True),
        Storage("float8e5m2", 8, -57344, 57344, 19, "float8e5m2", floating=True),
    )
}
AFFINE = "affine"  # the quantizer of schemes that name none
_QUANTIZER = "quantizer="


@dataclass(frozen=True)
class Scheme:
    """How one tensor is stored: integer type, granularity, and how its scale is found.

    Attributes:
        dtype: Storage type: int8, uint8, int16, uint16, int4, uint4, int2, uint2; for weights some codes of an int4
            tensor: int3 (-4 to 3), ternary (-1, 0, 1), binary (-1, 1). Activations at run time by token: int8 or int4,
            in int8 tensors. float8e4m3fn, float8e5m2: 8-bit floats in scales, symmetric.
        granularity: How many scales; axes are of the stored tensor.
        symmetric: zero_point fixed at the middle of the range (0 for signed types).
        dynamic: The scale is computed at run time (activations only).
        observer: How the range is found where it is not dynamic (``observe.observers.OBSERVERS`` for activations,
            ``quantizers`` for weights): minmax, moving_average, percentile, mse, entropy.
        quantizer: The number format, by the name of its file in ``passes/quantizers``, with options that are not the
            default behind a colon: ``affine`` (evenly spaced), ``power:exponent=0.5``.
    """

    dtype: str = "int8"
    granularity: Granularity = PER_TENSOR
    symmetric: bool = True
    dynamic: bool = False
    observer: str = "minmax"
    quantizer: str = AFFINE

    def __post_init__(self) -> None:
        Storage.of(self.dtype)
        if self.granularity.kind is Kind.TOKEN and not self.dynamic:
            raise BadRequest("per_token scales exist only at run time", where="scheme", fix="Set dynamic.")

    @property
    def bits(self) -> int:
        return STORAGE[self.dtype].bits

    @property
    def qmin(self) -> int:
        return STORAGE[self.dtype].low

    @property
    def qmax(self) -> int:
        return STORAGE[self.dtype].high

    @property
    def signed(self) -> bool:
        return self.qmin < 0

    @property
    def floating(self) -> bool:
        """Whether codes are small floats."""
        return STORAGE[self.dtype].floating

    @property
    def storage(self) -> str:
        """The ONNX type of the codes: what a runtime sees and a file holds."""
        return STORAGE[self.dtype].onnx

    @property
    def ir_dtype(self) -> ir.DataType:
        return ir.DataType[self.storage.upper()]

    @property
    def opset(self) -> int:
        """The lowest default-domain opset whose Q/DQ expresses this scheme."""
        return max(STORAGE[self.dtype].opset, 21 if self.granularity.kind is Kind.GROUP else 13)

    def __str__(self) -> str:
        flags = ["sym" if self.symmetric else "asym"] + (["dynamic"] if self.dynamic else [self.observer])
        flags += [f"{_QUANTIZER}{self.quantizer}"] if self.quantizer != AFFINE else []
        return f"{self.dtype} {self.granularity} {' '.join(flags)}"

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The inverse of ``str``: ``int4 per_group:0:64 sym mse``, ``int8 per_token sym dynamic``.

        A quantizer other than affine stands at the end: ``quantizer=power:exponent=0.5``.

        Raises:
            BadRequest: It says anything else.
        """
        made = cls().altered(text)
        if str(made) != " ".join(text.split()):
            raise BadRequest(f"{text!r} is no scheme", fix="Write it as 'int4 per_group:0:64 sym mse'.")
        return made

    def altered(self, text: str, axes: Mapping[Kind, int | None] = MappingProxyType({})) -> Scheme:
        """What the words of ``text`` say put in place: a type, a granularity (``axes`` may give its axis), sym or asym,
        dynamic, an observer, ``quantizer=NAME``.

        Raises:
            BadRequest: No such type or granularity.
        """
        made = self
        for word in text.split():
            made = dataclasses.replace(made, **_said(word, axes))
        return made

    def to_json(self) -> dict[str, Any]:
        data = vars(self) | {"granularity": str(self.granularity)}
        if self.quantizer == AFFINE:
            del data["quantizer"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scheme:
        return cls(**(dict(data) | {"granularity": Granularity.parse(data["granularity"])}))


def _said(word: str, axes: Mapping[Kind, int | None]) -> dict[str, Any]:
    """The fields of a scheme that a word of its text is about."""
    if word in ("sym", "asym"):
        return {"symmetric": word == "sym"}
    if word == "dynamic":
        return {"dynamic": True}
    if word.startswith("per_"):
        granularity = Granularity.parse(word, axes)
        return {"granularity": granularity, "dynamic": granularity.kind is Kind.TOKEN}
    if word.startswith(_QUANTIZER):
        return {"quantizer": word.removeprefix(_QUANTIZER)}
    return {"dtype" if "int" in word or word in STORAGE else "observer": word}


_SITE = re.compile(r"(?P<node>.+)\[(?P<slot>\d+)\] (?P<role>weight|activation|output)")


@dataclass(frozen=True, order=True)
class Site:
    """A quantizable place: input ``slot`` of the node (weight, activation) or output ``slot`` (output).

    Node names are unique over the whole model, subgraphs included: the frontends see to it.
    """

    node: str
    slot: int
    role: Role

    def __str__(self) -> str:
        return f"{self.node}[{self.slot}] {self.role}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The inverse of ``str``: ``conv1[1] weight``."""
        m = _SITE.fullmatch(text)
        if m is None:
            raise BadRequest(f"{text!r} is not a site", fix="Write it as 'node[slot] weight|activation|output'.")
        return cls(m["node"], int(m["slot"]), Role(m["role"]))


@dataclass(frozen=True)
class Plan(Mapping[Site, Scheme]):
    """What is to be stored how. A site that is absent stays float.

    ``ties`` are sets of sites that must share one scale and zero point (data movement, Concat inputs).
    """

    schemes: Mapping[Site, Scheme] = field(default_factory=dict)
    ties: tuple[frozenset[Site], ...] = ()

    def __getitem__(self, site: Site) -> Scheme:
        return self.schemes[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.schemes)

    def __len__(self) -> int:
        return len(self.schemes)

    def __hash__(self) -> int:
        return hash((frozenset(self.schemes.items()), self.ties))

    def nodes(self) -> list[str]:
        """Names of the nodes that the plan touches, in order of first appearance."""
        return list(dict.fromkeys(s.node for s in self.schemes))

    def of(self, node: str) -> dict[Site, Scheme]:
        """The part of the plan that concerns one node."""
        return {s: v for s, v in self.schemes.items() if s.node == node}

    def without(self, nodes: Iterable[str]) -> Plan:
        """The plan with these nodes back in float."""
        gone = set(nodes)
        kept = {s: v for s, v in self.schemes.items() if s.node not in gone}
        ties = tuple(t for tie in self.ties if len(t := frozenset(s for s in tie if s in kept)) > 1)
        return Plan(kept, ties)

    def merge(self, other: Mapping[Site, Scheme]) -> Plan:
        """This plan with the other's entries added or put in place of its own."""
        ties = other.ties if isinstance(other, Plan) else ()
        return Plan({**self.schemes, **other}, self.ties + tuple(t for t in ties if t not in self.ties))

    def diff(self, other: Plan) -> dict[Site, tuple[Scheme | None, Scheme | None]]:
        """Sites whose scheme differs, with (mine, theirs)."""
        sites = dict.fromkeys([*self, *other])
        return {s: (self.get(s), other.get(s)) for s in sites if self.get(s) != other.get(s)}

    def to_json(self) -> dict[str, Any]:
        return {
            "sites": {str(s): v.to_json() for s, v in self.schemes.items()},
            "ties": sorted(sorted(str(s) for s in t) for t in self.ties),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        schemes = {Site.parse(s): Scheme.from_json(v) for s, v in data["sites"].items()}
        return cls(schemes, tuple(frozenset(map(Site.parse, t)) for t in data.get("ties", ())))

    def __str__(self) -> str:
        return json.dumps(self.to_json(), indent=1)
