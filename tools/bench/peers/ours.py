"""graphpress: the recipes of each scheme, and pipelines of its passes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import NO_DATA, Method

_LANGUAGE, _BOTH, _RESNETS = ("language",), ("classifier", "language"), ("resnet20", "resnet56")


def _layers(bits: int, rounding: Mapping[str, Any], observer: str = "minmax", before: Sequence[str] = ()) -> Any:
    """Weights of the linear layers alone, with zero points, as other tools have them: embeddings stay in floats."""
    groups = {"weight_granularity": "per_group", "group_size": 64, "weight_observer": observer}
    apart = {"weight_symmetric": False, "embeddings": False}
    quantize = {"quantize": {"mode": "weight", "weight": f"int{bits}", **groups, **apart}}
    return {"name": "layers", "passes": [{"recipe": "clean"}, *before, quantize, rounding, {"recipe": "fold"}]}


def _painted(recipe: str) -> Any:
    """A recipe on images that Genie-D makes of the statistics of BatchNormalization."""
    return {"name": f"{recipe}-painted", "passes": [{"recipe": "clean"}, _PAINTED, {"recipe": recipe}]}


_PAINTED = {"genie-d": {"samples": 64, "batch": 64, "iterations": 150}}
_TURNED = ("fold-norms", "rotate")
_GPTQ: dict[str, Any] = {"gptq": {}}
_AUTOROUND = {"recover": {"mode": "blocks", "method": "autoround", "steps": 200, "samples": 256}}
_GENIE = {
    "name": "w4a8-genie",
    "passes": [
        {"recipe": "clean"},
        {"quantize": {"mode": "static", "weight": "int4", "weight_observer": "mse", "fallback": ["dynamic"]}},
        {"recover": {"mode": "blocks", "method": "genie_m", "train": "all", "steps": 60, "batch_size": 16}},
        {"recipe": "fold"},
    ],
}
# By size: what w4a8-gptq takes.
_MIXED = {
    "name": "mixed-a8",
    "passes": [
        {"recipe": "clean"},
        {"allocate": {"formats": ["w8a8", "w4a8", "w2a8"], "objective": "drop", "max_size": "0.2x"}},
        {"gptq": {"towards": "teacher", "samples": 512}},
        {"recipe": "fold"},
    ],
}
# Scheme, kinds of tasks, and what runs there: names of recipes, pipelines with a name of their own.
_ROWS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("W4A16", _LANGUAGE, dict.fromkeys(("w4a16", "w4a16-gptq", "w4a16-awq"))),
    ("W4A16", _LANGUAGE, {
        "GPTQ, linear layers, zero points": _layers(4, _GPTQ, "mse"),
        "rotated, GPTQ, linear layers, zero points": _layers(4, _GPTQ, "mse", before=_TURNED),
        "AutoRound, linear layers, zero points": _layers(4, _AUTOROUND),
    }),
    ("W3A16", _LANGUAGE, {
        "w3a16-autoround": None,
        "w3a16-rot": None,
        "GPTQ, linear layers, zero points": _layers(3, _GPTQ),
        "rotated, GPTQ, linear layers, zero points": _layers(3, _GPTQ, before=_TURNED),
        "AutoRound, linear layers, zero points": _layers(3, _AUTOROUND),
    }),
    ("W2A16", _LANGUAGE, {
        "w2a16-autoround": None,
        "GPTQ, linear layers, zero points": _layers(2, _GPTQ, "mse"),
        "AutoRound, linear layers, zero points": _layers(2, _AUTOROUND),
        "rotated, AutoRound, linear layers, zero points": _layers(2, _AUTOROUND, before=_TURNED),
    }),
    ("W8A8", _BOTH, dict.fromkeys(("w8a8", "w8a8-smooth"))),
    ("W4A8", ("classifier",), {"w4a8": None, "w4a8-gptq": None, "w4a8 and GENIE-M": _GENIE}),
    ("W4A8", _RESNETS, {"mixed, 4 bits on average, GPTQ": _MIXED}),
    (f"W8A8 {NO_DATA}", _RESNETS, {"zeroq": None, "w8a8 on painted images": _painted("w8a8")}),
    (f"W4A8 {NO_DATA}", _RESNETS, {"w4a8-gptq on painted images": _painted("w4a8-gptq")}),
]  # fmt: skip


def _compile(recipe: Any, blind: bool, source: Path, data: Arrays, out: Path) -> None:
    import graphpress as gp

    if blind:  # from the statistics of BatchNormalization, which the task's own file has folded away
        source, given = source.with_name(f"{source.stem}_bn.onnx"), None
    else:
        given = data
    gp.save(gp.compile(source, recipe, given, gate=False, prove=False)[0], out)


METHODS = tuple(
    Method(
        f"graphpress {name}", scheme, kinds, functools.partial(_compile, passes or name, NO_DATA in scheme), ours=True
    )
    for scheme, kinds, rows in _ROWS
    for name, passes in rows.items()
)
