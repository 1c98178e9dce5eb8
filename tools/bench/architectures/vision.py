"""Vision models of transformers and timm: transformers, convolutional networks, detectors, two towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graphpress.tools.bench.architectures.architecture import Architecture, Draw, ready

_SMALL: Mapping[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_STAGES: Mapping[str, Any] = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
_RESNET: Mapping[str, Any] = {
    "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "layer_type": "basic",
    "out_features": ["stage4"],
}  # fmt: skip
_DETR: Mapping[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 12,
}  # fmt: skip
_TOWER: Mapping[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip

# transformers' model class -> (options, pixels of a side, prenorm, feed-forward blocks)
_TRANSFORMERS: dict[str, tuple[Mapping[str, Any], int, bool, int]] = {
    "ViTForImageClassification": (_SMALL, 32, True, 2),
    "DeiTForImageClassification": (_SMALL, 32, True, 2),
    "BeitForImageClassification": (_SMALL, 32, True, 2),
    "Dinov2ForImageClassification": ({**_SMALL, "mlp_ratio": 2}, 32, True, 2),
    "ViTMSNModel": (_SMALL, 32, True, 2),
    "SwinForImageClassification": ({**_STAGES, "image_size": 32, "patch_size": 4}, 32, True, 2),
    "Swinv2ForImageClassification": ({**_STAGES, "image_size": 32, "patch_size": 4}, 32, False, 2),
    "SegformerForSemanticSegmentation": (
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4],
         "decoder_hidden_size": 32}, 64, True, 0,
    ),
    "MobileViTForImageClassification": (
        {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64], "image_size": 64},
        64, True, 9,
    ),
    "PvtForImageClassification": (
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4],
         "image_size": 64}, 64, True, 4,
    ),
    "LevitForImageClassification": (
        {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
         "image_size": 64}, 64, False, 2,
    ),
    "HieraModel": (
        {"embed_dim": 16, "image_size": [32, 32], "depths": [1, 1, 1], "num_heads": [1, 2, 4], "query_stride": [2, 2],
         "masked_unit_size": [4, 4], "num_query_pool": 2, "patch_size": [3, 3], "patch_stride": [4, 4],
         "patch_padding": [1, 1]}, 32, True, 3,
    ),
    "DINOv3ViTModel": ({**_SMALL, "num_register_tokens": 2}, 32, True, 2),
    "FocalNetForImageClassification": (
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3],
         "hidden_sizes": [16, 32]}, 32, True, 2,
    ),
    "SwiftFormerForImageClassification": (
        {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "image_size": 64}, 64, False, 0,
    ),
    "PoolFormerForImageClassification": ({"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, 64, True, 0),
}  # fmt: skip
_DETECTORS: dict[str, tuple[Mapping[str, Any], int, bool, int]] = {
    "YolosForObjectDetection": ({**_SMALL, "num_detection_tokens": 8, "image_size": [32, 32]}, 32, True, 2),
    "DetrForObjectDetection": (_DETR, 64, False, 3),
    "ConditionalDetrForObjectDetection": (_DETR, 64, False, 3),
    "DeformableDetrForObjectDetection": ({**_DETR, "num_feature_levels": 2}, 64, False, 3),
    "RTDetrForObjectDetection": (
        {"d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "encoder_ffn_dim": 64,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_ffn_dim": 64,
         "num_queries": 12, "decoder_in_channels": [32, 32, 32]}, 64, False, 3,
    ),
}  # fmt: skip
# transformers' model class -> options
_CONVOLUTIONAL: dict[str, Mapping[str, Any]] = {
    "ResNetForImageClassification": {k: v for k, v in _RESNET.items() if k != "out_features"},
    "ConvNextV2ForImageClassification": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "RegNetForImageClassification": {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
                                     "groups_width": 16},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.35},
}  # fmt: skip
# timm's name -> (options, pixels of a side, family, prenorm, feed-forward blocks)
_CNN, _VIT = "convolutional", "vision transformer"
_TIMM: dict[str, tuple[Mapping[str, Any], int, str, bool, int]] = {
    "resnet18": ({}, 32, _CNN, False, 0),
    "mobilenetv3_small_050": ({}, 32, _CNN, False, 0),
    "efficientnet_lite0": ({}, 32, _CNN, False, 0),
    "regnety_002": ({}, 32, _CNN, False, 0),
    "densenet121": ({"growth_rate": 8, "block_config": (2, 2, 2, 2)}, 64, _CNN, False, 0),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}, 64, _CNN, False, 0),
    "repvgg_a0": ({}, 32, _CNN, False, 0),
    "ghostnet_050": ({}, 64, _CNN, False, 0),
    "nf_regnet_b0": ({}, 64, _CNN, False, 0),
    "hgnetv2_b0": ({}, 64, _CNN, False, 0),
    "fastvit_t8": ({}, 64, _CNN, False, 0),
    "starnet_s1": ({}, 64, _CNN, False, 0),
    "inception_next_atto": ({}, 64, _CNN, False, 0),
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": 64}, 64, _VIT, True, 2),
    "eva02_tiny_patch14_224": ({"depth": 2, "img_size": 56}, 56, _VIT, True, 2),
    "mixer_s32_224": ({"img_size": 64}, 64, _VIT, True, 16),
    "gmlp_ti16_224": ({"img_size": 64}, 64, _VIT, True, 0),
    "tnt_s_legacy_patch16_224": (
        {"depth": 2, "img_size": 64, "embed_dim": 64, "num_heads_outer": 4}, 64, _VIT, True, 4,
    ),
    "cait_xxs24_224": ({"depth": 2, "img_size": 64}, 64, _VIT, True, 4),
    "xcit_nano_12_p16_224": ({"depth": 2, "img_size": 64}, 64, _VIT, True, 4),
    "maxvit_rmlp_pico_rw_256": ({"img_size": 64}, 64, _VIT, True, 22),
    "efficientformer_l1": ({"depths": (1, 1, 1, 2)}, 224, _VIT, False, 1),
    "edgenext_xx_small": ({"depths": (1, 1, 1, 1)}, 64, _VIT, True, 4),
}  # fmt: skip


def _transformers(kind: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        ready()
        import transformers

        options_ = dict(options)
        if "Detr" in kind:
            backbone = transformers.RTDetrResNetConfig if kind.startswith("RT") else transformers.ResNetConfig
            stages = ["stage2", "stage3", "stage4"] if "RT" in kind else ["stage3", "stage4"]
            own = dict(_RESNET) | {"out_features": stages if "Def" in kind or "RT" in kind else ["stage4"]}
            options_ |= {"backbone_config": backbone(**own), "use_timm_backbone": False,
                         "use_pretrained_backbone": False, "backbone": None}  # fmt: skip
        model = getattr(transformers, kind)
        return model(model.config_class(**options_))

    return make


def _timm(name: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        ready()
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return make


def _towers(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        ready()
        import transformers

        text = {**_TOWER, "vocab_size": 256, "max_position_embeddings": 16, "projection_dim": 32,
                "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
        vision = {**_TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 32}
        model = getattr(transformers, kind)
        sizes = {} if "Siglip" in kind else {"projection_dim": 32}
        return model(model.config_class(text_config=text, vision_config=vision, **sizes))

    return make


def _pixels(side: int, name: str = "pixel_values") -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {name: draw.floats(3, side, side)}


def _both(draw: Draw) -> dict[str, Any]:
    return {"input_ids": draw.ids(12), "attention_mask": draw.ones(12), "pixel_values": draw.floats(3, 32, 32)}


def _pictures_and_ids(draw: Draw) -> dict[str, Any]:
    return {"input_ids": draw.ids(12), "pixel_values": draw.floats(3, 32, 32)}


def architectures() -> Iterator[Architecture]:
    """Vision transformers, detectors, convolutional networks, and models of pictures and text."""
    for family, models in ((_VIT, _TRANSFORMERS), ("detector", _DETECTORS)):
        for kind, (options, side, prenorm, ffn) in models.items():
            yield Architecture(kind, family, _transformers(kind, options), _pixels(side), prenorm, ffn)
    for kind, options in _CONVOLUTIONAL.items():
        yield Architecture(kind, _CNN, _transformers(kind, options), _pixels(64))
    for name, (options, side, family, prenorm, ffn) in _TIMM.items():
        yield Architecture(f"timm {name}", family, _timm(name, options), _pixels(side, "x"), prenorm, ffn)
    for kind in ("CLIPModel", "SiglipModel"):
        inputs = _both if kind == "CLIPModel" else _pictures_and_ids
        yield Architecture(kind, "pictures and text", _towers(kind), inputs, True, 4)
