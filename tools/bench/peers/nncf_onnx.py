"""NNCF on ONNX files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import onnx

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import batches

GROUP = 64


def _weights(options: dict[str, bool], source: Path, data: Arrays, out: Path) -> None:
    import nncf

    dataset = nncf.Dataset(list(batches(data, 1))) if options else None
    smaller = nncf.AdvancedCompressionParameters(  # groups for a width that the size does not divide; else an error
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
    )
    model = nncf.compress_weights(
        onnx.load(source), mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=GROUP, ratio=1.0, all_layers=True,
        dataset=dataset, ignored_scope=nncf.IgnoredScope(types=["Gather"]), advanced_parameters=smaller, **options,
    )  # fmt: skip
    onnx.save(model, out)


def _static(options: dict[str, Any], source: Path, data: Arrays, out: Path) -> None:
    import nncf

    feeds = list(batches(data, 1))
    chosen = {"model_type": nncf.ModelType.TRANSFORMER} if options.get("transformer") else {}
    model = nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds), **chosen)
    onnx.save(model, out)


def _method(name: str, **options: bool) -> Method:
    return Method(f"NNCF {name}", "W4A16", ("language",), functools.partial(_weights, options), ("nncf",))


METHODS = (
    _method("to nearest"),
    _method("AWQ", awq=True),
    _method("AWQ and scale estimation", awq=True, scale_estimation=True),
    Method("NNCF", "W8A8", ("classifier",), functools.partial(_static, {}), ("nncf",)),
    Method("NNCF SmoothQuant", "W8A8", ("language",), functools.partial(_static, {"transformer": True}), ("nncf",)),
)
