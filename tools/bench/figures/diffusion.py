"""Diffusion models in few bits: error of the prediction, along the way too, and what the digits are worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphpress.recipe import Recipe
from graphpress.runner import Progress, Runner
from graphpress.tools.bench.diffusion import NAMES, Sampler, digits, error, traced
from graphpress.tools.bench.figures.base import Figure

_RTN, _VIDITQ = "W4A8 RTN", "W4A8 ViDiT-Q, GPTQ"
_ORDER = ("W4A4 RTN", "W4A4 smooth", "W4A4 smooth, low rank")  # each loses less than the one before
_DRAWS = (777, 778, 779)  # seeds of samples that nothing was calibrated on; the first is judged by
_TITLE = {"dit": "DiT", "unet": "U-Net"}
# bits -> how much of its square a prediction may lose, how many points of class accuracy
_BARS = {
    "dit": {"W4A8": (0.003, 2.0), "W4A4": (0.02, 4.0), "W3A16": (0.01, None)},
    "unet": {"W8A8": (0.004, None), "W4A8": (0.008, 2.0), "W4A4": (0.03, 4.0)},
}  # fmt: skip


def recipes() -> dict[str, Recipe]:
    """Pipelines by what they are called, their parts one by one."""
    viditq, svd, tlq = (Recipe.load(n) for n in ("w4a8-viditq", "w4a4-svdquant", "w3a16-tlq"))
    rtn, float_ends = _without(viditq, "smooth", "rotate", "gptq"), ["quantize.ends=float"]
    lrqdit, learned = Recipe.load("w4a4-lrqdit"), Recipe.load("w3a16-autoround")
    uniform = ["quantize.quantizer=affine", "quantize.weight_granularity=per_group"]
    return {
        "W8A8 static": Recipe.load("w8a8"),
        "W8A8 static, scales by 4 ranges of steps": Recipe.load("w8a8").set([_steps(4)]),
        "W8A8 static, scales by 16 ranges of steps": Recipe.load("w8a8").set([_steps(16)]),
        "W8A8 static, ends float": Recipe.load("w8a8").set(float_ends),
        "W8A8 per token": rtn.set(["quantize.weight=int8", "quantize.weight_granularity=per_channel"]),
        _RTN: rtn.set(["quantize.ends=same"]),
        "W4A8 RTN, ends float": rtn,
        "W4A8 smooth": _without(viditq, "rotate", "gptq"),
        "W4A8 smooth, turned": _without(viditq, "gptq"),
        _VIDITQ: viditq,
        "W4A4 RTN": _without(svd, "smooth", "svd-branch", "gptq"),
        "W4A4 smooth": _without(svd, "svd-branch", "gptq"),
        "W4A4 smooth, low rank": _without(svd, "gptq"),
        "W4A4 SVDQuant, GPTQ": svd,
        "W4A4 rotated, GPTQ": Recipe.load("w4a4-rot").set(float_ends),
        "W4A4 LRQ-DiT (ARS, TLQ, GPTQ)": lrqdit,
        "W4A4 LRQ-DiT, threshold 1": lrqdit.set(["rotate.salient=1"]),
        "W4A4 ARS, even steps in groups, GPTQ": lrqdit.set(uniform),
        "W3A16 TLQ, GPTQ": tlq,
        "W3A16 TLQ, GPTQ, ends float": tlq.set(float_ends),
        "W3A16 AutoRound": learned,
        "W3A16 AutoRound, ends float": learned.set(float_ends),
    }


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Each model in each pipeline; a bar is held by the best of its bits."""
    for name in NAMES:
        judged = _Judged.of(zoo, name)
        yield Figure(f"{_TITLE[name]} float", "", judged.said(), None, _NOTE[name])
        for what, recipe in recipes().items():
            yield Figure(f"{_TITLE[name]} {what}", "", judged(what, recipe, progress))
        yield from _bars(name, judged.lost, judged.points)
        yield from _orders(name, judged)


def _bars(name: str, lost: Mapping[str, float], points: Mapping[str, float]) -> Iterator[Figure]:
    for bits, (most, points_most) in _BARS[name].items():
        what = min((w for w in lost if w.split()[0] == bits), key=lambda w: lost[w])
        yield Figure(f"{_TITLE[name]} {bits}: squared error of the prediction", f"<= {most}", f"{lost[what]:.4f}",
                     lost[what] <= most, what)  # fmt: skip
        if points_most is not None:
            yield Figure(f"{_TITLE[name]} {bits}: class accuracy lost", f"<= {points_most:g} points",
                         f"{points[what]:.0f}", points[what] <= points_most, what)  # fmt: skip


