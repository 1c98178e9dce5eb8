"""Pictures, prepared as a model was trained on them (Pillow, extra ``images``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError
from graphpress.observe.binding import LABELS
from graphpress.observe.sources import class_folders, pixels
from graphpress.observe.sources.pixels import Preparation
from graphpress.observe.sources.source import Source, missing, the_input

_AT_ONCE = 16  # pictures in memory
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_NARROW = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # modes of 8 bits a channel
_SAID = ("size", "crop", "mean", "std", "scale", "filter")
_CONFIG = "preprocessor_config.json"


@dataclass(frozen=True)
class Images(Source):
    """A folder of pictures: each is scaled, cropped and normalised, ``(pixel * scale - mean) / std``.

    What pixels become must be said: by ``mean`` and ``std``, by ``scale``, or by a preprocessor_config.json, which is
    also found in the folder; options go before it. A model that takes uint8 gets them as they are.
    As in torchvision and transformers, a picture is not turned as its camera noted.
    If all pictures lie in folders, and these can be the classes of the model, their names give the labels.

    Attributes:
        size: Height and width, or one number for both; None: as the model's input.
        crop: The share of the shorter side that is kept (0.875: of 256 the middle 224); None: the whole picture is
            brought to ``size``, whatever its form.
        mean, std: One number, or one a channel, after ``scale``: of pixels from 0 to 1 unless that says otherwise.
        scale: What pixels are multiplied with first; None: 1/255.
        layout: ``nchw`` or ``nhwc``; None: as the model's input has it.
        order: Of colours: ``rgb``, ``bgr`` or ``gray``; None: by the number of channels.
        dtype: Of the elements; None: that of the model's input.
        filter: How pictures are scaled.
        config: A preprocessor_config.json, as transformers writes it.
        labels: Whether folders may be classes.
        input: Which input they are for; "": the only one of four axes.
    """

    size: int | tuple[int, int] | None = field(default=None, kw_only=True)
    crop: float | None = field(default=None, kw_only=True)
    mean: float | tuple[float, ...] | None = field(default=None, kw_only=True)
    std: float | tuple[float, ...] | None = field(default=None, kw_only=True)
    scale: float | None = field(default=None, kw_only=True)
    layout: Literal["nchw", "nhwc"] | None = field(default=None, kw_only=True)
    order: Literal["rgb", "bgr", "gray"] | None = field(default=None, kw_only=True)
    dtype: Literal["float32", "float16", "uint8"] | None = field(default=None, kw_only=True)
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] | None = field(default=None, kw_only=True)
    config: str | None = field(default=None, kw_only=True)
    labels: bool = field(default=True, kw_only=True)
    input: str = field(default="", kw_only=True)

    name: ClassVar[str] = "images"
    endings: ClassVar[tuple[str, ...]] = (
        ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp",
    )  # fmt: skip

    def batches(self, model: ir.Model, files: Sequence[Path], notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Sixteen pictures at a time.

        Raises:
            CalibrationError: It is not said how they are prepared, the input takes no pictures, or a file is none.
        """
        value = the_input(model, self.input, 4, f"images {self.path}")
        how = self._preparation(value, files)
        of = class_folders.labels(Path(self.path), files, model, notes) if self.labels else None
        for i in range(0, len(files), _AT_ONCE):
            some = files[i : i + _AT_ONCE]
            rows = {value.name or "": np.stack([self._one(f, how) for f in some])}
            yield rows | ({LABELS: np.asarray([of[f] for f in some])} if of else {})

    def _one(self, path: Path, how: Preparation) -> np.ndarray:
        with _opened(path) as picture:
            if picture.mode not in _NARROW:
                fix = "Prepare such pictures yourself and give arrays (.npz)."
                raise CalibrationError(f"has pixels of mode {picture.mode}, not of 8 bits", where=str(path), fix=fix)
            return how(picture)

    def _preparation(self, value: ir.Value, files: Sequence[Path]) -> Preparation:
        folder = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        config = Path(self.config) if self.config else folder / _CONFIG
        told = pixels.of_config(config) if self.config or config.is_file() else {}
        own = {n: getattr(self, n) for n in _SAID if getattr(self, n) is not None}
        if "size" in own or "crop" in own:
            told.pop("resize", None)
        told |= own
        raw = (self.dtype or (value.dtype.numpy().name if value.dtype else "")) == "uint8"
        if not raw and not told.keys() & {"mean", "std", "scale"}:
            raise CalibrationError(
                f"holds pictures ({files[0].name}), and nothing says what their pixels become", where=str(self.path),
                fix="Say it as in training: --images mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225] "
                f"(graphpress.Images(path, mean=.., std=..)), scale=1 for 0 to 255, or a {_CONFIG}; "
                "or save arrays, samples first: numpy.savez(path, INPUT=array).",
            )  # fmt: skip
        return pixels.preparation(told, value, self.layout, self.order, self.dtype, f"images {self.path}")


def _opened(path: Path) -> Any:
    """A picture, with its pixels read.

    Raises:
        CalibrationError: It cannot be read, or has so many pixels that it must be a mistake or an attack.
    """
    try:
        from PIL import Image as image  # noqa: N813
    except ImportError as e:
        raise missing("Pillow", "images") from e
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            picture = image.open(path, formats=_FORMATS)
            picture.load()
            return picture
    except (image.DecompressionBombWarning, image.DecompressionBombError) as e:
        what = f"has over {(image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million pixels"
        raise CalibrationError(what, where=str(path), fix="Leave it out, or make it smaller.") from e
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as e:
        said = " ".join(str(e).split())[:150]
        raise CalibrationError(f"not a readable picture: {said}", where=str(path), fix="Leave it out.") from e
