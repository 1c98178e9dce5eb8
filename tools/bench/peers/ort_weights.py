"""ONNX Runtime's tools for weights in blocks (MatMulNBits)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import Reader

BLOCK = 64


def _plain(bits: int, _: Arrays) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig

    return DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=bits)


def _hqq(bits: int, _: Arrays) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig

    return HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=bits)


def _k_quant(_: int, __: Arrays) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig

    return KQuantWeightOnlyQuantConfig()


def _gptq(_: int, data: Arrays) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import GPTQWeightOnlyQuantConfig

    return GPTQWeightOnlyQuantConfig(Reader(data), block_size=BLOCK, perchannel=False)


def _compress(config: Callable[[int, Arrays], Any], bits: int, source: Path, data: Arrays, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, block_size=BLOCK, algo_config=config(bits, data))
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def _method(name: str, config: Callable[[int, Arrays], Any], bits: int, *needs: str) -> Method:
    compress = functools.partial(_compress, config, bits)
    return Method(f"ONNX Runtime {name}", f"W{bits}A16", ("language",), compress, needs)


METHODS = (
    _method("to nearest", _plain, 4),
    _method("HQQ", _hqq, 4, "torch"),
    _method("k-quant", _k_quant, 4),
    _method("GPTQ", _gptq, 4),
    _method("to nearest", _plain, 2),
    _method("HQQ", _hqq, 2, "torch"),
)
