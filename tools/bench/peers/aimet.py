"""AIMET on ONNX files: sequential MSE and AdaRound."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import batches

STEPS = 2000  # of AdaRound, a layer; its own default of 10,000 takes hours on two cores


def _compress(method: str, weights: str, source: Path, data: Arrays, out: Path) -> None:
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.adaround.adaround_weight import Adaround
    from aimet_onnx.sequential_mse.seq_mse import apply_seq_mse

    feeds = list(batches(data, 32))
    sim = QuantizationSimModel(
        onnx.load(source), param_type=weights, activation_type="int8", quant_scheme="min_max",
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    if method == "SeqMSE":
        apply_seq_mse(sim, feeds)
    elif method == "AdaRound":
        Adaround.apply_adaround(sim, feeds, num_iterations=STEPS)
    sim.compute_encodings(feeds)
    onnx.save(sim.to_onnx_qdq(), out)


METHODS = tuple(
    Method(f"AIMET {method}", scheme, ("classifier",), functools.partial(_compress, method, weights), ("aimet-onnx",))
    for scheme, weights in (("W8A8", "int8"), ("W4A8", "int4"))
    for method in ("min and max", "SeqMSE", "AdaRound")
)