def _orders(name: str, judged: _Judged) -> Iterator[Figure]:
    """What pipelines owe one another."""
    lost = judged.lost
    for what in (_RTN, "W4A8 RTN, ends float"):
        won, bar = 1 - lost[_VIDITQ] / lost[what], 0.9 if what == _RTN else None
        yield Figure(f"{_TITLE[name]} W4A8: ViDiT-Q wins back of what is lost by {what.removeprefix('W4A8 ')}",
                     "" if bar is None else f">= {bar:.0%}", f"{won:.1%}",
                     None if bar is None else won >= bar)  # fmt: skip
    yield from order(name, judged.along, {what: judged.draws[what] for what in _ORDER})


def order(name: str, along: Mapping[str, float], draws: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    """Whether smoothing, and a branch of low rank behind it, each lose less: on new samples, and on the way."""
    first, *others = zip(*(draws[what] for what in _ORDER), strict=True)
    said = "; ".join(_row(found) for found in others)
    way = [along[what] for what in _ORDER]
    for what, found, note in (("", first, f"on other draws of samples: {said}"), (", on the way", way, "")):
        falls = all(a > b for a, b in pairwise(found))
        yield Figure(f"{_TITLE[name]} W4A4{what}: naive > smooth > smooth + low rank", "strict", _row(found), falls,
                     note)  # fmt: skip


def _row(errors: Sequence[float]) -> str:
    return ", ".join(f"{e:.4f}" for e in errors)


@dataclass
class _Judged:
    """What pipelines make of a model.

    Attributes:
        lost: Of the square of the prediction on new inputs, by pipeline.
        draws: Likewise on each draw of them, of the pipelines that are compared with one another.
        along: Likewise on the way from noise to digits.
        points: Of class accuracy, likewise.
    """

    name: str
    model: ir.Model
    before: Runner
    sampler: Sampler
    data: dict[str, np.ndarray]
    fresh: tuple[dict[str, np.ndarray], ...]
    way: list[tuple[np.ndarray, float, np.ndarray]]
    right: float
    distance: float
    lost: dict[str, float] = field(default_factory=dict)
    points: dict[str, float] = field(default_factory=dict)
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)
    along: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, zoo: Path, name: str) -> _Judged:
        from graphpress.backends import ort

        model, sampler = traced(zoo, name), Sampler(zoo, name)
        before = ort.execute(model)
        way = sampler.float_way(before)
        fresh = tuple(digits(zoo, name, 256, seed) for seed in _DRAWS)
        data, made = digits(zoo, name, 128, 5), way[-1][0]
        return cls(name, model, before, sampler, data, fresh, way, sampler.right(made), sampler.distance(made))

    def said(self) -> str:
        return f"{self.right:.0f} %, distance {self.distance:.3f}"

    def __call__(self, what: str, recipe: Recipe, progress: Progress) -> str:
        import graphpress as gp
        from graphpress.backends import ort

        after, _ = gp.compile(self.model, recipe, self.data, gate=False, prove=False, progress=progress)
        runner = ort.execute(after)
        wanted = self.fresh if what in _ORDER else self.fresh[:1]
        self.draws[what] = tuple(error(self.before, runner, feeds) for feeds in wanted)
        self.lost[what], self.along[what] = self.draws[what][0], self.sampler.velocity(self.way, runner)
        drawn = self.sampler.run(runner)
        right, distance = self.sampler.right(drawn), self.sampler.distance(drawn)
        self.points[what] = self.right - right
        return f"{self.lost[what]:.4f}, on the way {self.along[what]:.4f}; {right:.0f} %, distance {distance:.3f}"


_DIGITS = "100 digits in 16 steps with guidance 2, judged by a CNN; sliced Wasserstein distance to real ones"
_MAPS = "where each token has its own scale, what convolutions read has 8 bits by tensor, in W4A4 too: it has no tokens"
_NOTE = {"dit": _DIGITS, "unet": f"{_DIGITS}; {_MAPS}"}


def _steps(ranges: int) -> str:
    """The option that gives static activations a scale for each of some even ranges."""
    return "quantize.steps=t=" + ",".join(f"{i / ranges:g}" for i in range(ranges + 1))


def _without(recipe: Recipe, *names: str) -> Recipe:
    plain = recipe.to_json()
    return Recipe.load({**plain, "passes": [p for p in plain["passes"] if not set(p) & set(names)]})
