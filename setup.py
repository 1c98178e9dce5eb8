"""The packages, which setuptools cannot find in folders of another name than theirs; all else is in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

CHECKOUT_ONLY = {
    "graphpress.tools": ["bench", "bench.*", "check", "check.*", "mutants", "mutants.*"]
}  # not in the wheel

settings = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))
rooms = settings["tool"]["setuptools"]["package-dir"]
found = {room: find_packages(folder, exclude=CHECKOUT_ONLY.get(room, ())) for room, folder in rooms.items()}
setup(packages=[*found, *(f"{room}.{inner}" for room, inners in found.items() for inner in inners)])
