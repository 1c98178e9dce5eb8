"""A contract as its file declares it: fields and methods with their types and first sentences, bodies left out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path


def declared(path: Path, name: str) -> str:
    """The class or function ``name`` of ``path`` as a block of Python.

    Raises:
        LookupError: The file does not define it.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return f"```python\n{_formatted(_shown(node))}```"
    raise LookupError(f"{path} defines no {name!r} at its top level")


def _formatted(source: str) -> str:
    """As ruff has it, which formats the Python of pages as well."""
    command = [sys.executable, "-m", "ruff", "format", "--line-length", "120", "-"]
    return subprocess.run(command, input=source, check=True, capture_output=True, text=True).stdout


def _shown(node: ast.ClassDef | ast.FunctionDef) -> str:
    if isinstance(node, ast.FunctionDef):
        return _header(node) + ": ..."
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    lines = [f"@{ast.unparse(d)}" for d in node.decorator_list]
    lines.append(f"class {node.name}{f'({bases})' if bases else ''}:")
    body = [line for item in node.body for line in _member(item)]
    body = body[1:] if body[:1] == [""] else body
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in body or ["..."])])


def _member(item: ast.stmt) -> list[str]:
    if isinstance(item, ast.AnnAssign):
        return [ast.unparse(item)]
    if not isinstance(item, ast.FunctionDef) or (item.name.startswith("_") and item.name != "__call__"):
        return []
    kind = [f"@{d.id}" for d in item.decorator_list if isinstance(d, ast.Name) and d.id != "abstractmethod"]
    about = (ast.get_docstring(item) or "").split("\n\n")[0].replace("\n", " ")
    return ["", *kind, f"{_header(item)}:", f'    """{about}"""' if about else "    ..."]


def _header(node: ast.FunctionDef) -> str:
    gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){gives}"
