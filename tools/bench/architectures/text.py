"""Language models of transformers, in their default configurations but for their size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graphpress.tools.bench.architectures.architecture import Architecture, Draw, of_transformers

LENGTH = 12
_SMALL: Mapping[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED: Mapping[str, Any] = {**_SMALL, "num_key_value_heads": 2}
_SEQ2SEQ: Mapping[str, Any] = {
    "vocab_size": 256, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_T5: Mapping[str, Any] = {
    "vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_EXPERTS: Mapping[str, Any] = {**_GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# model class -> (what differs from _SMALL, None of what it has not; prenorm, feed-forward blocks)
_ENCODERS: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "BertModel": ({}, False, 2),
    "BertForSequenceClassification": ({}, False, 2),
    "RobertaForMaskedLM": ({}, False, 2),
    "DistilBertModel": ({"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, False, 2),
    "AlbertModel": ({"embedding_size": 32}, False, 2),
    "ElectraForTokenClassification": ({"embedding_size": 32}, False, 2),
    "DebertaV2Model": (
        {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}, False, 2
    ),
    "MPNetModel": ({}, False, 2),
    "ModernBertModel": ({"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
                        True, 2),
    "RoFormerModel": ({}, False, 2),
    "MobileBertModel": ({"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, False, 8),
    "SqueezeBertModel": ({"embedding_size": 64}, False, 0),
    "FNetModel": ({"tpu_short_seq_length": 12}, False, 2),
    "ConvBertModel": ({"embedding_size": 32}, False, 2),
    "XLMRobertaXLModel": ({}, True, 2),
    "EsmModel": ({"mask_token_id": 3}, True, 2),
    "LayoutLMModel": ({}, False, 2),
    "BigBirdModel": ({"attention_type": "original_full"}, False, 2),
    "DebertaModel": ({"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, False, 2),
    "FunnelModel": (
        {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1], "num_decoder_layers": 1,
         "num_hidden_layers": None}, False, 3,
    ),
    "XLNetLMHeadModel": (
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "max_position_embeddings": None}, False, 2
    ),
}  # fmt: skip
_DECODERS: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "GPT2LMHeadModel": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}, True, 2),
    "GPTNeoForCausalLM": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}, True, 2
    ),
    "GPTNeoXForCausalLM": ({}, True, 2),
    "GPTJForCausalLM": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}, True, 2),
    "CodeGenForCausalLM": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8}, True, 2),
    "OPTForCausalLM": ({"ffn_dim": 128, "word_embed_proj_dim": 64}, True, 2),
    "BloomForCausalLM": ({"n_layer": 2, "n_head": 4}, True, 2),
    "MptForCausalLM": ({"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, True, 2),
    "FalconForCausalLM": ({"n_layer": 2}, True, 2),
    "LlamaForCausalLM": (_GROUPED, True, 2),
    "MistralForCausalLM": ({**_GROUPED, "sliding_window": 8, "head_dim": 16}, True, 2),
    "GemmaForCausalLM": ({**_GROUPED, "head_dim": 16, "num_key_value_heads": 1}, True, 2),
    "Gemma2ForCausalLM": ({**_GROUPED, "head_dim": 16, "sliding_window": 8}, True, 2),
    "Gemma3ForCausalLM": ({**_GROUPED, "head_dim": 16, "sliding_window": 8}, True, 2),
    "Qwen2ForCausalLM": (_GROUPED, True, 2),
    "Qwen3ForCausalLM": ({**_GROUPED, "head_dim": 16}, True, 2),
    "PhiForCausalLM": ({}, True, 2),
    "Phi3ForCausalLM": (_GROUPED, True, 2),
    "StableLmForCausalLM": (_GROUPED, True, 2),
    "CohereForCausalLM": (_GROUPED, True, 2),
    "OlmoForCausalLM": (_GROUPED, True, 2),
    "Olmo2ForCausalLM": (_GROUPED, False, 2),
    "GraniteForCausalLM": (_GROUPED, True, 2),
    "SmolLM3ForCausalLM": (_GROUPED, True, 2),
    "Starcoder2ForCausalLM": (_GROUPED, True, 2),
    "GPTBigCodeForCausalLM": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}, True, 2),
    "GlmForCausalLM": ({**_GROUPED, "head_dim": 16}, True, 2),
    "HeliumForCausalLM": ({**_GROUPED, "head_dim": 16}, True, 2),
    "NemotronForCausalLM": (_GROUPED, True, 2),
    "XGLMForCausalLM": ({"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4}, True, 2),
    "CTRLLMHeadModel": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 128, "n_positions": 64}, True, 2),
    "OpenAIGPTLMHeadModel": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}, False, 2),
    "PersimmonForCausalLM": ({}, True, 2),
    "Cohere2ForCausalLM": ({**_GROUPED, "head_dim": 16, "sliding_window": 8}, True, 2),
    "DiffLlamaForCausalLM": (_GROUPED, True, 2),
    "BitNetForCausalLM": (_GROUPED, True, 0),  # a norm stands before the last layer of its blocks
    "NanoChatForCausalLM": (_GROUPED, True, 2),
    "Gemma3nForCausalLM": ({
        **_GROUPED, "num_key_value_heads": 1, "head_dim": 16, "hidden_size_per_layer_input": 16, "laurel_rank": 8,
        "vocab_size_per_layer_input": 256, "num_kv_shared_layers": 0, "sliding_window": 8, "altup_num_inputs": 2,
        "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.9, 0.0],
    }, False, 1),  # the first block cuts its hidden values
}  # fmt: skip
_MIXTURES: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "MixtralForCausalLM": ({**_EXPERTS, "num_local_experts": 4}, True, 0),
    "Qwen2MoeForCausalLM": ({**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 64}, True, 2),
    "Qwen3MoeForCausalLM": ({**_EXPERTS, "num_experts": 4, "head_dim": 16}, True, 0),
    "OlmoeForCausalLM": ({**_EXPERTS, "num_experts": 4}, True, 0),
    "DeepseekV3ForCausalLM": ({
        **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 16,
    }, True, 2),
    "DeepseekV2ForCausalLM": ({
        **_EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "topk_method": "greedy", "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 32,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    }, True, 1),
    "Llama4ForCausalLM": (
        {**_EXPERTS, "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 128,
         "interleave_moe_layer_step": 2, "attention_chunk_size": 8}, True, 1,
    ),
    "GptOssForCausalLM": ({**_EXPERTS, "num_local_experts": 4, "head_dim": 16, "sliding_window": 8}, True, 0),
    "GraniteMoeForCausalLM": ({**_EXPERTS, "num_local_experts": 4}, True, 0),
    "SwitchTransformersForConditionalGeneration": (
        {**_T5, "num_experts": 4, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1,
         "num_sparse_decoder_layers": 1, "expert_capacity": 24}, True, 2,
    ),
}  # fmt: skip
_STATES: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "MambaForCausalLM": ({"state_size": 8}, False, 0),
    "FalconMambaForCausalLM": ({"state_size": 8}, False, 0),
    "Mamba2ForCausalLM": (
        {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}, False, 0
    ),
    "RecurrentGemmaForCausalLM": (
        {**_GROUPED, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8, "head_dim": 16}, True, 3
    ),
    "RwkvForCausalLM": ({"attention_hidden_size": 64, "context_length": 64}, False, 2),
    "Zamba2ForCausalLM": (
        {"num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1],
         "mamba_ngroups": 2, "n_mamba_heads": 8, "mamba_d_state": 8, "chunk_size": 8, "adapter_rank": 4,
         "num_mem_blocks": 1, "attention_head_dim": 32, "use_mamba_kernels": False}, False, 0,
    ),
    "xLSTMForCausalLM": ({"num_heads": 2, "chunk_size": 4, "num_blocks": 2, "qk_dim_factor": 1.0}, False, 0),
    "JambaForCausalLM": (
        {**_GROUPED, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}, True, 1,
    ),
}  # fmt: skip
_SEQUENCES: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "T5ForConditionalGeneration": (_T5, True, 4),
    "UMT5ForConditionalGeneration": (_T5, True, 4),
    "LongT5ForConditionalGeneration": ({**_T5, "local_radius": 4}, True, 4),
    "BartForConditionalGeneration": (_SEQ2SEQ, False, 4),
    "MBartForConditionalGeneration": (_SEQ2SEQ, True, 4),
    "MarianMTModel": (_SEQ2SEQ, False, 4),
    "PegasusForConditionalGeneration": (_SEQ2SEQ, True, 4),
    "M2M100ForConditionalGeneration": (_SEQ2SEQ, True, 4),
    "BlenderbotSmallForConditionalGeneration": (_SEQ2SEQ, False, 4),
    "FSMTForConditionalGeneration": (
        {**_SEQ2SEQ, "langs": ["en", "de"], "src_vocab_size": 256, "tgt_vocab_size": 256}, False, 4,
    ),
    "ProphetNetForConditionalGeneration": (
        {"hidden_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
         "num_decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "ngram": 2}, False, 4,
    ),
}  # fmt: skip


_UNMASKED = ("FNetModel", "RwkvForCausalLM", "MptForCausalLM", "CTRLLMHeadModel", "xLSTMForCausalLM")


def _tokens(draw: Draw) -> dict[str, Any]:
    return {"input_ids": draw.ids(LENGTH), "attention_mask": draw.ones(LENGTH)}


def _mere_tokens(draw: Draw) -> dict[str, Any]:
    return {"input_ids": draw.ids(LENGTH)}


def _pairs(draw: Draw) -> dict[str, Any]:
    return {**_tokens(draw), "decoder_input_ids": draw.ids(8)}


def architectures() -> Iterator[Architecture]:
    """Encoders, decoders, mixtures of experts, state-space models, encoders with decoders."""
    families = {
        "encoder": _ENCODERS, "decoder": _DECODERS, "mixture of experts": _MIXTURES, "state space": _STATES,
        "encoder-decoder": _SEQUENCES,
    }  # fmt: skip
    for family, models in families.items():
        for kind, (options, prenorm, ffn) in models.items():
            inputs = _mere_tokens if kind in _UNMASKED else _tokens
            if family == "encoder-decoder" or "Switch" in kind:
                inputs = _pairs
            else:
                options = {k: v for k, v in {**_SMALL, **options}.items() if v is not None}
            yield Architecture(kind, family, of_transformers(kind, options), inputs, prenorm, ffn)
