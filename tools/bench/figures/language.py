"""What formats and methods cost language models, in nats a token over float32: all linear layers but the head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from graphpress.backends import ort, reference
from graphpress.context import Context
from graphpress.contracts import Pass
from graphpress.errors import RecipeError
from graphpress.job import models
from graphpress.observe.data import CalibrationData
from graphpress.passes.structure.layers.linear import layers
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from graphpress.runner import Progress
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

PLAIN, OUTLIERS, STORIES = "codelm", "codelm_outliers", "stories260K"
APART = 0.005  # nats that the two variants may differ by after rotation
_STATIC = "quantize{mode=static,weight=int8,observer=mse,LAYERS}"
_TOKEN = "quantize{mode=dynamic,activation_granularity=per_token,weight_observer=mse,LAYERS,weight=%s,activation=%s}"
_GROUPS = "quantize{mode=weight,weight_granularity=per_group,group_size=64,LAYERS,weight=%s,weight_observer=%s}"
_GROUPS_TOKENS = (
    "quantize{mode=dynamic,weight=int4,weight_granularity=per_group,weight_observer=mse,activation=%s,"
    "activation_granularity=per_token,kernels=preferred,LAYERS}"
)
_FOUR = _GROUPS_TOKENS % "int4"
_LEARNED = "recover{method=spinquant,steps=100}"  # as recipe w4a4-spinquant
_LAYERS = "op_types=[MatMul,Gemm],attention=false,embeddings=false,ignore=[HEAD]"
_ROTATED = "fold-norms,rotate{down=true}"


@dataclass(frozen=True)
class _Row:
    """A format: its passes in the short form, and the bar in nats over float32 on the variants that have one."""

    what: str
    passes: str
    bars: dict[str, float]
    note: str = ""


def _rows() -> list[_Row]:
    both = [PLAIN, OUTLIERS]
    four = _TOKEN % ("int4", "int4")
    return [
        _Row("W8A8 static", _STATIC, {}),
        _Row("W8A8 static, smoothed", f"smooth,{_STATIC}", {OUTLIERS: 0.008}),
        _Row("W8A8 static, rotated", f"{_ROTATED},{_STATIC}", {OUTLIERS: 0.008}),
        _Row("W8A8 per token", _TOKEN % ("int8", "int8"), {}),
        _Row("W4A16 group 64, to nearest", _GROUPS % ("int4", "mse"), {}),
        _Row("W4A16 group 64, GPTQ", _GROUPS % ("int4", "mse") + ",gptq", dict.fromkeys(both, 0.005)),
        _Row("W3A16 group 64, to nearest", _GROUPS % ("int3", "mse"), {}),
        _Row("W3A16 group 64, GPTQ", _GROUPS % ("int3", "minmax") + ",gptq", dict.fromkeys(both, 0.02)),
        _Row(
            "W3A16 group 64, zero points, GPTQ",
            _GROUPS % ("int3,weight_symmetric=false", "minmax") + ",gptq",
            {PLAIN: 0.006, OUTLIERS: 0.008},
        ),
        _Row(
            "W3A16 group 64, rotated, GPTQ",
            f"fold-norms,rotate,{_GROUPS % ('int3', 'minmax')},gptq",
            {PLAIN: 0.006, OUTLIERS: 0.008},
        ),
        _Row("W2A16 group 64, to nearest", _GROUPS % ("int2", "mse"), {}),
        _Row("W2A16 group 64, GPTQ", _GROUPS % ("int2", "mse") + ",gptq", {}),
        _Row("W4A8 per token", _TOKEN % ("int4", "int8"), {}),
        _Row("W4A8 group 64, rotated, GPTQ", f"{_ROTATED},{_GROUPS_TOKENS % 'int8'},gptq", dict.fromkeys(both, 0.004)),
        _Row("W4A4 per token, to nearest", four, {}),
        _Row("W4A4 per token, rotated", f"{_ROTATED},{four}", {}),
        _Row("W4A4 group 64, rotated, GPTQ", f"{_ROTATED},{_FOUR},gptq", {}),
        _Row(
            "W4A4 group 64, rotated, tokens cut, GPTQ",
            f"{_ROTATED},{_FOUR},clip-tokens,gptq",
            dict.fromkeys(both, 0.01),
        ),
        _Row(
            "W4A4 group 64, rotated, tokens cut, bases learned, GPTQ",
            f"{_ROTATED},{_FOUR},clip-tokens,{_LEARNED},gptq",
            dict.fromkeys(both, 0.01),
            "minutes of training",
        ),
        _Row("W4A4 per token, rotated, GPTQ", f"{_ROTATED},{four},gptq", dict.fromkeys(both, 0.06)),
    ]


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """The table, a row a format and model; loss on all of a model's text as ONNX Runtime runs the lowered model."""
    lost: dict[tuple[str, str], float] = {}
    with TemporaryDirectory(prefix="graphpress-") as folder:
        variants = [_Variant(task, Path(folder), progress) for task in tasks(zoo, ",".join((PLAIN, OUTLIERS, STORIES)))]
    for v in variants:
        yield Figure(f"{v.name}: float32", "", f"{v.base:.5f} {v.unit}")
    for row in _rows():
        for v in variants:
            try:
                found, apart = v.loss(row.passes)
            except RecipeError as e:
                yield Figure(f"{v.name}: {row.what}", "", "not measured", note=str(e))
                continue
            lost[row.what, v.name] = found
            bar = row.bars.get(v.name)
            asked = "" if bar is None else f"<= +{bar:.3f}"
            met = None if bar is None else found <= bar
            note = "; ".join(filter(None, [row.note, f"divergence {apart:.4f}"]))
            yield Figure(f"{v.name}: {row.what}", asked, f"{found:+.4f}", met, note)
    last = _rows()[-1].what
    if (last, PLAIN) in lost and (last, OUTLIERS) in lost:
        apart = abs(lost[last, PLAIN] - lost[last, OUTLIERS])
        yield Figure(f"{last}: the variants differ by", f"<= {APART}", f"{apart:.4f}", apart <= APART)


def _differentiate(*arguments: Any, **options: Any) -> Any:
    from graphpress.backends import fx

    return fx.build(*arguments, **options)


class _Variant:
    """One of the models, tidied, and what it loses."""

    def __init__(self, task: Task, folder: Path, progress: Progress) -> None:
        self.name, self.task, self.target = task.name, task, Target.load("ort-cpu")
        self.ctx = Context(
            target=self.target, data=CalibrationData.from_arrays(task.data()), run=partial(ort.execute, threads=1),
            oracle=reference.execute, progress=progress, differentiate=_differentiate,
        )  # fmt: skip
        self.model = self._rewritten(models.load(task.file(folder)), Recipe.load("clean").passes)
        head = layers(list(self.model.graph))[-1].node
        self.layers = _LAYERS.replace("HEAD", head.name or "")
        self.whole = ort.execute(self.model)
        ((self.unit, self.base),) = task.scores(self.whole, self.whole).items()

    def loss(self, passes: str) -> tuple[float, float]:
        """Nats per token that some passes cost, and how far they take the predictions from the float model's.

        Raises:
            RecipeError: There is no such pass.
        """
        asked = parse_passes(passes.replace("LAYERS", self.layers))
        made = self._rewritten(self.model, (*asked, *Recipe.load("fold").passes))
        run = ort.execute(ort.lower(made, self.target))
        assert self.task.apart is not None
        return self.task.scores(run, self.whole)[self.unit] - self.base, self.task.apart(run, self.whole)

    def _rewritten(self, model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
        return Pipeline(list(passes), check_numbers=False).run(model, self.ctx)[0]
