"""The rooms of a checkout as pyproject.toml names them, and the source files in them."""

from __future__ import annotations

import ast
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """One Python file and the name it is imported by."""

    module: str
    path: Path

    @functools.cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))


def settings(root: Path) -> dict[str, Any]:
    """pyproject.toml of the checkout ``root``."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def rooms(root: Path) -> dict[str, Path]:
    """Package name -> folder, for the packages that pyproject maps to a folder of their own."""
    mapping: dict[str, str] = settings(root)["tool"]["setuptools"]["package-dir"]
    return {package: root / folder for package, folder in mapping.items()}


def sources(root: Path) -> list[Source]:
    """Every Python file of every room, by module name."""
    found = []
    for package, folder in rooms(root).items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append(Source(".".join((package, *parts)).removesuffix(".__init__"), path))
    return sorted(found, key=lambda s: s.module)


def packages(root: Path) -> list[str]:
    """Every folder of the rooms that holds an ``__init__.py``, as a package name."""
    return [s.module for s in sources(root) if s.path.name == "__init__.py"]
