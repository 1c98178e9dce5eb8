"""A language model of the zoo as the Hugging Face module that torch tools take, and its weights back in the file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphpress.runner import Arrays

if TYPE_CHECKING:
    import torch

_IN_ORDER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEADS, _CONTEXT, _EPS = 8, 512, 1e-5


def module(source: Path) -> Any:
    """``LlamaForCausalLM`` with the weights of a codelm file.

    The linear layers' weights come from the products with constants in the order of the file, norms and embedding by
    name: the tools differ only in what they do to them.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = onnx.load(source)
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    layers = sum("input_layernorm" in name for name in weights)
    vocabulary, width = weights["embed_tokens.weight"].shape
    products = dict(zip(_linear_names(layers), _products(model), strict=True))
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS, max_position_embeddings=_CONTEXT, rms_norm_eps=_EPS,
        intermediate_size=weights[products["model.layers.0.mlp.up_proj.weight"]].shape[1],
        tie_word_embeddings=False, attention_bias=False, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    state = {name: weights[product].T for name, product in products.items()}
    state |= {name: weights[name.removeprefix("model.")] for name in _plain_names(layers)}
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True)
    return llama


def write(state: dict[str, torch.Tensor], source: Path, out: Path) -> None:
    """The file with the weights of ``state`` (names as in Hugging Face; float, as the tool dequantizes them)."""
    model = onnx.load(source)
    initializers = {i.name: i for i in model.graph.initializer}
    layers = sum("input_layernorm" in name for name in initializers)
    for name, product in zip(_linear_names(layers), _products(model), strict=True):
        _put(initializers[product], state[name].detach().float().numpy().T)
    for name in _plain_names(layers):
        _put(initializers[name.removeprefix("model.")], state[name].detach().float().numpy())
    onnx.save(model, out)


def ids(data: Arrays) -> torch.Tensor:
    """The calibration tokens, int64 [samples, length]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(data["ids"]))


def tokenizer(module: Any) -> Any:
    """One that holds as many words as the module: tools ask for one, and get tokens from us."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{i}>": i for i in range(module.config.vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<0>")), pad_token="<0>")


def _put(initializer: onnx.TensorProto, value: np.ndarray) -> None:
    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), initializer.name))


def _linear_names(layers: int) -> list[str]:
    inner = [f"model.layers.{n}.{part}.weight" for n, part in itertools.product(range(layers), _IN_ORDER)]
    return [*inner, "lm_head.weight"]


def _plain_names(layers: int) -> list[str]:
    norms = [f"model.layers.{n}.{part}.weight" for n, part in itertools.product(range(layers), _NORMS)]
    return [*norms, "model.embed_tokens.weight", "model.norm.weight"]


def _products(model: onnx.ModelProto) -> Iterator[str]:
    """The constant operand of each MatMul with one, in order."""
    constants = {i.name for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            yield node.input[1]
