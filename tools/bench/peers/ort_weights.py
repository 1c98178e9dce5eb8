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
FINER = 32  # its k-quant and its GPTQ cannot pack zero points where the blocks of a row are odd in number


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

    return GPTQWeightOnlyQuantConfig(Reader(data), perchannel=False)


def _compress(
    config: Callable[[int, Arrays], Any], bits: int, block: int, source: Path, data: Arrays, out: Path
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=bits, block_size=block, algo_config=config(bits, data))
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def _method(name: str, config: Callable[[int, Arrays], Any], bits: int, *needs: str, block: int = BLOCK) -> Method:
    compress = functools.partial(_compress, config, bits, block)
    return Method(f"ONNX Runtime {name}", f"W{bits}A16", ("language",), compress, needs)


METHODS = (
    _method("to nearest", _plain, 4),
    _method("HQQ", _hqq, 4, "torch"),
    _method("k-quant, groups of 32", _k_quant, 4, block=FINER),
    _method("GPTQ, groups of 32", _gptq, 4, block=FINER),
    _method("to nearest", _plain, 2),
    _method("HQQ", _hqq, 2, "torch"),
)
