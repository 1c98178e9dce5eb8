"""Diffusion models of diffusers: U-Nets, transformers, autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from graphpress.tools.bench.architectures.architecture import Architecture, Draw, ready

_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
_CROSS = {
    "sample_size": 8, "in_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
    "cross_attention_dim": 32, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}  # fmt: skip
_CODER: Mapping[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}


def _images(channels: int, side: int, name: str = "sample") -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {name: draw.floats(channels, side, side)}


def _timed(channels: int, side: int) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {"sample": draw.floats(channels, side, side), "timestep": draw.steps()}


def _told(draw: Draw) -> dict[str, Any]:
    return {**_timed(4, 8)(draw), "encoder_hidden_states": draw.floats(6, 32)}


def _controlled(draw: Draw) -> dict[str, Any]:
    return {**_told(draw), "controlnet_cond": draw.floats(3, 64, 64)}


def _dit(draw: Draw) -> dict[str, Any]:
    classes = torch.randint(0, 9, (draw.batch,), generator=draw.generator)
    return {"hidden_states": draw.floats(4, 8, 8), "timestep": draw.steps(), "class_labels": classes}


def _pixart(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.floats(4, 8, 8), "encoder_hidden_states": draw.floats(6, 32),
            "timestep": draw.steps()}  # fmt: skip


def _sd3(draw: Draw) -> dict[str, Any]:
    return {**_pixart(draw), "pooled_projections": draw.floats(32)}


def _aura(draw: Draw) -> dict[str, Any]:
    return {**_pixart(draw), "timestep": draw.steps() / 1000}  # it multiplies by 1000 itself


def _flux(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.floats(16, 8), "encoder_hidden_states": draw.floats(6, 32),
            "pooled_projections": draw.floats(32), "timestep": draw.steps() / 1000,
            "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3), "guidance": None}  # fmt: skip


def _video(channels: int, name: str = "hidden_states") -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {name: draw.floats(channels, 2, 8, 8), "encoder_hidden_states": draw.floats(6, 32),
                         "timestep": draw.steps()}  # fmt: skip


def _cog(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.floats(2, 4, 8, 8), "encoder_hidden_states": draw.floats(6, 32),
            "timestep": draw.steps()}  # fmt: skip


def _prior(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.floats(32), "timestep": draw.steps(), "proj_embedding": draw.floats(32),
            "encoder_hidden_states": draw.floats(6, 32)}  # fmt: skip


def _ltx(draw: Draw) -> dict[str, Any]:
    return {"hidden_states": draw.floats(16, 8), "encoder_hidden_states": draw.floats(6, 32), "timestep": draw.steps(),
            "encoder_attention_mask": draw.ones(6), "num_frames": 1, "height": 4, "width": 4}  # fmt: skip


def _cascade(draw: Draw) -> dict[str, Any]:
    return {"sample": draw.floats(4, 8, 8), "timestep_ratio": draw.steps() / 1000,
            "clip_text_pooled": draw.floats(1, 32), "clip_text": draw.floats(6, 32),
            "clip_img": draw.floats(1, 32)}  # fmt: skip


# diffusers' class -> (options, inputs, feed-forward blocks)
_NETS: dict[str, tuple[Mapping[str, Any], Callable[[Draw], dict[str, Any]], int]] = {
    "UNet2DModel": (
        {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
         "attention_head_dim": 8, "down_block_types": _DOWN, "up_block_types": _UP}, _timed(3, 16), 0,
    ),
    "UNet2DConditionModel": ({**_CROSS, "out_channels": 4, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
                             _told, 4),
    "ControlNetModel": ({k: v for k, v in _CROSS.items() if k != "sample_size"}, _controlled, 2),
    "UNet1DModel": (
        {"sample_size": 64, "in_channels": 2, "out_channels": 2, "extra_in_channels": 64,
         "block_out_channels": (32, 64), "layers_per_block": 1,
         "down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"),
         "up_block_types": ("AttnUpBlock1D", "UpBlock1DNoSkip")},
        lambda draw: {"sample": draw.floats(2, 64), "timestep": draw.steps()}, 0,
    ),
    "StableCascadeUNet": (
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "patch_size": 1, "kernel_size": 3,
         "conditioning_dim": 32, "block_out_channels": (32, 32), "num_attention_heads": (2, 2), "clip_seq": 2,
         "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "dropout": (0.0, 0.0),
         "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "switch_level": (False,),
         "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
         "clip_text_in_channels": 32, "clip_text_pooled_in_channels": 32, "clip_image_in_channels": 32}, _cascade, 0,
    ),
    "UNet3DConditionModel": (
        {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
         "cross_attention_dim": 32, "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock3D",
         "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}, _video(4, "sample"), 9,
    ),
}  # fmt: skip
_TRANSFORMERS: dict[str, tuple[Mapping[str, Any], Callable[[Draw], dict[str, Any]], int]] = {
    "DiTTransformer2DModel": (
        {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10}, _dit, 2,
    ),
    "PixArtTransformer2DModel": (
        {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "sample_size": 8, "patch_size": 2, "cross_attention_dim": 64, "caption_channels": 32,
         "use_additional_conditions": False}, _pixart, 2,
    ),
    "SD3Transformer2DModel": (
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 64,
         "pooled_projection_dim": 32, "out_channels": 4, "pos_embed_max_size": 8}, _sd3, 3,
    ),
    "FluxTransformer2DModel": (
        {"in_channels": 8, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 4,
         "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8)}, _flux, 2,
    ),
    "AuraFlowTransformer2DModel": (
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
         "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 64,
         "pos_embed_max_size": 16}, _aura, 3,
    ),
    "SanaTransformer2DModel": (
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16,
         "num_cross_attention_heads": 4, "cross_attention_head_dim": 16, "cross_attention_dim": 64,
         "caption_channels": 32, "sample_size": 8, "patch_size": 1}, _pixart, 0,
    ),
    "CogVideoXTransformer3DModel": (
        {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
         "text_embed_dim": 32, "time_embed_dim": 32, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
         "max_text_seq_length": 6}, _cog, 2,
    ),
    "WanTransformer3DModel": (
        {"patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4,
         "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 16},
        _video(4), 2,
    ),
    "LTXVideoTransformer3DModel": (
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 16,
         "cross_attention_dim": 64, "num_layers": 2, "caption_channels": 32}, _ltx, 2,
    ),
    "PriorTransformer": (
        {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": 32,
         "num_embeddings": 6, "additional_embeddings": 4}, _prior, 2,
    ),
}  # fmt: skip
_CODERS: dict[str, tuple[Mapping[str, Any], Callable[[Draw], dict[str, Any]]]] = {
    "AutoencoderKL": (
        {**_CODER, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
         "latent_channels": 4, "sample_size": 16}, _images(3, 16),
    ),
    "VQModel": (
        {**_CODER, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
         "latent_channels": 4, "num_vq_embeddings": 32}, _images(3, 16),
    ),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (16, 16, 16, 16), "decoder_block_out_channels": (16, 16, 16, 16),
         "num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}, _images(3, 32),
    ),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 16, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "decoder_channels": 16,
         "decoder_input_channels": 8}, lambda draw: {"sample": draw.floats(2, 64)},
    ),
}  # fmt: skip


def _make(kind: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        ready()
        import diffusers

        return getattr(diffusers, kind)(**options)

    return make


def architectures() -> Iterator[Architecture]:
    """U-Nets, transformers, autoencoders."""
    for kind, (options, inputs, ffn) in _NETS.items():
        yield Architecture(kind, "diffusion U-Net", _make(kind, options), inputs, False, ffn)
    for kind, (options, inputs, ffn) in _TRANSFORMERS.items():
        yield Architecture(kind, "diffusion transformer", _make(kind, options), inputs, True, ffn)
    for kind, (options, inputs) in _CODERS.items():
        yield Architecture(kind, "autoencoder", _make(kind, options), inputs)
