"""The rooms and who imports whom, drawn from the imports in the source: a mermaid graph and a table of the packages."""

from __future__ import annotations

import ast
from collections.abc import Collection

import networkx as nx

from graphpress.tools.check.directions import imported, room
from graphpress.tools.check.rooms import Source


def arrows(sources: Collection[Source]) -> list[tuple[str, str]]:
    """(room, a room that it imports), without those that follow from others; core is imported by all."""
    modules = {s.module for s in sources}
    graph = nx.DiGraph()
    for source in sources:
        here = room(source.module)
        graph.add_node(here)
        for _, name in imported(source.tree, modules):
            if name.partition(".")[0] == "graphpress" and room(name) != here:
                graph.add_edge(here, room(name))
    return sorted(nx.transitive_reduction(graph).edges)


def drawing(sources: Collection[Source]) -> str:
    """The rooms as a mermaid flowchart; an arrow goes from who imports to what is imported."""
    edges = arrows(sources)
    names = sorted({name for edge in edges for name in edge})
    key = {name: name.replace(".", "_") for name in names}
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {key[name]}["{name.replace(".", "/")}"]' for name in names]
    lines += [f"    {key[a]} --> {key[b]}" for a, b in edges]
    return "\n".join([*lines, "```"])


def packages(sources: Collection[Source]) -> str:
    """Every folder with the first sentence that it says of itself."""
    lines = ["| folder | room | what |", "|---|---|---|"]
    for source in sources:
        if source.path.name == "__init__.py":
            about = (ast.get_docstring(source.tree) or "").split("\n\n")[0].replace("\n", " ")
            lines.append(f"| `{source.module}` | {room(source.module).replace('.', '/')} | {about} |")
    return "\n".join(lines)
