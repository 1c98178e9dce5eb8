"""Learn what a number format has to choose: points of a code book, scales, by the error of each layer's outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.observe.moments import Moments
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.grids import QuantizedLayer
from graphpress.passes.recover.rounding.layer_by_layer import LayerByLayer
from graphpress.types import Numerics, Stage


@dataclass(frozen=True)
class LearnFormat(Pass):
    """Move scales, offsets and points of code books where the outputs of each layer stay closest; weights stay.

    To be put behind ``quantize`` and before ``gptq`` (with ``observer: keep``) and ``fold-weights``. Gradient steps
    (Adam) on the squared error of a layer's outputs on the calibration data; a number belongs to the point that is
    nearest at the moment ("differentiable quantization": Polino et al., 2018). A layer whose outputs on held-out
    samples come out worse keeps what it had. Needs torch.

    Attributes:
        samples: Of the calibration data; an eighth of them is held out.
        batch_size: Samples at a time.
        steps: Of the optimiser.
        rate: Of learning: relative to scales, in the unit of a book for points.
        largest: Inputs of a layer (times the kernel's elements) up to which it is taken.
        device: As torch calls it.
        state: A file that keeps what is done: an interrupted run, made again, goes on to the identical result.
    """

    samples: int = 128
    batch_size: int = 8
    steps: int = 100
    rate: float = 0.005
    largest: int = 8192
    device: str = "cpu"
    state: str | None = None

    name = "learn-format"
    numerics = Numerics.LOSSY
    needs = (Stage.QDQ,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite the parameters of the weights of ``model``.

        Raises:
            BadRequest: There is no data or nothing to run it on; an option out of range.
            CalibrationError: The data does not fit the model.
        """
        data = ctx.need("data", "learn-format", "needs the inputs of layers", "leave learn-format out of the recipe")
        run = ctx.need("run", "learn-format")
        for option in ("samples", "batch_size", "steps"):
            if getattr(self, option) < 1:
                raise BadRequest("must be at least 1", where=f"learn-format: option {option!r}")
        if not self.rate > 0:
            raise BadRequest("must be above 0", where="learn-format: option 'rate'")
        layers = [q for q in grids.quantized_layers(model, report) if self._takes(q, report)]
        if layers:
            _Learning(self, model, ctx, report, layers, data.bind(model), run).run()

    def _takes(self, q: QuantizedLayer, report: PassReport) -> bool:
        width = int(np.prod(q.layer.shape[1:]))
        if width <= self.largest:
            return True
        report.skip(q.layer.node, f"it has {width} inputs, over the {self.largest} of option 'largest'")
        return False


@dataclass
class _Learning(LayerByLayer):
    told: ClassVar[str] = "error against the format as fitted"
    kept: ClassVar[str] = "what was learned is no better on held-out samples: the format as fitted was kept"

    def settle(self, q: QuantizedLayer, seen: Any, unseen: Any) -> float:
        """Learn the parameters of one layer; the error that is left, as a share of that before (1 where none went)."""
        options, params, weight = self.options, q.params(), q.weight()
        learned = q.cast(learn(q, params, seen, steps=options.steps, rate=options.rate, device=options.device))
        before, after = (unseen.error(q.rounded(p) - weight) for p in (params, learned))
        if not after < before:
            return 1.0
        q.write(weight, learned)
        return after / before


def learn(q: QuantizedLayer, params: QParams, moments: Moments, *, steps: int, rate: float, device: str) -> QParams:
    """The parameters of least output error that were met on the way, in numpy.

    Args:
        q: Not changed.
        params: To begin with.
        moments: Of what it reads.
        steps, rate, device: As ``LearnFormat`` has them.
    """
    import torch

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32 if array.dtype.kind == "f" else np.int32)).to(device)

    given = params.mapped(tensor)
    given = replace(given, tables={n: tensor(t) for n, t in params.tables.items()})
    weight = tensor(q.stored(q.weight()))
    hessians = torch.stack([tensor(h) for h in moments.matrix])
    names = q.quantizer.learnable(q.scheme)
    changes = {n: torch.zeros_like(given.operand(n), requires_grad=True) for n in names}
    optimiser = torch.optim.Adam(list(changes.values()), lr=rate)
    best, least = given, float("inf")
    for _ in range(steps + 1):
        made = q.quantizer.following(_changed(given, changes), q.scheme)
        spread = q.quantizer.spread(made, weight.shape, q.scheme)
        with torch.no_grad():
            codes = q.quantizer.whole(q.quantizer.codes(weight, spread, q.scheme))
        off = q.quantizer.values(codes, spread, q.scheme) - weight
        rows = (off.T if q.layer.transposed else off).reshape(hessians.shape[0], -1, hessians.shape[1])
        loss = torch.einsum("gok,gkl,gol->", rows, hessians, rows)
        if float(loss.detach()) < least:
            best, least = made, float(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return _in_numpy(best, params)


def _changed(given: QParams, changes: dict[str, Any]) -> QParams:
    """Scales times the exponentials of what was learned, other parameters in steps of the scale, books as they are."""
    scale = given.scale * changes["scale"].exp() if "scale" in changes else given.scale
    beside = {n: a + changes[n] * given.scale if n in changes else a for n, a in given.beside.items()}
    tables = {n: a + changes[n] if n in changes else a for n, a in given.tables.items()}
    return QParams(scale, given.zero_point, tables, beside)


def _in_numpy(found: QParams, like: QParams) -> QParams:
    def array(a: Any) -> np.ndarray:
        made: np.ndarray = a.detach().cpu().numpy()
        return made

    made = found.mapped(array)
    beside = {n: a.astype(like.beside[n].dtype) for n, a in made.beside.items()}
    tables = {n: array(t) for n, t in found.tables.items()}
    return QParams(made.scale, made.zero_point.astype(like.zero_point.dtype), tables, beside)
