"""What an output is, found from the graph and from what the float model gives: how it is judged follows from that.

A large output may hold scores of classes, boxes, a picture or a vector of features, and one figure (top-1, decibels) is
right for one of them and blind for the others. What is found here can be overruled by the gate's option ``outputs``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.movement import TABLE, Way

_MOVES = ("Cast", "Dropout", *(op for op, way in TABLE.items() if way not in (Way.RANK, Way.BOUND)))
_ONE = 1e-3  # how far sums of probabilities may be from 1, also of half precision
_ROWS = 50  # from so many rows an output can be the candidates of a detector
_WIDE = 9  # numbers of the shortest vector that is an embedding
_OWN = 0.05  # share of the power that is left of class scores once what all have in common is taken off
_YES_OR_NO = ("Sigmoid", "HardSigmoid")
_LINEAR = ("Gemm", "MatMul", "Add", "Conv", "Mul", "")
_FEATURES = (
    "LpNormalization", "ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool",
    "LayerNormalization", "Tanh",
)  # fmt: skip


class Kind(enum.StrEnum):
    """What an output holds."""

    CLASSES = "classes"  # scores of classes of which one is chosen: of a sample, or at each position
    FLAGS = "flags"  # scores between 0 and 1, each a yes or no of its own; masks
    BOXES = "boxes"  # candidates of a detector, most of them background
    EMBEDDING = "embedding"  # a vector that is compared with others
    VALUES = "values"  # numbers that mean themselves


_NAMED = {
    **dict.fromkeys(("logits", "log_probs", "probs", "probabilities", "scores"), Kind.CLASSES),
    **dict.fromkeys(
        ("embedding", "embeddings", "sentence_embedding", "pooler_output", "image_embeds", "text_embeds", "features"),
        Kind.EMBEDDING,
    ),
}


_WANTED = {
    Kind.CLASSES: "scores of classes stand along an axis of two and more, behind that of the samples",
    Kind.EMBEDDING: "an embedding is one vector a sample",
    Kind.BOXES: f"a detector has {_ROWS} rows and more of four numbers and scores from 0 to 1, nearly all of them low",
}


class Form(enum.StrEnum):
    """How scores of classes are written."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOGARITHMS = "logarithms of probabilities"


@dataclass(frozen=True)
class Nature:
    """Of one output.

    Attributes:
        kind: What it holds.
        axis: Along which the classes stand (or the columns of the rows of a detector), without that of the samples: 1
            and more.
        form: Of scores of classes.
        boxes: Name of the output with the corners of the rows whose scores these are; its own where it holds both.
        sure: Whether that is known and not merely likely. What is only likely is judged as values too.
    """

    kind: Kind
    axis: int = 1
    form: Form = Form.LOGITS
    boxes: str = ""
    sure: bool = True


def find(model: ir.Model, seen: Mapping[str, np.ndarray], said: Mapping[str, str] = {}) -> dict[str, Nature]:
    """The nature of each float output.

    Args:
        model: The float model.
        seen: What it gives for some samples, samples first.
        said: What the user says of some outputs: a ``Kind`` each.

    Raises:
        BadRequest: An output cannot be what is said of it.
    """
    values = {v.name or "": v for v in model.graph.outputs}
    floats = {n: a for n, a in seen.items() if a.dtype.kind in "fV" or a.dtype.name == "bfloat16"}
    arrays = {n: np.asarray(a, np.float64) for n, a in floats.items()}
    found: dict[str, Nature] = {}
    for scores, corners in _detectors(arrays).items():
        if scores not in said or said[scores] == Kind.BOXES:
            found[scores] = Nature(Kind.BOXES, arrays[scores].ndim - 1, boxes=corners)
            found.setdefault(corners, Nature(Kind.BOXES, arrays[corners].ndim - 1, boxes=""))
    for name, array in arrays.items():
        if name in said and name not in found:
            found[name] = _as_told(Kind(said[name]), array, name)
        elif name not in found:
            found[name] = _alone(model, values[name], array)
    return found


def _as_told(kind: Kind, array: np.ndarray, name: str) -> Nature:
    axis = class_axis(array) if kind is Kind.CLASSES else array.ndim - 1
    columns = _grid(array) if kind is Kind.BOXES and array.size else None
    fits = {
        Kind.CLASSES: array.ndim > 1 and array.size > 0 and array.shape[axis] > 1,
        Kind.EMBEDDING: array.ndim == 2 and array.size > 0,
        Kind.BOXES: columns is not None,
    }
    if not fits.get(kind, True):
        what = f"it has shape {array.shape}, and {_WANTED[kind]}"
        raise BadRequest(what, where=f"gate option 'outputs', {name!r}: {kind}", fix="Leave it out, or say: values.")
    if columns is not None:
        return Nature(kind, columns, boxes=name)
    return Nature(kind, axis, form(array, axis) if kind is Kind.CLASSES else Form.LOGITS, "")


