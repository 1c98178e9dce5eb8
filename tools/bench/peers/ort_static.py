"""ONNX Runtime's static quantization."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

from graphpress.runner import Arrays
from graphpress.target import Target
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import Reader


def _compress(calibrate: str, source: Path, data: Arrays, out: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    size = math.gcd(8, *map(len, data.values()))  # its Entropy and Percentile take batches of one size only
    narrow = Target.load("ort-cpu").saturates  # where sums of products can be wrong
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        try:
            quant_pre_process(str(source), str(ready))
        except Exception:  # noqa: BLE001 - what it raises where its inference of shapes by symbols gives up
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(out), Reader(data, size), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=narrow,
            calibrate_method=CalibrationMethod[calibrate],
        )  # fmt: skip


METHODS = tuple(
    Method(f"ONNX Runtime {m}", "W8A8", ("classifier", "language"), functools.partial(_compress, m))
    for m in ("MinMax", "Entropy", "Percentile")
)
