"""Trains the demo's model anew: ``python -m graphpress.tools.demo.train``, in a checkout, in half a minute.

Writes, beside this file:
    digits.onnx: A residual CNN for 8x8 images of handwritten digits, float32, BatchNormalization not folded,
        ``image`` [batch, 1, 8, 8] in 0..1 -> ``logits`` [batch, 10].
    digits.npz: The 600 samples it was not trained on, as ``image`` and ``labels``.

The images are scikit-learn's copy of the test set of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits
(UCI, 1998).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import sklearn.datasets
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
HELD_OUT = 600
EPOCHS = 40
BATCH = 64


class Residual(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions of ``width`` channels, each with a batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Digits(nn.Module):
    """A stem and a residual block at 8x8 pixels, the same at 4x4 with twice the channels, a linear classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block1 = Residual(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.block2 = Residual(2 * width)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.block1(F.relu(self.bn1(self.conv1(image))))
        x = self.block2(F.relu(self.bn2(self.conv2(F.max_pool2d(x, 2)))))
        return self.classifier(x.mean((2, 3)))


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel in each direction, with zeros coming in."""
    padded = F.pad(images, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(images)))
    rows = (dy[:, None] + torch.arange(8))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(8))[:, None, None, :]
    return padded[torch.arange(len(images))[:, None, None, None], 0, rows, columns]


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Adam with one cycle of the learning rate. The seed and the one thread make it repeatable on one machine."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            F.cross_entropy(model(shifted(images[batch])), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, image: torch.Tensor, path: Path) -> None:
    """Write ``model`` at opset 18 with a dynamic batch, and without what the exporter notes about this machine."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model, (image,), dynamo=True, optimize=False, opset_version=18, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes=({0: batch},),
    )  # fmt: skip
    made = program.model
    onnxscript.optimizer.fold_constants(made)  # the exporter's own optimisation would fold the batch norms too
    onnxscript.optimizer.remove_unused_nodes(made)
    for thing in (made, made.graph, *made.graph, *made.graph.inputs, *made.graph.initializers.values()):
        thing.metadata_props.clear()
        thing.doc_string = None
    for node in made.graph:
        for value in node.outputs:
            value.metadata_props.clear()
    ir.save(made, path)


def main() -> None:
    """Train, write both files, and say the accuracy on the samples not trained on."""
    digits = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)

    model = train(x[HELD_OUT:], y[HELD_OUT:])
    with torch.no_grad():
        right = (model(x[:HELD_OUT]).argmax(1) == y[:HELD_OUT]).double().mean().item()
    export(model, x[:2], HERE / "digits.onnx")
    np.savez_compressed(HERE / "digits.npz", image=images[:HELD_OUT], labels=labels[:HELD_OUT])
    print(f"float accuracy on {HELD_OUT} images not trained on: {right:.2%}")


if __name__ == "__main__":
    main()
