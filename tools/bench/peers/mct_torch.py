"""Sony's Model Compression Toolkit on the module of a CNN: plain, by gradients (EPTQ), mixed, and on data it makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import NO_DATA, Method
from graphpress.tools.bench.peers.feeds import batches

EPOCHS = 15
MADE = 64  # images that it makes of the statistics of BatchNorm, 500 steps for each 32 of them

_RESNETS = {"resnet20": 3, "resnet56": 9}


@dataclass(frozen=True)
class _Way:
    """How a network is quantized.

    Attributes:
        bits: Of the weights of convolutions; the last layer has 8. Activations have 8.
        gradient: Whether rounding is learned (EPTQ).
        mixed: Whether ``bits`` are only an average, and the tool chooses 8, 4 or 2 for each layer.
        make: Whether the tool makes the images itself, from the statistics of BatchNorm.
    """

    bits: int
    gradient: bool = False
    mixed: bool = False
    make: bool = False

    def __call__(self, source: Path, data: Arrays, out: Path) -> None:
        import model_compression_toolkit as mct
        import torch

        module = _module(source)
        feeds = _made(module, next(iter(data.values())).shape[-1]) if self.make else _given(data)
        core = self._core(torch.nn.Conv2d)
        platform = mct.get_target_platform_capabilities("1.0", "imx500")
        memory = mct.core.ResourceUtilization(weights_memory=bytes_of(module, self.bits)) if self.mixed else None
        shared = {"core_config": core, "target_platform_capabilities": platform, "target_resource_utilization": memory}
        if self.gradient:
            config = mct.gptq.get_pytorch_gptq_config(n_epochs=EPOCHS)
            quantize = functools.partial(mct.gptq.pytorch_gradient_post_training_quantization, gptq_config=config)
        else:
            quantize = mct.ptq.pytorch_post_training_quantization
        found, _ = quantize(module, feeds, **shared)
        older = functools.partial(torch.onnx.export, dynamo=False)  # the newer exporter, torch's default, refuses it
        with mock.patch("torch.onnx.export", older):
            fake = mct.exporter.QuantizationFormat.FAKELY_QUANT
            mct.exporter.pytorch_export_model(found, str(out), feeds, quantization_format=fake)

    def _core(self, convolution: type) -> Any:
        import model_compression_toolkit as mct

        if self.mixed:
            return mct.core.CoreConfig(mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig())
        core = mct.core.CoreConfig(bit_width_config=mct.core.BitWidthConfig())
        convolutions = mct.core.common.network_editors.NodeTypeFilter(convolution)
        core.bit_width_config.set_manual_weights_bit_width(convolutions, self.bits, "weight")
        return core


def bytes_of(module: Any, bits: int) -> float:
    """Of the weights of a torch module whose convolutions have ``bits`` and whose linear layers 8, as MCT counts."""
    weights = [p for n, p in module.named_parameters() if n.endswith("weight") and p.ndim > 1]
    return sum(w.numel() * (bits if w.ndim == 4 else 8) / 8 for w in weights)


def _module(source: Path) -> Any:
    from safetensors.torch import load_file

    from graphpress.tools.bench.torch_models import CifarResNet

    module = CifarResNet(_RESNETS[source.stem])
    module.load_state_dict(load_file(source.with_suffix(".safetensors")))
    return module.eval()


def _given(data: Arrays) -> Callable[[], Iterator[list[Any]]]:
    import torch

    def feeds() -> Iterator[list[Any]]:
        for batch in batches(data, 50):
            yield [torch.from_numpy(a) for a in batch.values()]

    return feeds


def _made(module: Any, side: int) -> Callable[[], Iterator[list[Any]]]:
    import model_compression_toolkit as mct
    import torch

    config = mct.data_generation.get_pytorch_data_generation_config()
    images = mct.data_generation.pytorch_data_generation_experimental(module, MADE, side, config)
    stacked = torch.cat([i.reshape(-1, *i.shape[-3:]) for i in images])
    return _given({"x": stacked.detach().numpy()})


_OWN = (("plain", False), ("EPTQ", True))
_WAYS = (
    *((f"W{bits}A8", name, _Way(bits, gradient)) for bits in (8, 4) for name, gradient in _OWN),
    ("W4A8", "mixed precision, 4 bits on average", _Way(4, mixed=True)),
    (f"W8A8 {NO_DATA}", "plain, on generated images", _Way(8, make=True)),
    (f"W4A8 {NO_DATA}", "plain, on generated images", _Way(4, make=True)),
)
METHODS = tuple(
    Method(f"MCT {name}", scheme, tuple(_RESNETS), way, ("model-compression-toolkit", "torch"))
    for scheme, name, way in _WAYS
)