def _alone(model: ir.Model, value: ir.Value, array: np.ndarray) -> Nature:
    axis, name = class_axis(array), _NAMED.get((value.name or "").rpartition(".")[2].lower())
    if array.ndim < 2 or not array.size:
        return Nature(Kind.VALUES)
    if (columns := _grid(array)) is not None:
        return Nature(Kind.BOXES, columns, boxes=value.name or "")
    if (written := form(array, axis)) is not Form.LOGITS:
        return Nature(Kind.CLASSES, axis, written)
    op = _last(value, _MOVES)
    if _last(value, (*_MOVES, *_FEATURES)) in _YES_OR_NO and array.min() >= 0 and array.max() <= 1:
        return Nature(Kind.FLAGS)
    if array.ndim == 2 and array.shape[1] >= _WIDE and (op in _FEATURES or name is Kind.EMBEDDING or _unit(array)):
        return Nature(Kind.EMBEDDING)
    if op in _LINEAR and _scores(model, name, array, axis):
        return Nature(Kind.CLASSES, axis, sure=name is Kind.CLASSES or array.ndim == 3)
    return Nature(Kind.VALUES)


def class_axis(array: np.ndarray) -> int:
    """Where classes would stand: where they add up to 1, else the last axis, of a map (samples, classes, rows, columns)
    the second."""
    likely = (1, array.ndim - 1) if array.ndim == 4 else (array.ndim - 1, 1)
    return next((a for a in likely if 0 < a < array.ndim and form(array, a) is not Form.LOGITS), likely[0])


def form(array: np.ndarray, axis: int) -> Form:
    """How scores are written: probabilities add up to 1, and so do those of logarithms."""
    if array.shape[axis] < 2 or not array.size:
        return Form.LOGITS
    if array.min() >= 0 and np.abs(array.sum(axis) - 1).max() <= _ONE:
        return Form.PROBABILITIES
    if array.max() <= _ONE and np.abs(np.exp(array).sum(axis) - 1).max() <= _ONE:
        return Form.LOGARITHMS
    return Form.LOGITS


def _scores(model: ir.Model, name: Kind | None, array: np.ndarray, axis: int) -> bool:
    """Whether what a linear layer gives can be scores of classes.

    Softmax does not see what all of them have in common, so that is little; and of a sequence they are told from
    features by their name, or since what comes in are numbers of tokens.
    """
    if name is Kind.CLASSES:
        return array.shape[axis] > 1
    tokens = any(
        v.dtype is not None and v.dtype.is_integer() and v.shape is not None and len(v.shape) == 2
        for v in model.graph.inputs
    )
    if array.shape[axis] < 3 or array.ndim > 3 or (array.ndim == 3 and not tokens):
        return False
    own = array - array.mean(axis, keepdims=True)
    return float((own * own).sum()) >= _OWN * float((array * array).sum()) > 0


def _unit(array: np.ndarray) -> bool:
    """Whether all rows have length 1."""
    return bool(np.abs(np.linalg.norm(array, axis=1) - 1).max() < _ONE)


def _detectors(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Scores [samples, rows, classes] of which another output has the boxes, [samples, rows, 4], and its name."""
    found = {}
    for corners, box in arrays.items():
        if box.ndim == 3 and box.shape[2] == 4 and box.shape[1] >= _ROWS:
            for scores, array in arrays.items():
                if scores != corners and array.ndim == 3 and array.shape[:2] == box.shape[:2]:
                    found[scores] = corners
    return found


def _grid(array: np.ndarray) -> int | None:
    """The axis of the columns where rows hold four numbers of a box and scores, nearly all of them low."""
    for axis in (array.ndim - 1, 1) if array.ndim in (3, 4) else ():
        columns = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        if array.shape[axis] < 6 or len(columns) < _ROWS * len(array):
            continue
        scores = np.flatnonzero((columns.min(0) >= 0) & (columns.max(0) <= 1))
        if len(scores) != array.shape[axis] - 4:
            continue
        best = confidence(columns[:, scores], objectness(columns[:, scores], bool(scores[0] == 4))).max(1)
        if float((best > 0.5).mean()) < 0.5:
            return axis
    return None


def objectness(scores: np.ndarray, after_box: bool) -> int | None:
    """The column that says whether there is anything at all, beside those of the classes; None where there is none.

    The others add up to 1 (Softmax), whatever is there; or it is the first after the box, and where it is high another
    one is as well, in most rows, and seldom are two high without it: scores of classes alone exclude one another.

    Args:
        scores: Of rows of candidates, [rows, columns], each between 0 and 1.
        after_box: Whether the first column comes right after the box.
    """
    if scores.shape[1] < 2:
        return None
    rest = scores.sum(1, keepdims=True) - scores
    for column in np.flatnonzero((np.abs(rest - 1).max(0) <= _ONE) & (np.ptp(scores, axis=0) > _ONE)):
        return int(column)
    high = scores > 0.5
    first, two = high[:, 0], high.sum(1) > 1
    both = int((first & two).sum())
    return 0 if after_box and both and 2 * both >= first.sum() and 4 * both >= 3 * two.sum() else None


def confidence(scores: np.ndarray, there: int | None) -> np.ndarray:
    """Of the classes of each row, [rows, classes]: with a score of there being anything the geometric mean of both.

    It is above a half where the product is above a quarter, from where detectors of that kind mean a row.
    """
    return scores if there is None else np.sqrt(np.delete(scores, there, -1) * scores[..., there, None])


def _last(value: ir.Value | None, passed: Sequence[str]) -> str:
    """The operator that makes an output, but for those that are passed over."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in passed and node.inputs and not edit.is_constant(node.inputs[0]):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node.op_type if node is not None else ""
