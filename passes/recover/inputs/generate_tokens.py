"""Calibration data for language models where there is no text: tokens that the model writes itself, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.inputs.token_inputs import TokenInputs, Writer
from graphpress.runner import Runner
from graphpress.types import Numerics, Stage

_WHERE = "pass 'generate-tokens'"


@dataclass(frozen=True)
class GenerateTokens(Pass):
    """Make calibration data of tokens for a language model (LLM-QAT, arXiv:2305.17888, section 2.1).

    The first token is drawn evenly from the vocabulary, the model goes on from there: the likeliest token a few times,
    then draws from its own distribution. The passes after it calibrate on what comes out, and the gate judges on a part
    of it: on what the model thinks of its own text, not on the user's. Data that the user gives are used instead.

    Attributes:
        samples: How many sequences.
        length: Tokens of each, where the model leaves it open.
        how: ``model``: as above, for causal models; ``random``: all tokens drawn evenly, for any.
        greedy: How many tokens behind the first are the likeliest; 3 to 5 in the paper.
        temperature: Of the draws: 1 is the model's own distribution.
        batch: Sequences that are written together.
        input: Name of the input that takes token ids, where it cannot be told.
        always: Also where the user gave data, which then serve the gate only.
    """

    name: ClassVar[str] = "generate-tokens"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
    samples: int = 64
    length: int = 128
    how: Literal["model", "random"] = "model"
    greedy: int = 4
    temperature: float = 1.0
    batch: int = 16
    input: str | None = None
    always: bool = False

    hands = True

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("length", 2), ("batch", 1), ("greedy", 0)):
            if getattr(self, name) < least:
                raise BadRequest(f"must be at least {least}", where=f"{_WHERE}, option {name!r}")
        if not self.temperature > 0:
            raise BadRequest("must be above 0", where=f"{_WHERE}, option 'temperature'")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        if ctx.data is not None and not self.always:
            report.skip("calibration data", "data was given and is used (option always makes tokens all the same)")
            return
        if ctx.teacher is not None:
            raise BadRequest("a pass before it has changed what the model computes", where=_WHERE,
                             fix="Put it before the first lossy pass.")  # fmt: skip
        inputs = TokenInputs.of(model, _WHERE, self.input)
        rng = np.random.default_rng(ctx.seed)
        size = inputs.batch or min(self.batch, self.samples)
        shape = (-(-self.samples // size) * size, inputs.length or self.length)
        ids = rng.integers(0, inputs.vocabulary, shape)
        if self.how == "model":
            writer = Writer(inputs, self._scores(model, ctx, inputs), self.greedy, self.temperature)
            if not writer.is_causal(ids[:size]):
                raise BadRequest("a later token moves the scores of earlier ones: it is no causal language model",
                                 where=_WHERE, fix="Set how: random, or give calibration data.")  # fmt: skip
            starts = range(0, len(ids), size)
            for i in ctx.progress(starts, "writing tokens", len(starts)):
                ids[i : i + size] = writer.write(ids[i : i + size], rng)
        report.handed["data"] = CalibrationData.from_arrays(inputs.feeds(ids)).bind(model)
        report.metrics = {
            "samples": len(ids), "tokens each": ids.shape[1], "vocabulary": inputs.vocabulary,
            "different tokens": len(np.unique(ids)),
        }  # fmt: skip

    def _scores(self, model: ir.Model, ctx: Context, inputs: TokenInputs) -> Runner:
        """Runs the model up to the scores of the next token."""
        fit = [v for v in model.graph.outputs if v.shape is not None and len(v.shape) == 3 and _wide(v, inputs)]
        if not fit:
            what = f"no output holds scores of {inputs.vocabulary} tokens at each position"
            raise BadRequest(what, where=_WHERE, fix="Set how: random, or give calibration data.")
        return ctx.need("run", "generate-tokens")(model, [fit[0].name or ""])


def _wide(value: ir.Value, inputs: TokenInputs) -> bool:
    assert value.shape is not None
    last = value.shape[2]
    return value.dtype is not None and value.dtype.is_floating_point() and (last if isinstance(last, int) else 0) in (
        0, inputs.vocabulary
    )  # fmt: skip
