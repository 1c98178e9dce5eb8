"""Sony's Model Compression Toolkit on the module of a CNN: its plain quantization and EPTQ (gradients)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from graphpress.runner import Arrays
from graphpress.tools.bench.peers.base import Method
from graphpress.tools.bench.peers.feeds import batches

EPOCHS = 15


def _compress(gradient: bool, bits: int, source: Path, data: Arrays, out: Path) -> None:
    import model_compression_toolkit as mct
    import torch
    from safetensors.torch import load_file

    from graphpress.tools.bench.torch_models import CifarResNet

    def feeds() -> Iterator[list[Any]]:
        for batch in batches(data, 50):
            yield [torch.from_numpy(a) for a in batch.values()]

    module = CifarResNet({"resnet20": 3, "resnet56": 9}[source.stem])
    module.load_state_dict(load_file(source.with_suffix(".safetensors")))
    module.eval()
    core = mct.core.CoreConfig(bit_width_config=mct.core.BitWidthConfig())
    convolutions = mct.core.common.network_editors.NodeTypeFilter(torch.nn.Conv2d)
    core.bit_width_config.set_manual_weights_bit_width(convolutions, bits, "weight")
    platform = mct.get_target_platform_capabilities("1.0", "imx500")
    if gradient:
        config = mct.gptq.get_pytorch_gptq_config(n_epochs=EPOCHS)
        found, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            module, feeds, gptq_config=config, core_config=core, target_platform_capabilities=platform
        )
    else:
        found, _ = mct.ptq.pytorch_post_training_quantization(
            module, feeds, core_config=core, target_platform_capabilities=platform
        )
    older = functools.partial(torch.onnx.export, dynamo=False)  # the newer exporter, torch's default, refuses it
    with mock.patch("torch.onnx.export", older):
        mct.exporter.pytorch_export_model(
            found, str(out), feeds, quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT
        )


METHODS = tuple(
    Method(f"MCT {name}", f"W{bits}A8", ("resnet20", "resnet56"), functools.partial(_compress, gradient, bits),
           ("model-compression-toolkit", "torch"))
    for bits in (8, 4)
    for name, gradient in (("plain", False), ("EPTQ", True))
)  # fmt: skip
