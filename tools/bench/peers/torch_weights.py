"""Tools for the weights of Hugging Face modules: AutoRound, llm-compressor, torchao, HQQ.

What they leave is dequantized into the file for the score; so its size says nothing and is given as float's.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from graphpress.runner import Arrays
from graphpress.tools.bench.peers import llama
from graphpress.tools.bench.peers.base import Method

GROUP = 64
SAMPLES = 128


def _autoround(bits: int, module: Any, data: Arrays) -> Any:
    import torch
    from auto_round import AutoRound

    tokens = llama.ids(data)
    loader = torch.utils.data.DataLoader([{"input_ids": row} for row in tokens], batch_size=8)
    weights = {"bits": bits, "group_size": GROUP, "sym": False}
    rounder = AutoRound(
        module, llama.tokenizer(module), **weights, dataset=loader, iters=200, seqlen=tokens.shape[1],
        nsamples=min(SAMPLES, len(tokens)), device_map="cpu", layer_config={"lm_head": {**weights, "data_type": "int"}},
    )  # fmt: skip
    found, _ = rounder.quantize()
    return found


def _llm_compressor(recipe: Callable[[int], Any], bits: int, module: Any, data: Arrays) -> Any:
    import torch
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor.entrypoints.oneshot import oneshot

    tokens = llama.ids(data)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        llama.tokenizer(module).save_pretrained(folder)
        loader = torch.utils.data.DataLoader(rows, batch_size=1)
        with mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor):  # its AWQ pins for a GPU, or fails
            module = oneshot(model=folder, dataset=loader, recipe=recipe(bits), num_calibration_samples=len(rows))
    for layer in module.modules():
        if scheme := getattr(layer, "quantization_scheme", None):
            layer.weight.data = fake_quantize(
                layer.weight, layer.weight_scale, getattr(layer, "weight_zero_point", None), scheme.weights
            )
    return module


def _groups(bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    return {"g": {"targets": ["Linear"], "weights": weights}}


def _gptq(bits: int) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(config_groups=_groups(bits))


def _awq(bits: int) -> Any:
    from llmcompressor.modifiers.awq import AWQModifier

    return AWQModifier(config_groups=_groups(bits))


def _torchao(bits: int, module: Any, _: Arrays) -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    hqq = IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY
    dtype = getattr(torch, f"int{bits}")
    quantize_(module, IntxWeightOnlyConfig(dtype, PerGroup(GROUP), intx_choose_qparams_algorithm=hqq))
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return module


def _hqq(bits: int, module: Any, _: Arrays) -> Any:
    import torch
    from hqq.core.quantize import Quantizer

    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            codes, meta = Quantizer.quantize(
                layer.weight.data, nbits=bits, group_size=GROUP, axis=1, device="cpu", compute_dtype=torch.float32
            )
            layer.weight.data = Quantizer.dequantize(codes, meta).to(torch.float32).reshape(layer.weight.shape)
    return module


def _compress(method: Callable[[int, Any, Arrays], Any], bits: int, source: Path, data: Arrays, out: Path) -> None:
    found = method(bits, llama.module(source), data)
    llama.write(dict(found.state_dict()), source, out)


def _method(name: str, method: Callable[[int, Any, Arrays], Any], bits: int, *needs: str) -> Method:
    compress = functools.partial(_compress, method, bits)
    return Method(name, f"W{bits}A16", ("codelm*",), compress, ("torch", "transformers", *needs))


METHODS = tuple(
    method
    for bits in (4, 3, 2)
    for method in (
        _method("AutoRound", _autoround, bits, "auto-round"),
        _method("llm-compressor GPTQ", functools.partial(_llm_compressor, _gptq), bits, "llmcompressor"),
        _method("llm-compressor AWQ", functools.partial(_llm_compressor, _awq), bits, "llmcompressor"),
        _method("torchao HQQ", _torchao, bits, "torchao"),
        _method("HQQ", _hqq, bits, "hqq"),
    )
)
