"""Photographs as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The image as float32 RGB [height, width, 3] in 0..255, resized bilinearly to ``size`` = (width, height)."""
    from PIL import Image

    with Image.open(path) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def square(path: Path, size: int) -> np.ndarray:
    """The middle square of an image, likewise, [size, size, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        side = min(image.size)
        left, top = ((whole - side) // 2 for whole in image.size)
        part = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR), np.float32)
