"""Who may import whom: core <- ops <- quantizers, structure <- pass families <- searches and recovery; core, ops <-
frontends, backends; the face sees all. Allocation and recovery decide and repair what the other families write, and
equalization rehearses it.

The imports are read from the source, so one inside a function or under TYPE_CHECKING counts as well.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

import networkx as nx

from graphpress.tools.check.rooms import Source

_FACE = (
    "budgets",
    "bundle",
    "compile",
    "engine",
    "hold_drop",
    "job",
    "models",
    "own_noise",
    "remedy",
    "step_ranges",
    "student",
    "training",
)
_SHOWN = ("inspection", "view.view")
FACE = {
    "graphpress",
    *(f"graphpress.report.{name}" for name in _SHOWN),
    *(f"graphpress.job.{name}" for name in _FACE),
}
ABOVE = {"passes.allocate", "passes.equalize", "passes.recover"}  # families that stand on the others
ALL = {"core", "ops", "quantizers", "structure", "frontends", "backends", "face"}  # and every pass family
MAY: dict[str, set[str]] = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "quantizers": {"core", "ops", "quantizers"},
    "structure": {"core", "ops", "structure"},
    "family": {"core", "ops", "quantizers", "structure"},
    "frontends": {"core", "ops", "frontends"},
    "backends": {"core", "ops", "backends"},
    "face": ALL,
    "tools": ALL | {"tools"},
}


def room(module: str) -> str:
    """The room of a graphpress module; a pass family is ``passes.<family>``."""
    top, _, rest = module.removeprefix("graphpress.").partition(".")
    if module in FACE:
        return "face"
    if top == "passes":
        family = rest.partition(".")[0]
        return family if family in {"quantizers", "structure"} else f"passes.{family}"
    return top if top in {"ops", "frontends", "backends", "tools"} else "core"


def imported(tree: ast.Module, modules: Collection[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; ``from a import b`` is module ``a.b`` where there is one, else ``a``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(base), names=names):
                for alias in names:
                    full = f"{base}.{alias.name}"
                    yield node.lineno, full if full in modules else base
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield node.lineno, name


def for_checking(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of each import of a module of ours that stands under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            inside = imported(ast.Module(node.body, []), ())
            yield from ((line, name) for line, name in inside if name.partition(".")[0] == "graphpress")


def violations(sources: Collection[Source]) -> list[str]:
    """``path:line: who may not import whom`` for each import that goes against the direction."""
    modules = {s.module for s in sources}
    wrong: dict[str, None] = {}
    for source in sources:
        here = room(source.module)
        allowed = MAY["family" if here.startswith("passes.") else here]
        for line, name in imported(source.tree, modules):
            if name.partition(".")[0] == "tests":
                wrong[f"{source.path}:{line}: nothing imports tests"] = None
            if name.partition(".")[0] != "graphpress":
                continue
            there = room(name)
            family = there.startswith("passes.")
            above = here in {"face", "tools"} or (here in ABOVE and there not in ABOVE)
            seen = there in allowed or there == here or (family and above)
            if not seen:
                wrong[f"{source.path}:{line}: {here} may not import {name} ({there})"] = None
    return list(wrong)


def circles(sources: Collection[Source]) -> list[list[str]]:
    """The sets of modules that import one another in a circle, at any depth."""
    modules = {s.module for s in sources}
    graph = nx.DiGraph(
        (s.module, name) for s in sources for _, name in imported(s.tree, modules) if name in modules - {s.module}
    )
    return sorted(sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1)
