"""Data files that come with the package: recipes and targets."""

from __future__ import annotations

from importlib import resources


def _files(folder: str, suffix: str) -> dict[str, str]:
    root = resources.files("graphpress").joinpath(folder)
    if not root.is_dir():
        return {}
    found = {f.name.removesuffix(suffix): f for f in root.iterdir() if f.name.endswith(suffix)}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def recipes() -> dict[str, str]:
    """The shipped recipes: name -> YAML text."""
    return _files("recipes", ".yaml")


def targets() -> dict[str, str]:
    """The shipped targets: name -> JSON text."""
    return _files("targets", ".json")
