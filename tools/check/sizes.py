"""Small on purpose: how long a file and a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

FILE = 400
FUNCTION = 60


def violations(paths: Iterable[Path]) -> list[str]:
    """``path:line: what is too long`` for each Python file and function over its limit."""
    long = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > FILE:
            long.append(f"{path}:1: {lines} lines, over {FILE}")
        for node in ast.walk(ast.parse(text, str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, over {FUNCTION}")
    return long
