"""What there is to decide: which operators are one variable, which formats each may take, and the plan of a choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graphpress.contracts import Skip
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.allocate import formats, ties
from graphpress.passes.allocate.formats import FLOAT
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.kernels import refusal
from graphpress.passes.quantize.plan import make_plan
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.passes.quantize.wide_range import Wide
from graphpress.target import Target
from graphpress.types import Plan, Role, Scheme, Site

Schemes = Mapping[Site, Scheme]


@dataclass(frozen=True)
class Group:
    """Operators that get one format together, in order of the graph, and the formats that all of them can take.

    ``formats`` begins with ``float``; formats that would write the same are listed once, under the first name.
    """

    nodes: tuple[str, ...]
    formats: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.nodes[0]


@dataclass
class Space:
    """The groups, what each format writes at each operator, and why operators are left out."""

    model: ir.Model
    target: Target | None
    options: dict[str, QuantizeOptions]
    own: dict[str, dict[str, Schemes]] = field(default_factory=dict)  # node -> format -> its sites
    groups: list[Group] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    light: dict[str, Schemes] = field(default_factory=dict)  # operators without weights that may join static ones
    wide: Mapping[str, Wide] = field(default_factory=dict)  # operators that must not read 8 bits

    @property
    def static(self) -> str | None:
        """The format whose activations have calibrated ranges; all such formats have the same."""
        return next((n for n, o in self.options.items() if o.mode == "static"), None)

    def nodes(self) -> dict[str, ir.Node]:
        """The operators to decide on, in order of the graph."""
        return {n.name: n for n in self.model.graph if n.name in self.own}

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """The formats besides float of each operator that are worth measuring."""
        return {n: g.formats[1:] for g in self.groups for n in g.nodes}

    def is_static(self, node: str, name: str) -> bool:
        """Whether ``node`` in format ``name`` reads calibrated activations."""
        sites = self.own[node].get(name, {})
        return any(s.role is not Role.WEIGHT and not v.dynamic for s, v in sites.items())

    def plan(self, choice: Mapping[str, str]) -> Plan:
        """The plan in which each operator of ``choice`` has its format and all others are float.

        Operators without weights between statically quantized ones join them as in ``quantize``.
        """
        chosen = {n: f for n, f in choice.items() if f != FLOAT}
        static = {n for n, f in chosen.items() if self.is_static(n, f)}
        plan = self._flow(static) if static else Plan()
        for node, name in chosen.items():
            sites = self.own[node][name]
            fixed = {s: v for s, v in sites.items() if s.role is Role.WEIGHT or s not in plan}
            plan = plan.merge(fixed)
        return plan

    def _flow(self, static: set[str]) -> Plan:
        """The static plan of these operators alone, with the operators between them."""
        assert self.static is not None
        others = [n for n in self.own if n not in static]
        options = self.options[self.static]
        if others:
            options = replace(options, ignore=(f"re:{'|'.join(map(re.escape, others))}", *options.ignore))
        return make_plan(self.model, self.target, options, wide=self.wide)[0]


def explore(
    model: ir.Model,
    target: Target | None,
    names: Sequence[str],
    ignore: Sequence[str],
    tied: Sequence[str],
    wide: Mapping[str, Wide] = {},
) -> Space:
    """Find the groups and their formats.

    Args:
        model: Float; not changed.
        target: Decides which formats run on its kernels; None: all that can be written.
        names: Formats to choose from besides ``float``.
        ignore: Selectors of operators that stay float.
        tied: What makes operators one group, see ``ties.groups``.
        wide: Operators that must not read their input in 8 bits: they get formats of the weights alone.

    Raises:
        BadRequest: A name that is no format, static formats that disagree on activations, a selector without a match,
            or no operator that any of the formats could be given.
    """
    options = {n: replace(formats.parse(n), ignore=tuple(ignore)) for n in names if n != FLOAT}
    space = Space(model, target, options, wide=wide)
    _check_static(options)
    heavy = {n.name or "": n for n in model.graph if n.domain == "" and n.op_type in operators.WEIGHTS}
    why: dict[str, str] = {}
    whole = Plan()
    for name, option in options.items():
        plan, skips = make_plan(model, target, option, wide=wide)
        whole = plan if name == space.static else whole
        for node in heavy:
            if (option.mode == "weight" or node not in wide) and (sites := plan.of(node)):
                space.own.setdefault(node, {})[name] = _bare(heavy[node], sites, target)
        why |= {s.where: s.why for s in skips if s.where in heavy}
    space.skips = [Skip(n, w) for n, w in why.items() if n not in space.own] + _hidden(model)
    if not space.own:
        raise BadRequest(
            "no operator can take any of the formats", where=f"allocate: formats {', '.join(options)}",
            fix=f"The first says: {space.skips[0].where}: {space.skips[0].why}." if space.skips else "",
        )  # fmt: skip
    space.own = {n: space.own[n] for n in heavy if n in space.own}
    space.light = {n: whole.of(n) for n in whole.nodes() if n in _light(model)}
    found = ties.groups([heavy[n] for n in space.own], whole, tied)
    space.groups = [Group(g, _common(space, g)) for g in found]
    return space


def _light(model: ir.Model) -> set[str]:
    return {n.name or "" for n in model.graph if n.domain == "" and n.op_type in operators.LIGHT}


def _common(space: Space, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Formats that all nodes can take; of those that write the same, the first."""
    seen: list[list[Schemes]] = []
    found = [FLOAT]
    for name in space.options:
        if all(name in space.own[n] for n in nodes):
            sites = [space.own[n][name] for n in nodes]
            if sites not in seen:
                seen.append(sites)
                found.append(name)
    return tuple(found)


def _bare(node: ir.Node, sites: Schemes, target: Target | None) -> Schemes:
    """The sites without an output that the kernel could do without: its neighbours decide about that one."""
    out = Site(node.name or "", 0, Role.OUTPUT)
    without = {s: v for s, v in sites.items() if s != out}
    optional = refusal(target, node, without) is None if target else node.op_type in ("MatMul", "Gemm")
    return without if optional else sites


def _check_static(options: Mapping[str, QuantizeOptions]) -> None:
    static = [o for o in options.values() if o.mode == "static"]
    if len({(o.activation, o.activation_symmetric, o.observer) for o in static}) > 1:
        raise BadRequest("static formats must agree on activations", where="allocate: option 'formats'")


def _hidden(model: ir.Model) -> list[Skip]:
    main = {n.name for n in model.graph}
    why = "it is in a body, which is not measured site by site"
    inner = (n for n in edit.nodes(model) if n.domain == "" and n.op_type in operators.WEIGHTS)
    return [Skip(n.name or "", why) for n in inner if n.name not in main and not operators.is_table(n)]
