"""The map of sites that overrides what was planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphpress.errors import BadRequest, nearest
from graphpress.graph import selectors
from graphpress.passes.quantize import operators
from graphpress.passes.quantize.quantize_options import QuantizeOptions
from graphpress.types import Kind, Plan, Role, Scheme, Site

FLOAT = "float"


def overridden(plan: Plan, options: QuantizeOptions, activation: Scheme, nodes: Iterable[ir.Node]) -> Plan:
    """``plan`` with ``options.sites`` in force: in order, later entries win, whatever the target has kernels for.

    A selector of nodes means all their sites with ``float``, and their weights with a scheme.

    Raises:
        BadRequest: A selector that matches nothing, a slot that is not there, or a scheme that cannot be read.
    """
    by_name = {n.name or "": n for n in nodes}
    for selector, text in options.sites.items():
        where = f"quantize: option 'sites', {selector!r}"
        for site in _sites(selector, text, plan, by_name, where):
            node = by_name[site.node]
            if text.strip() == FLOAT:
                plan = Plan({s: v for s, v in plan.items() if s != site}, _untied(plan, site))
            else:
                base = plan.get(site) or (_weight(node, site.slot, options) if site.role is Role.WEIGHT else activation)
                axes = _axes(node, site.slot) if site.role is Role.WEIGHT else {}
                plan = plan.merge({site: _altered(base, text, axes, where)})
    return plan


def _altered(base: Scheme, text: str, axes: Mapping[Kind, int | None], where: str) -> Scheme:
    try:
        return base.altered(text, axes)
    except BadRequest as e:
        raise BadRequest(e.what, where=where, fix=e.fix) from e


def _sites(selector: str, text: str, plan: Plan, by_name: Mapping[str, ir.Node], where: str) -> list[Site]:
    if (site := _exact(selector, by_name)) is not None:
        node = by_name[site.node]
        slots = node.outputs if site.role is Role.OUTPUT else node.inputs
        if site.slot >= len(slots) or slots[site.slot] is None:
            raise BadRequest(f"{node.op_type} has no such slot", where=where)
        return [site]
    chosen = selectors.match(selector, by_name.values(), where)
    if text.strip() == FLOAT:
        return [s for n in chosen for s in plan.of(n.name or "")]
    found = [s for n in chosen for s in _weights(n)]
    if not found:
        raise BadRequest("none of these nodes has weights", where=where, fix="Name a site: 'node[slot] activation'.")
    return found


def _exact(selector: str, by_name: Mapping[str, ir.Node]) -> Site | None:
    try:
        site = Site.parse(selector)
    except BadRequest:
        return None
    if site.node not in by_name:
        raise BadRequest("there is no such node", where=f"site {selector!r}", fix=nearest(site.node, by_name))
    return site


def _weights(node: ir.Node) -> list[Site]:
    slots = operators.WEIGHTS.get(node.op_type, ()) if node.domain == "" else ()
    roles = operators.operands(node) if slots else {}
    if isinstance(roles, str):
        return []
    return [Site(node.name or "", s, Role.WEIGHT) for s in slots if roles[s] is Role.WEIGHT]


def _weight(node: ir.Node, slot: int, options: QuantizeOptions) -> Scheme:
    return options.weight_scheme(
        operators.granularities(node, slot, Kind(options.weight_granularity), options.group_size)[0]
    )


def _axes(node: ir.Node, slot: int) -> dict[Kind, int | None]:
    return {Kind.CHANNEL: operators.channel_axis(node, slot), Kind.GROUP: operators.group_axis(node, slot)}


def _untied(plan: Plan, site: Site) -> tuple[frozenset[Site], ...]:
    return tuple(t for tie in plan.ties if len(t := tie - {site}) > 1)
