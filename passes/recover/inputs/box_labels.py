"""Boxes that a picture is made to show: drawn at first, then added to and dropped by what the detector itself finds.

dfq-toolkit (task-specific zero-shot quantization of detectors), stage 1: adaptive label sampling. Corners are shares of
the picture, (x1, y1, x2, y2), never pixels and never centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDES = (0.2, 0.8)  # of a box that is drawn
SURE, APART, AREA = 0.2, 0.35, (0.01, 0.85)  # of a detection that becomes a target: score, IoU with others, its share
LEAST, ALIKE = 0.001, 0.6  # of detections: score, and IoU from which the lower score goes


@dataclass(frozen=True, eq=False)
class Labels:
    """Targets of one picture.

    Attributes:
        corners: [targets, 4], within [0, 1]; at least one.
        classes: [targets].
    """

    corners: np.ndarray
    classes: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, classes: int) -> Labels:
        """One box, its sides even in ``SIDES``, its centre even where it fits, its class even."""
        sides = rng.uniform(*SIDES, 2)
        low = rng.uniform(0, 1 - sides)
        return cls(np.concatenate([low, low + sides])[None], rng.integers(0, classes, 1))

    def adapted(self, found: Found) -> Labels:
        """With sure detections apart from all targets added, and targets that no detection overlaps dropped but one."""
        corners, classes, first = list(self.corners), list(self.classes), len(self.corners)
        for box, score, label in zip(found.corners, found.scores, found.classes, strict=True):
            inside = np.clip(box, 0, 1)
            size = float((inside[2:] - inside[:2]).prod())
            if score > SURE and AREA[0] < size < AREA[1] and overlaps(inside[None], np.array(corners)).max() < APART:
                corners.append(inside)
                classes.append(label)
        seen = overlaps(np.array(corners), found.corners).max(1, initial=0.0) >= APART
        seen[first:] = True
        kept = seen if seen.any() else np.arange(len(seen)) == 0
        return Labels(np.array(corners)[kept], np.array(classes)[kept])


@dataclass(frozen=True, eq=False)
class Found:
    """What a detector finds in one picture, best first: corners [N, 4], scores [N], classes [N]."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, corners: np.ndarray) -> Found:
        """Of candidates: scores [N, classes] without the background, corners [N, 4]. One for each place."""
        best, label = scores.max(1), scores.argmax(1)
        order = [i for i in np.argsort(-best, kind="stable") if best[i] > LEAST][:_MOST]
        kept: list[int] = []
        clash = overlaps(corners[order], corners[order])
        for at, i in enumerate(order):
            same = [k for k, j in enumerate(order[:at]) if j in kept and label[j] == label[i]]
            if not (clash[at, same] > ALIKE).any():
                kept.append(i)
        return cls(corners[kept], best[kept], label[kept])


_MOST = 300  # candidates that are looked at


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, [N, 4] and [M, 4] -> [N, M]; 0 for boxes without area."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    sizes = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    either = sizes[0][:, None] + sizes[1][None] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)
