"""From a picture to the array that a model takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
_CHANNELS = {1: "gray", 3: "rgb"}


@dataclass(frozen=True)
class Preparation:
    """Scaling, the middle part, colours, normalisation, layout.

    Attributes:
        resize: Height and width, or the length of the shorter side; None: as it is.
        crop: Height and width of the middle that is kept; None: all.
        scale, mean, std: ``(pixel * scale - mean) / std``; mean and std [1] or [channels]. None: pixels as they are.
        order: ``rgb``, ``bgr`` or ``gray``.
        channels_last: Whether the result is [height, width, channels].
        dtype: Of the result.
        filter: Name of Pillow's.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    scale: float | None
    mean: np.ndarray
    std: np.ndarray
    order: str
    channels_last: bool
    dtype: np.dtype
    filter: str

    def __call__(self, picture: Any) -> np.ndarray:
        """The array of a picture of Pillow, [channels, height, width] or channels last."""
        picture = self._sized(picture.convert("L" if self.order == "gray" else "RGB"))
        array = np.asarray(picture)
        array = array[..., None] if array.ndim == 2 else array
        array = array[..., ::-1] if self.order == "bgr" else array
        if self.scale is not None:
            array = (array.astype(np.float32) * np.float32(self.scale) - self.mean) / self.std
        return np.ascontiguousarray(array if self.channels_last else array.transpose(2, 0, 1), self.dtype)

    def _sized(self, picture: Any) -> Any:
        if self.resize is not None:
            height, width = _target(self.resize, picture.height, picture.width)
            picture = picture.resize((width, height), _FILTERS.index(self.filter))
        if self.crop is not None:
            height, width = self.crop
            top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
            picture = picture.crop((left, top, left + width, top + height))
        return picture


def _target(resize: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    if isinstance(resize, tuple):
        return resize
    short = min(height, width)
    return max(int(resize * height / short), 1), max(int(resize * width / short), 1)


def of_config(path: Path) -> dict[str, Any]:
    """Options from a preprocessor_config.json of transformers; ``resize`` is (what to scale to, what to keep).

    Raises:
        CalibrationError: There is no such file, or it says something that is not known.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return _options(told)
    except FileNotFoundError as e:
        raise CalibrationError("there is no such file", where=str(path)) from e
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as e:
        fix = "Give size, crop, mean and std instead."
        raise CalibrationError("is no preprocessor_config.json of pictures", where=str(path), fix=fix) from e


def _options(told: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    resize = _extent(told["size"]) if told.get("do_resize", "size" in told) else None
    crop = _extent(told["crop_size"]) if told.get("do_center_crop") else None
    if isinstance(crop, int):
        crop = (crop, crop)
    if resize is not None or crop is not None:
        found["resize"] = (resize, crop)
    found["filter"] = _FILTERS[int(told.get("resample", 2))]
    rescale = told.get("do_rescale", True)
    found["scale"] = float(told.get("rescale_factor", 1 / 255)) if rescale else 1.0
    if told.get("do_normalize", "image_mean" in told):
        found["mean"], found["std"] = tuple(map(float, told["image_mean"])), tuple(map(float, told["image_std"]))
    return found


def _extent(size: Any) -> tuple[int, int] | int:
    """(height, width), or the shorter side."""
    if isinstance(size, int):
        return size
    if isinstance(size, list):
        return int(size[0]), int(size[1])
    return int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))


def preparation(
    told: Mapping[str, Any], value: ir.Value, layout: str | None, order: str | None, dtype: str | None, where: str
) -> Preparation:
    """What a model's input needs.

    Args:
        told: ``size``, ``crop``, ``mean``, ``std``, ``scale``, ``filter``, and ``resize`` of a configuration.
        value: The input, of four axes.
        layout, order, dtype: Where they are said.
        where: Comes first in a message.

    Raises:
        CalibrationError: The size is not known, or what is said does not fit the input.
    """
    dims = [d if isinstance(d, int) else None for d in value.shape] if value.shape is not None else [None] * 4
    last = layout == "nhwc" if layout else dims[1] not in _CHANNELS and dims[3] in _CHANNELS
    channels, fixed = (dims[3], dims[1:3]) if last else (dims[1], dims[2:4])
    order = order or _CHANNELS.get(channels or 3, "")
    if not order or (channels is not None and channels != (1 if order == "gray" else 3)):
        raise CalibrationError(f"the model takes {channels} channels, pictures have {order or '1 or 3'}", where=where)
    resize, crop = _sizes(told, fixed, where)
    kind = np.dtype(dtype) if dtype else value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    scale = None if kind == np.uint8 else told.get("scale", 1 / 255)
    mean, std = (np.atleast_1d(np.float32(told.get(n, d))) for n, d in (("mean", 0.0), ("std", 1.0)))
    for name, array in (("mean", mean), ("std", std)):
        if len(array) not in (1, 1 if order == "gray" else 3) or (name == "std" and (array <= 0).any()):
            raise CalibrationError(
                f"{name}={array.tolist()} does not fit {order}", where=where, fix="Give one a channel."
            )
    return Preparation(resize, crop, scale, mean, std, order, last, kind, told.get("filter", "bilinear"))


def _sizes(
    told: Mapping[str, Any], fixed: Sequence[int | None], where: str
) -> tuple[tuple[int, int] | int | None, tuple[int, int] | None]:
    """(what pictures are scaled to, what is kept of them)."""
    known = (fixed[0], fixed[1]) if fixed[0] is not None and fixed[1] is not None else None
    if "resize" in told:
        resize, crop = told["resize"]
        end = crop or resize
        if known is not None and end != known:
            raise CalibrationError(
                f"pictures come out as {end}, the model takes {known}", where=where, fix="Give size."
            )
        return resize, crop
    size = told.get("size", known)
    size = (size, size) if isinstance(size, int) else size
    if size is None:
        raise CalibrationError("the model leaves the size open", where=where, fix="Give size, such as size=224.")
    if known is not None and tuple(size) != known:
        raise CalibrationError(f"size {tuple(size)} is not the model's, {known}", where=where, fix="Leave size out.")
    share = told.get("crop")
    if share is None:
        return tuple(size), None
    if not 0 < share <= 1:
        raise CalibrationError(f"crop={share:g} is no share", where=where, fix="Give one from 0 to 1, such as 0.875.")
    if size[0] != size[1]:
        return tuple(max(round(s / share), s) for s in size), tuple(size)
    return max(round(size[0] / share), size[0]), tuple(size)
