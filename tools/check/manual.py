"""``python -m graphpress.tools.check.manual``: pages about all that the catalog finds, from its docstrings and fields.

They are made when they are wanted and not committed: a new file of any kind would else have to touch a page.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphpress import catalog, options, shipped
from graphpress.observe.sources.kinds import kinds
from graphpress.ops.base import Op
from graphpress.recipe import Recipe
from graphpress.target import Target

OUT = Path("out/manual")


def pages() -> dict[str, str]:
    """File name -> markdown: one page a kind, and an index."""
    about: dict[str, list[tuple[str, str]]] = {
        "passes": [(n, _of_class(c)) for n, c in sorted(catalog.passes().items())],
        "operators": [(n, _of_op(o)) for n, o in sorted(catalog.ops().items())],
        "quantizers": [(n, _of_class(c)) for n, c in sorted(catalog.quantizers().items())],
        "methods": [(n, _of_class(c)) for n, c in sorted(catalog.methods().items())],
        "losses": [(n, _of_class(c)) for n, c in sorted(catalog.losses().items())],
        "adapters": [(n, _of_class(c)) for n, c in sorted(catalog.adapters().items())],
        "metrics": [(n, _of_class(c)) for n, c in sorted(catalog.metrics().items())],
        "sources": [(n, _of_class(c)) for n, c in sorted(kinds().items())],
        "recipes": [(n, _of_recipe(n)) for n in sorted(shipped.recipes())],
        "targets": [(n, _of_target(n)) for n in sorted(shipped.targets())],
    }
    made = {f"{kind}.md": _page(kind, entries) for kind, entries in about.items()}
    index = [f"- [{kind}]({kind}.md): {', '.join(f'`{n}`' for n, _ in entries)}" for kind, entries in about.items()]
    return {"README.md": "\n".join(["# Manual", "", *index]) + "\n"} | made


def _page(kind: str, entries: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join([f"# {kind.capitalize()}", *(f"## {name}\n\n{text}" for name, text in entries)]) + "\n"


def _of_class(cls: type[Any]) -> str:
    """The docstring, and the fields that are options with type and default."""
    lines = [options.parts(cls)[0], "", f"`{cls.__module__}.{cls.__name__}`"]
    rows = [
        f"| `{o.name}` | {_cell(o.takes)} | {_cell(o.default)} | {_cell(o.meaning)} |" for o in options.options_of(cls)
    ]
    if rows:
        lines += ["", "| option | takes | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _of_op(op: Op) -> str:
    module = inspect.getmodule(op.function)
    return "\n".join([inspect.getdoc(module) or "", "", f"Opset {op.opset} or later."])


def _of_recipe(name: str) -> str:
    recipe = Recipe.load(name)
    return f"{recipe.summary}\n\n```yaml\n{recipe.dump()}```"


def _of_target(name: str) -> str:
    target = Target.load(name)
    return f"Runtime `{target.runtime}`.\n\n```json\n{shipped.targets()[name].strip()}\n```"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages into a folder."""
    given = sys.argv[1:] if argv is None else argv
    out = Path(given[0]) if given else OUT
    out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (out / name).write_text(text, encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
