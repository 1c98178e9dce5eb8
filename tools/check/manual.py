"""``python -m graphpress.tools.check.manual``: pages about all that the catalog finds, from its docstrings and fields.

They are made when they are wanted and not committed: a new file of any kind would else have to touch a page.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from graphpress import catalog, shipped
from graphpress.ops.base import Op
from graphpress.recipe import Recipe
from graphpress.target import Target

OUT = Path("out/manual")


def pages() -> dict[str, str]:
    """File name -> markdown: one page a kind, and an index."""
    kinds: dict[str, list[tuple[str, str]]] = {
        "passes": [(n, _of_class(c)) for n, c in sorted(catalog.passes().items())],
        "operators": [(n, _of_op(o)) for n, o in sorted(catalog.ops().items())],
        "quantizers": [(n, _of_class(c)) for n, c in sorted(catalog.quantizers().items())],
        "methods": [(n, _of_class(c)) for n, c in sorted(catalog.methods().items())],
        "losses": [(n, _of_class(c)) for n, c in sorted(catalog.losses().items())],
        "adapters": [(n, _of_class(c)) for n, c in sorted(catalog.adapters().items())],
        "recipes": [(n, _of_recipe(n)) for n in sorted(shipped.recipes())],
        "targets": [(n, _of_target(n)) for n in sorted(shipped.targets())],
    }
    made = {f"{kind}.md": _page(kind, entries) for kind, entries in kinds.items()}
    index = [f"- [{kind}]({kind}.md): {', '.join(f'`{n}`' for n, _ in entries)}" for kind, entries in kinds.items()]
    return {"README.md": "\n".join(["# Manual", "", *index]) + "\n"} | made


def _page(kind: str, entries: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join([f"# {kind.capitalize()}", *(f"## {name}\n\n{text}" for name, text in entries)]) + "\n"


def _of_class(cls: type[Any]) -> str:
    """The docstring, and the fields that are options with type and default."""
    about = _split(cls)[0]
    lines = [about, "", f"`{cls.__module__}.{cls.__name__}`"]
    options = [f for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []
    if options:
        said = {name: meaning for base in reversed(cls.__mro__) for name, meaning in _meanings(_split(base)[1])}
        rows = [
            f"| `{f.name}` | {_cell(str(f.type))} | {_default(f)} | {_cell(said.get(f.name, ''))} |" for f in options
        ]
        lines += ["", "| option | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines)


def _split(cls: type[Any]) -> tuple[str, str]:
    """What a docstring says of the class, and of its fields."""
    about, _, meanings = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
    return about, meanings


def _meanings(text: str) -> Iterator[tuple[str, str]]:
    """(option, its meaning) of the section of a docstring; several options may share one."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("    ") and line[4:5] not in ("", " "):
            entries.append([line.strip()])
        elif entries:
            entries[-1].append(line.strip())
    for entry in entries:
        names, _, meaning = " ".join(entry).partition(":")
        yield from ((name.strip(), meaning.strip()) for name in names.split(","))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _cell(repr(field.default))
    return _cell(repr(field.default_factory())) if field.default_factory is not dataclasses.MISSING else "required"


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
