"""Selectors: how a user names nodes. An exact name, a glob (``*`` and ``?``), or ``re:`` and a regular expression.

A selector is held against the whole node name and the whole module scope (``graphpress.scope``). One that matches
nothing is an error: a typing mistake must not leave a model other than asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from graphpress.errors import BadRequest, nearest
from graphpress.keys import SCOPE


def compile_selector(selector: str) -> re.Pattern[str]:
    """The pattern that a whole name must match.

    Raises:
        BadRequest: A regular expression that cannot be read.
    """
    if not selector.startswith("re:"):
        return re.compile(re.escape(selector).replace(r"\*", ".*").replace(r"\?", "."))
    try:
        return re.compile(selector[3:])
    except re.error as e:
        raise BadRequest(f"not a regular expression: {e}", where=f"selector {selector!r}") from e


def exactly(name: str) -> str:
    """The selector of this one name, whatever characters it holds."""
    return f"re:{re.escape(name)}"


def match(selector: str, nodes: Iterable[ir.Node], where: str) -> list[ir.Node]:
    """The nodes that a selector names, in order.

    Args:
        selector: The text.
        nodes: Where to look.
        where: The option that holds the selector, for the error.

    Raises:
        BadRequest: It matches nothing (the nearest name is offered), or cannot be read.
    """
    nodes, pattern = list(nodes), compile_selector(selector)
    found = [n for n in nodes if any(pattern.fullmatch(name) for name in _names(n))]
    if not found:
        known = {name for n in nodes for name in _names(n)}
        raise BadRequest("matches no node", where=f"{where}: selector {selector!r}", fix=_offer(selector, known))
    return found


def _names(node: ir.Node) -> tuple[str, ...]:
    return tuple(n for n in (node.name, node.metadata_props.get(SCOPE)) if n)


def _offer(selector: str, known: set[str]) -> str:
    text = nearest(selector.removeprefix("re:"), known)
    return text if text.startswith("Did") else f"There are {len(known)} names, such as {', '.join(sorted(known)[:3])}."
