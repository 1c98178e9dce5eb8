"""NVIDIA ModelOpt on ONNX files."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import Reader

GROUP = 64


def _weights(method: str, source: Path, data: Arrays, out: Path) -> None:
    from modelopt.onnx.quantization.int4 import quantize

    model = quantize(
        str(source), calibration_method=method, calibration_data_reader=Reader(data, 8), calibration_eps=["cpu"],
        use_external_data_format=False, block_size=GROUP, nodes_to_exclude=[],
    )  # fmt: skip
    onnx.save(model, out)


def _static(method: str, source: Path, data: Arrays, out: Path) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source), quantize_mode="int8", calibration_method=method, calibration_data=dict(data),
        calibration_eps=["cpu"], output_path=str(out), high_precision_dtype="fp32",
    )  # fmt: skip


METHODS = (
    *(
        Method(f"ModelOpt {m}", "W4A16", ("language",), functools.partial(_weights, m), ("nvidia-modelopt",))
        for m in ("rtn_dq", "awq_lite", "awq_clip")
    ),
    *(
        Method(f"ModelOpt {m}", "W8A8", ("classifier",), functools.partial(_static, m), ("nvidia-modelopt",))
        for m in ("max", "entropy")
    ),
)
