"""Diffusion models in few bits: error of the prediction, along the way too, and what the digits are worth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from graphpress.recipe import Recipe
from graphpress.runner import Progress
from graphpress.tools.bench.diffusion import NAMES, Sampler, digits, error, traced
from graphpress.tools.bench.figures.base import Figure

_TITLE = {"dit": "DiT", "unet": "U-Net"}
# bits -> how much of its square a prediction may lose, how many points of class accuracy
_BARS = {
    "dit": {"W4A8": (0.003, 2.0), "W4A4": (0.02, 4.0), "W3A16": (0.01, None)},
    "unet": {"W8A8": (0.004, None), "W4A8": (0.008, 2.0), "W4A4": (0.03, 4.0)},
}  # fmt: skip


def recipes() -> dict[str, Recipe]:
    """Pipelines by what they are called, their parts one by one: those that are measured against the bars come last."""
    viditq, svd, tlq = (Recipe.load(n) for n in ("w4a8-viditq", "w4a4-svdquant", "w3a16-tlq"))
    rtn = _without(viditq, "smooth", "rotate", "gptq")
    return {
        "W8A8 static": Recipe.load("w8a8"),
        "W8A8 static, ends float": Recipe.load("w8a8").set(["quantize.ends=float"]),
        "W8A8 per token": rtn.set(["quantize.weight=int8", "quantize.weight_granularity=per_channel"]),
        "W4A8 RTN": rtn,
        "W4A8 smooth": _without(viditq, "rotate", "gptq"),
        "W4A8 smooth, turned": _without(viditq, "gptq"),
        "W4A8 ViDiT-Q, GPTQ": viditq,
        "W4A4 RTN": _without(svd, "smooth", "svd-branch", "gptq"),
        "W4A4 smooth": _without(svd, "svd-branch", "gptq"),
        "W4A4 smooth, low rank": _without(svd, "gptq"),
        "W4A4 SVDQuant, GPTQ": svd,
        "W4A4 rotated, GPTQ": Recipe.load("w4a4-rot").set(["quantize.ends=float"]),
        "W3A16 TLQ": _without(tlq, "gptq"),
        "W3A16 TLQ, GPTQ": tlq,
    }


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Each model in each pipeline; a bar is held by the best of its bits."""
    import graphpress as gp
    from graphpress.backends import ort

    for name in NAMES:
        model, sampler, fresh = traced(zoo, name), Sampler(zoo, name), digits(zoo, name, 256, 777)
        before = ort.execute(model)
        made = sampler.run(before)
        right = sampler.right(made)
        yield Figure(f"{_TITLE[name]} float", "", f"{right:.0f} %, distance {sampler.distance(made):.3f}", None, _NOTE)
        best: dict[str, tuple[float, float, str]] = {}
        for what, recipe in recipes().items():
            after, _ = gp.compile(
                model, recipe, digits(zoo, name, 128, 5), gate=False, prove=False, progress=progress
            )  # fmt: skip
            runner = ort.execute(after)
            lost, along, drawn = error(before, runner, fresh), sampler.velocity(before, runner), sampler.run(runner)
            points = right - sampler.right(drawn)
            said = f"{lost:.4f}, on the way {along:.4f}; {right - points:.0f} %, distance {sampler.distance(drawn):.3f}"
            yield Figure(f"{_TITLE[name]} {what}", "", said)
            best[what[:4].strip()] = min(best.get(what[:4].strip(), (9.0, 0.0, "")), (lost, points, what))
        for bits, (most, points_most) in _BARS[name].items():
            lost, points, what = next(v for k, v in best.items() if bits.startswith(k))
            yield Figure(f"{_TITLE[name]} {bits}: squared error of the prediction", f"<= {most}", f"{lost:.4f}",
                         lost <= most, what)  # fmt: skip
            if points_most is not None:
                yield Figure(f"{_TITLE[name]} {bits}: class accuracy lost", f"<= {points_most:g} points",
                             f"{points:.0f}", points <= points_most, what)  # fmt: skip


_NOTE = "100 digits in 16 steps with guidance 2, judged by a CNN; sliced Wasserstein distance to real ones"


def _without(recipe: Recipe, *names: str) -> Recipe:
    plain = recipe.to_json()
    return Recipe.load({**plain, "passes": [p for p in plain["passes"] if not set(p) & set(names)]})
