"""graphpress: the recipes of each scheme, and pipelines of its passes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method

_RECIPES = {
    "W4A16": (("language",), ("w4a16", "w4a16-gptq", "w4a16-awq")),
    "W3A16": (("language",), ("w3a16-autoround",)),
    "W2A16": (("language",), ("w2a16-autoround",)),
    "W8A8": (("classifier", "language"), ("w8a8", "w8a8-smooth")),
    "W4A8": (("classifier",), ("w4a8", "w4a8 and GENIE-M")),
}
_PIPELINES: dict[str, dict[str, Any]] = {
    "w4a8 and GENIE-M": {
        "name": "w4a8-genie",
        "passes": [
            {"recipe": "clean"},
            {"quantize": {"mode": "static", "weight": "int4", "weight_observer": "mse", "fallback": ["dynamic"]}},
            {"recover": {"mode": "blocks", "method": "genie_m", "train": "all", "steps": 60, "batch_size": 16}},
            {"recipe": "fold"},
        ],
    }
}


def _compile(recipe: str, source: Path, data: Arrays, out: Path) -> None:
    import graphpress as gp

    gp.save(gp.compile(source, _PIPELINES.get(recipe, recipe), data, gate=False, prove=False)[0], out)


METHODS = tuple(
    Method(f"graphpress {recipe}", scheme, kinds, functools.partial(_compile, recipe), ours=True)
    for scheme, (kinds, recipes) in _RECIPES.items()
    for recipe in recipes
)
