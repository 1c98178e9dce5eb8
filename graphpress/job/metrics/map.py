"""Mean average precision of a detector (pycocotools, extra ``detection``)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphpress.errors import BadRequest, CalibrationError
from graphpress.job.metrics.base import NamedMetric
from graphpress.observe.binding import LABELS
from graphpress.runner import Runner

BOXES = "boxes"
_MOST = 100  # detections of an image that count, as in COCO


@dataclass
class MeanPrecision(NamedMetric):
    """Mean of the average precision in percent over classes and overlaps from 0.5 to 0.95, as COCO counts it.

    The data have, beside images, ``boxes`` [samples, most, 4], corners x1, y1, x2, y2 in the units of the model's own,
    and ``labels`` [samples, most], the class of each; negative ones fill up. The model has an output of corners
    [samples, rows, 4] and one of scores [samples, rows, classes].

    Attributes:
        background: Column of scores that is no class; None: all are classes.
        overlap: Of two boxes of one class with more (intersection over union), the one with the lower score is dropped.
        least: Score below which a row is none.
    """

    background: int | None = None
    overlap: float = 0.5
    least: float = 0.05

    name: ClassVar[str] = "map"
    title: ClassVar[str] = "mAP %"
    reads: ClassVar[tuple[str, ...]] = (BOXES,)

    def __call__(self, runner: Runner) -> float:
        self.labels("the class of each box, [samples, most], -1 where there is none")
        truth: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        image = 0
        for rows in self.data.batches(1, beside=True):
            if BOXES not in rows:
                fix = f"Add an array {BOXES!r}: corners, [samples, most, 4]."
                raise CalibrationError(f"metric {self.name!r} needs boxes", where="data", fix=fix)
            corners, scores = _rows(runner({k: v for k, v in rows.items() if k not in (LABELS, BOXES)}))
            for box, label in zip(rows[BOXES][0], rows[LABELS][0], strict=True):
                if label >= 0:
                    truth.append(_entry(image, int(label), box) | {"id": len(truth) + 1, "iscrowd": 0})
            found += self._detections(image, corners, scores)
            image += 1
        return _average(truth, found, image)

    def _detections(self, image: int, corners: np.ndarray, scores: np.ndarray) -> Iterator[dict[str, Any]]:
        for column in range(scores.shape[1]):
            if column == self.background:
                continue
            label = column - (self.background is not None and column > self.background)
            for row in suppressed(corners, scores[:, column], self.overlap, self.least):
                yield _entry(image, label, corners[row]) | {"score": float(scores[row, column])}


def suppressed(corners: np.ndarray, scores: np.ndarray, overlap: float, least: float) -> list[int]:
    """Rows that stay, best first: of two that overlap by more, the one with the lower score goes.

    Args:
        corners: [rows, 4].
        scores: [rows].
        overlap: Intersection over union.
        least: Score from which on a row counts.
    """
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= least]
    kept: list[int] = []
    while order and len(kept) < _MOST:
        best, rest = order[0], np.asarray(order[1:], int)
        kept.append(best)
        low, high = np.maximum(corners[best, :2], corners[rest, :2]), np.minimum(corners[best, 2:], corners[rest, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        union = areas[best] + areas[rest] - shared
        order = [int(i) for i in rest[shared <= overlap * union]]
    return kept


def _rows(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(corners [rows, 4], scores [rows, classes]) of one sample."""
    three = {n: np.asarray(a, np.float64)[0] for n, a in outputs.items() if a.ndim == 3 and len(a) == 1}
    corners = [n for n, a in three.items() if a.shape[1] == 4 and (n.lower().startswith("box") or len(three) == 2)]
    corners = [n for n in corners if "box" in n.lower()] or corners
    scores = [n for n, a in three.items() if corners and n != corners[0] and len(a) == len(three[corners[0]])]
    if len(corners) != 1 or len(scores) != 1:
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in outputs.items())
        raise CalibrationError(
            f"has outputs {shapes}, and needs corners [samples, rows, 4] and scores [samples, rows, classes]",
            where="metric 'map'", fix="Decode them in a function of your own: evaluate='module:function'.",
        )  # fmt: skip
    return three[corners[0]], three[scores[0]]


def _entry(image: int, label: int, box: np.ndarray) -> dict[str, Any]:
    x, y, right, low = map(float, box)
    size = [right - x, low - y]
    return {"image_id": image, "category_id": label, "bbox": [x, y, *size], "area": size[0] * size[1]}


def _average(truth: list[dict[str, Any]], found: list[dict[str, Any]], images: int) -> float:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as e:
        fix = "Install it: pip install 'graphpress[detection]'."
        raise BadRequest("pycocotools is not installed", where="metric 'map'", fix=fix) from e
    if not truth or not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        known = COCO()
        known.dataset = {
            "info": {}, "annotations": truth, "images": [{"id": i} for i in range(images)],
            "categories": [{"id": c} for c in sorted({t["category_id"] for t in truth})],
        }  # fmt: skip
        known.createIndex()
        judge = COCOeval(known, known.loadRes(found), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, float("inf")]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return 100.0 * float(precision[precision > -1].mean())


METRIC = MeanPrecision
