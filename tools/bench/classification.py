"""Classifiers: top-1 accuracy in per cent on images or features that calibration did not see."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

import numpy as np

from graphpress.runner import Runner
from graphpress.tools.bench.images import read
from graphpress.tools.bench.task import Scores, Task, first, in_batches, parts

_MEAN, _STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # of the ResNets' inputs
CALIBRATION = 300  # samples, where the data are plenty


def tasks(zoo: Path) -> list[Task]:
    """CIFAR-10 ResNets, MobileNetV1, keyword spotting and MNIST networks."""
    resnets = [f"resnet{n}{bn}" for n in (20, 56) for bn in ("", "_bn")]
    found = [_task(zoo / f"cifar10/{n}.onnx", functools.partial(_cifar, zoo, True)) for n in resnets]
    found.append(_task(zoo / "cifar10/mlperf_tiny_resnet8.onnx", functools.partial(_cifar, zoo, False)))
    for width, size in (("0.5", 160), ("0.75", 192)):
        path = zoo / f"imagenet/mobilenet_v1_{width}_{size}.onnx"
        found.append(
            _task(path, functools.partial(_imagenet, zoo, size), "100 of 500 calibrate, the others are scored")
        )
    keywords = _task(
        zoo / "speech/kws/ds_cnn.onnx", functools.partial(_keywords, zoo), "the last 700 of 1,000 are scored"
    )
    digits = [
        _task(zoo / f"mnist/{n}.onnx", functools.partial(_mnist, zoo), batch=1)
        for n in ("burn_mnist", "cnn_mnist_pytorch")
    ]
    return [*found, keywords, *digits]


Split = tuple[np.ndarray, np.ndarray]  # samples, labels


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 in per cent; logits [N, classes]."""
    return float((logits.argmax(-1) == labels).mean() * 100)


def _task(path: Path, split: functools.partial[tuple[Split, Split]], note: str = "", batch: int | None = None) -> Task:
    """``split()`` gives the held-in and the held-out samples; ``batch`` is the one the file is fixed to."""
    split = functools.cache(split)  # type: ignore[assignment]

    def data() -> dict[str, np.ndarray]:
        samples, labels = split()[0]
        return {_input_name(path): samples, "labels": labels.astype(np.int64)}

    def scores(runner: Runner, _: Runner) -> Scores:
        samples, labels = split()[1]
        return {"top-1 %": accuracy(in_batches(runner, runner.input_names[0], samples, batch or 50), labels)}

    batches = (batch,) if batch else (1, 32)
    return Task(path.stem, "classifier", lambda _: path, data, scores, lambda n: first(data(), n), batches, note=note)


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _cifar(zoo: Path, standardise: bool) -> tuple[Split, Split]:
    """CIFAR-10 as float NCHW; ``standardise`` by the statistics the ResNets were trained with, else 0..255."""

    def load(name: str) -> Split:
        with np.load(zoo / "cifar10" / name) as z:
            x, y = z["x"].astype(np.float32), z["y"]
        if standardise:
            x = (x / 255 - _MEAN) / _STD
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y

    x, y = load("calib.npz")
    return (x[:CALIBRATION], y[:CALIBRATION]), load("test.npz")


def photographs(zoo: Path, size: int) -> Split:
    """All 500 of ImageNet's classes in [-1, 1], NCHW."""
    labels = {row["file"]: row["label"] for row in json.loads((zoo / "imagenet/labels.json").read_text())}
    paths = sorted((zoo / "imagenet/images").glob("*.jpg"))
    x = np.stack([read(p, (size, size)) for p in paths]).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    y = np.array([labels[p.name] for p in paths])
    return x, y


def _imagenet(zoo: Path, size: int) -> tuple[Split, Split]:
    x, y = photographs(zoo, size)
    held_in, held_out = parts(len(x), 100)
    return (x[held_in], y[held_in]), (x[held_out], y[held_out])


def _keywords(zoo: Path) -> tuple[Split, Split]:
    with np.load(zoo / "speech/kws/mfcc.npz") as z:
        x, y = z["x"], z["y"]
    return (x[:CALIBRATION], y[:CALIBRATION]), (x[CALIBRATION:], y[CALIBRATION:])


def _mnist(zoo: Path) -> tuple[Split, Split]:
    """The first 1,000 images are scored, the last 300 calibrate."""
    images = np.frombuffer(gzip.decompress((zoo / "mnist/t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    y = np.frombuffer(gzip.decompress((zoo / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    x = (images.reshape(-1, 1, 28, 28) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)
    return (x[-CALIBRATION:], y[-CALIBRATION:]), (x[:1000], y[:1000])
