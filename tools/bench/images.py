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
