"""Boxes as arrays [N, 4] of corners (x1, y1, x2, y2): overlap, suppression, average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Boxes:
    """What is (or was found) in one image: corners [N, 4], scores [N], classes [N]."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def where(self, keep: np.ndarray) -> Boxes:
        """The boxes that a mask or an index array picks."""
        return Boxes(self.corners[keep], self.scores[keep], self.classes[keep])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: [N, 4], [M, 4] -> [N, M]; 0 where both are empty."""
    both = _both(a, b)
    either = _area(a)[:, None] + _area(b)[None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def _both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1)


def _area(corners: np.ndarray) -> np.ndarray:
    return np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(-1)


def suppress(boxes: Boxes, threshold: float) -> Boxes:
    """Greedy non-maximum suppression within each class: a better box removes what it overlaps by over ``threshold``."""
    boxes = boxes.where(np.argsort(-boxes.scores, kind="stable"))
    clash = (iou(boxes.corners, boxes.corners) > threshold) & (boxes.classes[:, None] == boxes.classes[None])
    keep = np.ones(len(boxes.scores), bool)
    for i in range(len(keep)):
        if keep[i]:
            keep[i + 1 :] &= ~clash[i, i + 1 :]
    return boxes.where(keep)


def average_precision(truth: Sequence[Boxes], found: Sequence[Boxes], overlap: float = 0.5) -> float:
    """AP in per cent as COCO defines it: precision at 101 recalls, mean over the classes that occur in ``truth``.

    Args:
        truth: One ``Boxes`` an image; a score below 0 marks a region to ignore (COCO's crowds).
        found: The detections in the same images.
        overlap: Least IoU of a match.
    """
    classes = {int(c) for t in truth for c, score in zip(t.classes, t.scores, strict=True) if score >= 0}
    curves = [_class_precision(truth, found, c, overlap) for c in sorted(classes)]
    return float(np.mean(curves) * 100) if curves else float("nan")


def _class_precision(truth: Sequence[Boxes], found: Sequence[Boxes], label: int, overlap: float) -> float:
    hits, scores, total = [], [], 0
    for t, f in zip(truth, found, strict=True):
        t, f = t.where(t.classes == label), f.where(f.classes == label)
        f = f.where(np.argsort(-f.scores, kind="stable"))
        hit, ignored = _match(t, f, overlap)
        hits.append(hit[~ignored])
        scores.append(f.scores[~ignored])
        total += int((t.scores >= 0).sum())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / total, np.linspace(0, 1, 101), side="left")
    return float(np.append(envelope, 0.0)[np.minimum(at, len(envelope))].mean())


def _match(truth: Boxes, found: Boxes, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """For detections of one class in one image, best first: (a hit, to be ignored). A true box is hit once.

    A detection is ignored where no true box is left for it and ``overlap`` of its own area lies in a crowd.
    """
    hit, ignored = np.zeros(len(found.scores), bool), np.zeros(len(found.scores), bool)
    crowd = truth.scores < 0
    pairs = np.where(crowd, 0.0, iou(found.corners, truth.corners))
    crowded = np.any(_covered(found.corners, truth.corners[crowd]) >= overlap, axis=1)
    for i in range(len(hit)):
        best = int(pairs[i].argmax()) if pairs.shape[1] else -1
        if best >= 0 and pairs[i, best] >= overlap:
            hit[i] = True
            pairs[:, best] = 0.0
        else:
            ignored[i] = crowded[i]
    return hit, ignored


def _covered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of each box of ``a`` that lies inside each of ``b``: [N, M]."""
    area = _area(a)[:, None]
    return np.divide(_both(a, b), area, out=np.zeros((len(a), len(b))), where=area > 0)
