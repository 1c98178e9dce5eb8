"""Few bits on CNNs: W4A4 on real images and on none, W2A4 against BRECQ's own ratio, W4A8 with depthwise layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.backends import ort
from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.images import square
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

Images = Mapping[str, np.ndarray]
_RESNETS = {"resnet20_bn": "ResNet-20", "resnet56_bn": "ResNet-56"}
_REAL, _PAINTED = 2.5, 4.0  # points below float, on real images and on none
_DEPTHWISE, _MOBILE = 2.0, "mobilenet_v1_0.75_192"
# ResNet-18 at W2A4: BRECQ, what stood before it, float (arXiv:2102.05426 and its repository's page)
_BRECQ, _BEFORE, _FLOAT = 65.21, 0.136, 71.0
_RATIO = (_FLOAT - _BRECQ) / (_FLOAT - _BEFORE)
_TWO = {"weight": "int2", "weight_symmetric": False}
_LONG: Mapping[str, Any] = {"steps": 140, "lr": None}  # the rate is that of the method for so many


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Top-1 in per cent of held-out images; none of them, and no label, is seen before."""
    yield from _depthwise(Scored(zoo, _MOBILE, progress), zoo)
    for name, title in _RESNETS.items():
        net = Scored(zoo, name, progress)
        yield from _four(net, title)
        yield from _two(net, title)


class Scored:
    """A network and what recipes leave of its accuracy."""

    def __init__(self, zoo: Path, name: str, progress: Progress) -> None:
        (self.task,) = tasks(zoo, name)
        self.model, self.progress = ir.load(self.task.file(zoo)), progress
        self.whole = _top1(self.task, self.model)

    def by(self, recipe: Recipe, data: Images | None) -> tuple[float, Mapping[str, Mapping[str, Any]]]:
        """Top-1 in per cent, and what each pass measured."""
        import graphpress as gp

        made, report = gp.compile(self.model, recipe, data, gate=False, prove=False, progress=self.progress)
        return _top1(self.task, made), {p.name: p.metrics for p in report.passes}

    @cached_property
    def images(self) -> Images:
        """What calibrates."""
        return {k: v for k, v in self.task.data().items() if k != "labels"}


def _top1(task: Task, model: ir.Model) -> float:
    runner = ort.execute(model)
    return next(iter(task.scores(runner, runner).values()))


def _four(net: Scored, title: str) -> Iterator[Figure]:
    """4 bits for weights and activations, by GENIE-M on real images, and on images of Genie-D alone."""
    recipe, without = Recipe.load("w4a4-genie"), Recipe.load("w4a4-genie-zeroshot")
    nearest, learned = (net.by(r, net.images)[0] for r in (_changed(recipe, {}, None), recipe))
    yield Figure(
        f"{title} W4A4 by GENIE-M on 300 real images", f"within {_REAL} points of float",
        f"{learned:.2f} % (float {net.whole:.2f}, to nearest {nearest:.2f})", net.whole - learned <= _REAL,
    )  # fmt: skip
    painted, told = net.by(without, None)
    made = told["genie-d"]
    yield Figure(
        f"{title} W4A4 by GENIE-M on images of Genie-D alone (w4a4-genie-zeroshot)",
        f"within {_PAINTED} points of float", f"{painted:.2f} % (float {net.whole:.2f})",
        net.whole - painted <= _PAINTED,
        f"{made['samples']} images, {made['iterations']} steps in all (the paper: 4,000 a batch); "
        f"distance from the statistics {made['loss']:.2f}, of noise {made['loss of noise']:.0f}",
    )  # fmt: skip


def _two(net: Scored, title: str) -> Iterator[Figure]:
    """2-bit weights: the share of what rounding to nearest loses that is still lost, against that of BRECQ's paper."""
    four = Recipe.load("w4a4-genie")
    nearest = net.whole - net.by(_changed(four, _TWO, None), net.images)[0]
    for method, shown in (("genie_m", "GENIE-M"), ("brecq", "BRECQ")):
        learned = net.by(_changed(four, _TWO, {"method": method, **_LONG}), net.images)[0]
        ratio = (net.whole - learned) / nearest
        yield Figure(
            f"{title} W2A4 by {shown} on 300 real images", f"at most {_RATIO:.3f} of what rounding to nearest loses",
            f"{ratio:.3f}: {learned:.2f} % (float {net.whole:.2f}, to nearest {net.whole - nearest:.2f})",
            ratio <= _RATIO,
            f"BRECQ's own on ResNet-18: ({_FLOAT} - {_BRECQ}) / ({_FLOAT} - {_BEFORE}), 1,024 images, "
            f"20,000 steps a block; here {_LONG['steps']}, at the method's own rate for as many",
        )  # fmt: skip


def _depthwise(net: Scored, zoo: Path) -> Iterator[Figure]:
    """4-bit weights, also of depthwise layers, whose channels have 9 numbers each."""
    recipe, bar = Recipe.load("w4a8-gptq"), f"within {_DEPTHWISE} points of float"
    few, more = net.images, _mirrored(_with_coco(net.images, zoo))
    yield Figure(
        "MobileNet-0.75 W4A8 on 100 photographs", "",
        f"to nearest {net.by(_without(recipe, 'gptq'), few)[0]:.2f}, GPTQ by layer, biases corrected "
        f"{net.by(_by_layer(recipe), few)[0]:.2f}, w4a8-gptq {net.by(recipe, few)[0]:.2f} % (float {net.whole:.2f})",
        None, "first and last layer in 8 bits",
    )  # fmt: skip
    found = net.by(recipe, more)[0]
    yield Figure(
        "MobileNet-0.75 W4A8 by w4a8-gptq on 164 photographs and their mirror images", bar,
        f"{found:.2f} % (float {net.whole:.2f})", net.whole - found <= _DEPTHWISE, "64 of them of COCO; likewise",
    )  # fmt: skip


def _with_coco(images: Images, zoo: Path) -> Images:
    """The photographs, and the middle squares of those of COCO."""
    ((name, own),) = images.items()
    paths = sorted((zoo / "detection/coco128/images").glob("*.jpg"))
    other = np.stack([square(p, own.shape[-1]) for p in paths]).transpose(0, 3, 1, 2)
    return {name: np.concatenate([own, other / np.float32(127.5) - np.float32(1)])}


def _mirrored(images: Images) -> Images:
    """Each once more, left and right exchanged."""
    return {name: np.concatenate([x, x[..., ::-1]]) for name, x in images.items()}


def _without(recipe: Recipe, name: str) -> Recipe:
    plain = recipe.to_json()
    return Recipe.load({**plain, "passes": [p for p in plain["passes"] if name not in p]})


def _by_layer(recipe: Recipe) -> Recipe:
    """With GPTQ that holds each layer to its own float weight, and biases corrected behind it."""
    plain = recipe.to_json()
    passes = [q for p in plain["passes"] for q in ([{"gptq": {}}, {"correct-biases": {}}] if "gptq" in p else [p])]
    return Recipe.load({**plain, "passes": passes})


def _changed(recipe: Recipe, quantize: Mapping[str, Any], recover: Mapping[str, Any] | None) -> Recipe:
    """With other options, of which ``recover`` may be None: without the training."""
    plain = recipe.to_json()
    options = {"quantize": quantize, "recover": recover or {}}
    passes = [{n: {**own, **options.get(n, {})}} for p in plain["passes"] for n, own in p.items()]
    return Recipe.load({**plain, "passes": [p for p in passes if recover is not None or "recover" not in p]})
