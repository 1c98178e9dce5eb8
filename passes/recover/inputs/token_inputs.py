"""What a language model reads beside its tokens, found from names and shapes, and tokens that it writes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.runner import Arrays, Runner

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
_MOVES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze")
_FIX = "Give calibration data."
_MOVED = 1e-3  # share of the scores' RMS that a later token may move an earlier score by: rounding


@dataclass(frozen=True)
class TokenInputs:
    """The inputs of a language model.

    Attributes:
        tokens: Name of the one that takes token ids, [batch, length].
        dtype: Of the ids.
        vocabulary: How many tokens there are.
        batch: Fixed by the model, or None.
        length: Likewise.
        others: What each other input is fed with, given ids.
    """

    tokens: str
    dtype: np.dtype
    vocabulary: int
    batch: int | None
    length: int | None
    others: Mapping[str, Callable[[np.ndarray], np.ndarray]]

    @classmethod
    def of(cls, model: ir.Model, where: str, wanted: str | None = None) -> TokenInputs:
        """Read off a model.

        Args:
            model: A language model.
            where: Comes first in a message.
            wanted: The name of the input that takes tokens, where there are several that might.

        Raises:
            BadRequest: No such input, a vocabulary that cannot be seen, or an input that nothing is known of.
        """
        inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        tokens = _tokens(inputs, where, wanted)
        assert tokens.shape is not None and tokens.dtype is not None
        batch, length = (d if isinstance(d, int) else None for d in tokens.shape)
        others = {v.name or "": _other(v, where) for v in inputs if v is not tokens}
        return cls(tokens.name or "", tokens.dtype.numpy(), _vocabulary(tokens, where), batch, length, others)

    def feeds(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """All inputs for some ids, [batch, length]."""
        return {self.tokens: ids.astype(self.dtype), **{name: make(ids) for name, make in self.others.items()}}


def _tokens(inputs: list[ir.Value], where: str, wanted: str | None) -> ir.Value:
    fit = [v for v in inputs if v.dtype in _INTEGERS and v.shape is not None and len(v.shape) == 2]
    named = [v for v in fit if v.name == wanted] if wanted is not None else [v for v in fit if _vocabularies(v)]
    if len(named) == 1:
        return named[0]
    said = ", ".join(v.name or "?" for v in fit) or "none"
    what = f"{len(named)} inputs take token ids" if wanted is None else f"input {wanted!r} takes no token ids"
    raise BadRequest(f"{what} ([batch, length] of integers: {said})", where=where, fix=f"Set option input, or {_FIX}")


def _vocabularies(value: ir.Value) -> list[int]:
    """Rows of the tables that ids look rows up in."""
    found: list[int] = []
    waiting = [value]
    while waiting:
        for node, slot in waiting.pop().uses():
            table = edit.constant_tensor(node.inputs[0]) if node.op_type == "Gather" and slot == 1 else None
            if table is not None and len(table.shape) == 2:
                found.append(int(table.shape.numpy()[0]))
            elif node.op_type in _MOVES and slot == 0:
                waiting.extend(node.outputs)
    return found


def _vocabulary(tokens: ir.Value, where: str) -> int:
    found = _vocabularies(tokens)
    if not found:
        raise BadRequest(f"no table of embeddings reads {tokens.name!r}", where=where, fix=_FIX)
    return max(found)


def _other(value: ir.Value, where: str) -> Callable[[np.ndarray], np.ndarray]:
    name, dims = value.name or "", [d if isinstance(d, int) else None for d in value.shape or ()]
    dtype = None if value.dtype is None else value.dtype.numpy()
    if name.endswith("attention_mask") and len(dims) == 2:
        return lambda ids: np.ones(ids.shape, dtype)
    if name.endswith("position_ids") and len(dims) == 2:
        return lambda ids: np.broadcast_to(np.arange(ids.shape[1], dtype=dtype), ids.shape).copy()
    if name.endswith("token_type_ids") and len(dims) == 2:
        return lambda ids: np.zeros(ids.shape, dtype)
    if name.startswith("past") and len(dims) == 4 and None not in (dims[1], dims[3]) and dims[2] is None:
        return lambda ids: np.zeros((len(ids), dims[1], 0, dims[3]), dtype)  # type: ignore[arg-type]
    raise BadRequest("nothing is known of what it takes", where=f"{where}, input {name!r}", fix=_FIX)


@dataclass(frozen=True)
class Writer:
    """A causal language model that goes on with its own tokens (LLM-QAT, arXiv:2305.17888, section 2.1).

    Attributes:
        inputs: Of the model.
        run: Gives the scores of the next token, [batch, length, vocabulary], as its first output.
        greedy: Tokens behind the first for which the likeliest is taken; the others are drawn.
        temperature: Of the draw.
    """

    inputs: TokenInputs
    run: Runner
    greedy: int
    temperature: float

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """[batch, length, vocabulary]."""
        feeds: Arrays = self.inputs.feeds(ids)
        found: np.ndarray = next(iter(self.run({n: feeds[n] for n in self.run.input_names}).values()))
        return found

    def is_causal(self, ids: np.ndarray) -> bool:
        """Whether the last token leaves the scores before it as they are."""
        moved = ids.copy()
        moved[:, -1] = (ids[:, -1] + 1) % self.inputs.vocabulary
        one, two = (self.scores(i)[:, :-1].astype(np.float64) for i in (ids, moved))
        return bool(np.abs(one - two).max(initial=0.0) <= _MOVED * np.sqrt(np.mean(one**2)))

    def write(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Ids whose first column stands and whose others the model has written.

        Args:
            ids: [batch, length]; what stands behind the first column is not seen.
            rng: Draws.
        """
        ids = ids.copy()
        for at in range(1, ids.shape[1]):
            given = ids if self.inputs.length is not None else ids[:, :at]
            scores = self.scores(given)[:, at - 1, : self.inputs.vocabulary].astype(np.float64)
            if at > self.greedy:  # the largest of scores with Gumbel noise is a draw from their softmax
                scores = scores / self.temperature + rng.gumbel(size=scores.shape)
            ids[:, at] = scores.argmax(axis=1)
        return ids
