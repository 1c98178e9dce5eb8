"""``svd-branch``: what few singular vectors of a weight hold stands beside the layer, in halves, not quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import half
from graphpress.keys import HALF
from graphpress.observe.inner import stream
from graphpress.ops.dynamic_quantize_token import steps
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.passes.recover.adapters.low_rank import start
from graphpress.passes.recover.adapters.svd import Svd
from graphpress.passes.structure.layers.linear import Linear, layers
from graphpress.passes.structure.layers.outermost import first_layers, last_layers
from graphpress.types import Numerics, Scheme, Stage, per_channel, per_group

GAIN = 0.9  # of the squared error without a branch, at most
ROWS = 512  # of what a layer reads, that the search looks at
_BITS = {"int8": 8, "int4": 4, "float": 0}


@dataclass(frozen=True)
class SvdBranch(Pass):
    """Split weights W = L R + rest, L R of low rank and computed in floats beside the layer (Li et al., SVDQuant,
    arXiv:2411.05007). To be put behind ``smooth``, which moves what is loud into the weights, and before ``quantize``.

    L R is at first the best approximation of W, then of W - Q(rest), again and again while the layer's output comes
    nearer on what it reads; of all rounds the best is kept, and no branch where it leaves more than nine tenths of the
    error. It takes r (in + out) halves: 1/8 of the smaller side at most, unless ``share`` says else. Matrix products
    alone; those at the ends of the model, which keep 8 bits, are left out.

    Attributes:
        rank: r, at most.
        share: Of the smaller side of a weight, r at most.
        rounds: Of the search, at most.
        weight, group_size: How the rest will be stored, int4 with one scale for so many elements; 0: for each row.
        activation: How what the layers read will be rounded, token by token, likewise.
        ends: Take the first and the last layers too.
        samples: Of the calibration data.
        batch_size: Samples at a time.
    """

    rank: int = 32
    share: float = 0.125
    rounds: int = 8
    weight: Literal["int8", "int4", "int3", "int2"] = "int4"
    group_size: int = 64
    activation: Literal["int8", "int4", "float"] = "int4"
    ends: bool = False
    samples: int = 32
    batch_size: int = 8

    name = "svd-branch"
    numerics = Numerics.CLOSE
    needs = (Stage.FLOAT,)

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        """Rewrite weights of ``model`` and put the branches beside them.

        Raises:
            BadRequest: There is no data or nothing to run it on; an option out of range.
            CalibrationError: The data does not fit the model.
        """
        if self.rank < 1 or self.rounds < 1 or not 0 < self.share <= 1:
            what = f"rank {self.rank} and rounds {self.rounds} are at least 1, share {self.share} from 0 to 1"
            raise BadRequest(what, where="svd-branch")
        ctx.need("data", "svd-branch", "needs to see what layers read", "leave svd-branch out of the recipe")
        views, errors = self._views(model, report), [0.0, 0.0]
        seen = self._observe(model, ctx, views) if views else {}
        for view in ctx.progress(views, "svd-branch", len(views)):
            rows = seen.get(view.input.name or "")
            if rows is None or not len(rows):
                report.skip(view.node, "what it reads was never seen")
            elif found := self._place(view, rows, report):
                errors = [a + b for a, b in zip(errors, found, strict=True)]
        if report.changed:
            report.metrics["relative errors of layers without, with"] = "{:.3g}, {:.3g}".format(*errors)

    def _views(self, model: ir.Model, report: PassReport) -> list[Linear]:
        at_ends = set() if self.ends else {*first_layers(model.graph), *last_layers(model.graph)}
        found = []
        for view in layers(list(model.graph)):
            why = "it is at the end of the model" if view.node in at_ends else ""
            why = why or ("it is a convolution" if view.node.op_type == "Conv" else "")
            why = why or ("its matrix is too thin for a branch" if not self._rank(view) else "")
            why = why or Svd(self._rank(view)).refusal(model, view) or ""
            if why:
                report.skip(view.node, why)
            else:
                found.append(view)
        return found

    def _rank(self, view: Linear) -> int:
        return min(self.rank, int(min(view.shape[:2]) * self.share))

    def _observe(self, model: ir.Model, ctx: Context, views: Sequence[Linear]) -> Mapping[str, np.ndarray]:
        data, run = (
            ctx.need("data", "svd-branch").bind(model).take(self.samples, ctx.seed),
            ctx.need("run", "svd-branch"),
        )
        names = list(dict.fromkeys(v.input.name or "" for v in views))
        batches, kept = -(-len(data) // self.batch_size), dict[str, list[np.ndarray]]()
        for values in stream(model, names, data, run, batch_size=self.batch_size, progress=ctx.progress).batches:
            for name, array in values.items():
                rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
                rows = rows[np.isfinite(rows).all(axis=1)]
                some = np.linspace(0, len(rows) - 1, min(len(rows), -(-ROWS // batches))).astype(np.int64)
                kept.setdefault(name, []).append(rows[some])
        return {name: np.concatenate(parts) for name, parts in kept.items()}

    def _place(self, view: Linear, rows: np.ndarray, report: PassReport) -> tuple[float, float] | None:
        """The branch, if it gains: relative errors without and with it."""
        weight = view.weight().astype(np.float64)
        if not np.isfinite(weight).all() or not weight.any():
            report.skip(view.node, "its weight is not finite, or zero")
            return None
        trial = _Trial(weight, rows, self._scheme(weight.shape[1]), _BITS[self.activation], self._rank(view))
        plain, (best, left, right) = trial.error(None), trial.search(self.rounds)
        if not best < GAIN * plain:
            report.skip(view.node, f"a branch leaves {best / plain:.0%} of the error" if plain else "nothing is lost")
            return None
        factors = Svd(self._rank(view)).place(view, left, right)
        for value in factors:
            if value.dtype == ir.DataType.FLOAT:
                HALF.set(value, ir.DataType.FLOAT16)
        report.changed += 1
        return plain, best

    def _scheme(self, width: int) -> Scheme:
        grain = per_group(1, self.group_size) if 0 < self.group_size < width else per_channel(0)
        scheme = Scheme(self.weight, grain)
        return scheme if scheme.bits >= 8 else replace(scheme, observer="mse")


@dataclass
class _Trial:
    """What a layer loses with a branch: weight [out, in], rows [T, in] of what it reads."""

    weight: np.ndarray
    rows: np.ndarray
    scheme: Scheme
    bits: int
    rank: int

    def __post_init__(self) -> None:
        self._wanted = self.rows @ self.weight.T
        self._read = _by_token(self.rows, self.bits)
        self._power = float(np.square(self._wanted).sum()) or 1.0

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        params = AFFINE.fit(weight.astype(np.float32), self.scheme)
        codes = AFFINE.quantize(weight.astype(np.float32), params, self.scheme)
        return AFFINE.dequantize(codes, params, self.scheme).astype(np.float64)

    def error(self, held: np.ndarray | None) -> float:
        """Squared error of the output over its power, the branch being ``held`` [out, in]."""
        if held is None:
            got = self._read @ self.rounded(self.weight).T
        else:
            got = self._read @ self.rounded(self.weight - held).T + self.rows @ held.T
        return float(np.square(got - self._wanted).sum() / self._power)

    def search(self, rounds: int) -> tuple[float, np.ndarray, np.ndarray]:
        """(error, L, R): alternately L R of W - Q(rest) and rest = W - L R, until it comes no nearer."""
        best, target = (np.inf, np.zeros(0), np.zeros(0)), self.weight
        for _ in range(rounds):
            left, right = (_halves(f) for f in start(target, self.rank))
            held = left @ right
            if not (error := self.error(held)) < best[0]:
                break
            best, target = (error, left, right), self.weight - self.rounded(self.weight - held)
        return best


def _halves(array: np.ndarray) -> np.ndarray:
    """As halves hold it, where they can."""
    found = half.narrow(array.astype(np.float32), ir.DataType.FLOAT16)
    return array if found is None else found.astype(np.float64)


def _by_token(rows: np.ndarray, bits: int) -> np.ndarray:
    """Rows as quantization at run time leaves them; 0 bits: as they are."""
    if not bits:
        return rows
    scale = np.maximum(np.abs(rows).max(-1, keepdims=True) / steps(bits), 1e-38)
    return np.asarray(np.clip(np.rint(rows / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale)
