"""Detectors: UltraFace against its own float boxes (no ground truth at hand), FastestDet against COCO's."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from graphpress.runner import Runner
from graphpress.tools.bench.boxes import Boxes, average_precision, iou, suppress
from graphpress.tools.bench.images import read
from graphpress.tools.bench.task import Scores, Task, first

FACE = 0.7  # score from which UltraFace's authors call it a face
CANDIDATE = 0.5  # detections below FACE rank after all true ones, so a face that hovers there costs little
MOST = 100  # detections a picture that COCO counts


def tasks(zoo: Path) -> list[Task]:
    """Two face detectors and one for COCO's 80 classes; all are fixed to batch 1."""
    photos, ultra = _photographs(zoo / "detection/coco128/images"), zoo / "detection/ultraface"
    held_in, held_out = photos[::2], _photographs(ultra / "imgs") + photos[1::2]
    found = [_ultraface(ultra / f"version-{v}-320.onnx", held_in, held_out) for v in ("slim", "RFB")]
    return [*found, _fastestdet(zoo, photos)]


def _photographs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg"))


def _ultraface(path: Path, held_in: Sequence[Path], held_out: Sequence[Path]) -> Task:
    load = functools.cache(_face_input)

    def detect(runner: Runner) -> list[Boxes]:
        return [faces(*runner({"input": load(p)}).values()) for p in held_out]

    def scores(runner: Runner, reference: Runner) -> Scores:
        return agreement([b.where(b.scores > FACE) for b in detect(reference)], detect(runner))

    note = f"{len(held_out)} photographs; the float model's boxes are the truth; other photographs calibrate"
    return _task(path, "input", lambda: np.concatenate([load(p) for p in held_in]), scores, note)


def _fastestdet(zoo: Path, photos: Sequence[Path]) -> Task:
    load = functools.cache(_detector_input)

    def scores(runner: Runner, _: Runner) -> Scores:
        truth = ground_truth(zoo / "detection/coco128/instances.json")
        found = [objects(runner({"input.1": load(p)})["758"][0]) for p in photos]
        return {"AP50 %": average_precision([truth[p.name] for p in photos], found)}

    def held_in() -> np.ndarray:
        return np.concatenate([load(p) for p in _photographs(zoo / "imagenet/images")[:100]])

    note = f"{len(photos)} photographs of COCO; photographs of ImageNet calibrate"
    return _task(zoo / "detection/fastestdet/FastestDet.onnx", "input.1", held_in, scores, note)


def _task(
    path: Path, name: str, samples: Callable[[], np.ndarray], scores: Callable[[Runner, Runner], Scores], note: str
) -> Task:
    load = functools.cache(samples)

    def data() -> dict[str, np.ndarray]:
        return {name: load()}

    return Task(
        path.stem, "detector", lambda _: path, data, scores, lambda n: first(data(), n), batches=(1,), note=note
    )


def _face_input(path: Path) -> np.ndarray:
    return ((read(path, (320, 240)) - 127) / 128).transpose(2, 0, 1)[None]


def _detector_input(path: Path) -> np.ndarray:
    return np.ascontiguousarray((read(path, (352, 352)) / 255)[..., ::-1].transpose(2, 0, 1)[None])  # BGR


def faces(scores: np.ndarray, corners: np.ndarray) -> Boxes:
    """UltraFace's outputs, scores [1, N, 2] and corners [1, N, 4] in shares of the picture, as boxes."""
    keep = scores[0, :, 1] > CANDIDATE
    return suppress(Boxes(corners[0, keep], scores[0, keep, 1], np.zeros(keep.sum(), int)), 0.3)


def agreement(truth: Sequence[Boxes], found: Sequence[Boxes]) -> Scores:
    """How well ``found`` repeats ``truth``: AP at IoU 0.5; of the best box for each true one the mean IoU, and how many
    have at least 0.5."""
    best = [iou(t.corners, f.corners).max(1, initial=0.0) for t, f in zip(truth, found, strict=True)]
    overlaps = np.concatenate(best)
    matched = float((overlaps >= 0.5).mean() * 100)
    ap = average_precision(truth, found)
    return {"box AP50 vs float %": ap, "mean IoU": float(overlaps.mean()), "matched %": matched}


def objects(grid: np.ndarray) -> Boxes:
    """FastestDet's output [85, H, W] as boxes in shares of the picture, decoded as its authors do.

    Channel 0 is the objectness, 1-4 the box (offsets by tanh, sizes by a sigmoid), the others the 80 classes' scores.
    """
    _, height, width = grid.shape
    flat = grid.reshape(85, -1).astype(np.float64)
    ys, xs = np.divmod(np.arange(height * width), width)
    centre = np.stack([(xs + np.tanh(flat[1])) / width, (ys + np.tanh(flat[2])) / height], -1)
    half = (1 / (1 + np.exp(-flat[3:5]))).T / 2
    score = np.clip(flat[0], 0, None) ** 0.6 * np.clip(flat[5:].max(0), 0, None) ** 0.4
    boxes = Boxes(np.concatenate([centre - half, centre + half], -1), score, flat[5:].argmax(0))
    found = suppress(boxes.where(score > 0.001), 0.45)
    return found.where(np.arange(len(found.scores)) < MOST)


def ground_truth(path: Path) -> dict[str, Boxes]:
    """COCO's boxes by file name, in shares of the picture; classes 0..79 in order of their ids, crowds scored -1."""
    coco = json.loads(path.read_text())
    classes = {c["id"]: i for i, c in enumerate(sorted(coco["categories"], key=lambda c: c["id"]))}
    rows = defaultdict(list)
    for a in coco["annotations"]:
        rows[a["image_id"]].append((*a["bbox"], -1.0 if a["iscrowd"] else 1.0, classes[a["category_id"]]))
    return {i["file_name"]: _truth(rows[i["id"]], i["width"], i["height"]) for i in coco["images"]}


def _truth(rows: Sequence[tuple[float, ...]], width: int, height: int) -> Boxes:
    table = np.array(rows, float).reshape(-1, 6)
    x, y, w, h, score, label = table.T
    corners = np.stack([x / width, y / height, (x + w) / width, (y + h) / height], -1)
    return Boxes(corners, score, label.astype(int))
