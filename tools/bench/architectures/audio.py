"""Speech models and codecs of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graphpress.tools.bench.architectures.architecture import Architecture, Draw, of_transformers

_WAVES: Mapping[str, Any] = {
    "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 4, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_SPEECH: Mapping[str, Any] = {
    "vocab_size": 256, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
# model class -> (options, prenorm, feed-forward blocks)
_BY_WAVE: dict[str, tuple[Mapping[str, Any], bool, int]] = {
    "Wav2Vec2ForCTC": (_WAVES, False, 2),
    "HubertModel": (_WAVES, False, 2),
    "WavLMModel": ({**_WAVES, "num_buckets": 32, "max_bucket_distance": 64}, False, 2),
    "UniSpeechSatModel": (_WAVES, False, 2),
    "Wav2Vec2ConformerModel": ({**_WAVES, "conv_depthwise_kernel_size": 7}, True, 4),
    "SEWModel": (_WAVES, False, 2),
}


def _wave(length: int, name: str = "input_values", axes: int = 0) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {name: draw.floats(*[1] * axes, length) * 0.3}


def _moonshine(draw: Draw) -> dict[str, Any]:
    return {"input_values": draw.floats(4000) * 0.3, "decoder_input_ids": draw.ids(6)}


def _whisper(draw: Draw) -> dict[str, Any]:
    return {"input_features": draw.floats(16, 64), "decoder_input_ids": draw.ids(6)}


def _speech_to_text(draw: Draw) -> dict[str, Any]:
    return {"input_features": draw.floats(64, 16), "attention_mask": draw.ones(64), "decoder_input_ids": draw.ids(6)}


# model class -> (options, inputs, prenorm, feed-forward blocks)
_OTHERS: dict[str, tuple[Mapping[str, Any], Callable[[Draw], dict[str, Any]], bool, int]] = {
    "WhisperForConditionalGeneration": (
        {**_SPEECH, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32, "max_length": 32,
         "suppress_tokens": [], "begin_suppress_tokens": []}, _whisper, True, 4,
    ),
    "Speech2TextForConditionalGeneration": (
        {**_SPEECH, "input_feat_per_channel": 16, "max_source_positions": 64, "max_target_positions": 32,
         "conv_channels": 64}, _speech_to_text, True, 4,
    ),
    "MoonshineForConditionalGeneration": (
        {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "encoder_num_hidden_layers": 2,
         "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
         "max_position_embeddings": 32}, _moonshine, True, 4,
    ),
    "ASTForAudioClassification": (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "max_length": 64, "num_mel_bins": 32}, lambda draw: {"input_values": draw.floats(64, 32)}, True, 2,
    ),
    "Wav2Vec2BertModel": (
        {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "feature_projection_input_dim": 32},
        lambda draw: {"input_features": draw.floats(24, 32)}, True, 4,
    ),
    "VitsModel": (
        {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
         "flow_size": 32, "spectrogram_bins": 33, "upsample_initial_channel": 32, "prior_encoder_num_flows": 2,
         "posterior_encoder_num_wavenet_layers": 2}, lambda draw: {"input_ids": draw.ids(8, 40)}, False, 0,
    ),
}  # fmt: skip


def architectures() -> Iterator[Architecture]:
    """Speech encoders, speech to text, time series, codecs."""
    for kind, (options, prenorm, ffn) in _BY_WAVE.items():
        yield Architecture(kind, "speech", of_transformers(kind, options), _wave(2000), prenorm, ffn)
    for kind, (options, inputs, prenorm, ffn) in _OTHERS.items():
        yield Architecture(kind, "speech", of_transformers(kind, options), inputs, prenorm, ffn)
    patches = {
        "num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "d_model": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "prediction_length": 8,
    }  # fmt: skip
    kind = "PatchTSTForPrediction"
    yield Architecture(
        kind, "time series", of_transformers(kind, patches), lambda draw: {"past_values": draw.floats(32, 2)}, False, 2
    )
    codecs: dict[str, Mapping[str, Any]] = {
        "EncodecModel": {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32, "codebook_size": 64,
                         "upsampling_ratios": [4, 2], "num_lstm_layers": 1},
        "DacModel": {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 32,
                     "upsampling_ratios": [4, 2], "codebook_size": 64, "n_codebooks": 2, "codebook_dim": 4},
        "MimiModel": {"num_filters": 8, "hidden_size": 32, "codebook_dim": 16, "codebook_size": 64,
                      "num_quantizers": 3, "num_hidden_layers": 2, "intermediate_size": 64,
                      "num_attention_heads": 4, "num_key_value_heads": 4, "upsampling_ratios": [4, 2],
                      "vector_quantization_hidden_dimension": 16, "head_dim": 8, "sliding_window": 16,
                      "upsample_groups": 32},
    }  # fmt: skip
    for kind, options in codecs.items():
        yield Architecture(kind, "codec", of_transformers(kind, options), _wave(512, axes=1))
