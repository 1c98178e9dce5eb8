"""Folders of pictures: what a model gets of them, labels from folders, and what is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

import graphpress as gp
from graphpress.errors import CalibrationError, GraphpressError
from tests import kit

RNG = np.random.default_rng(0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model(shape: str = "N,3,8,8", classes: int = 3, kind: str = "float") -> ir.Model:
    return kit.parse(f"g ({kind}[{shape}] x) => ({kind}[N,{classes}] y) {{ y = Flatten(x) }}")


def save(path: Path, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """A picture without loss, its pixels [height, width, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, channels)).astype(np.uint8)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(path)
    return pixels


def arrays(source: Any, of: ir.Model) -> dict[str, np.ndarray]:
    data = gp.calibration_data(source, of)
    assert data is not None
    data.check(of)
    batches = list(data.batches(64, beside=True))
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def test_pixels_are_scaled_and_normalised_by_channel(tmp_path: Path) -> None:
    pixels = np.stack([save(tmp_path / f"{i}.png") for i in range(3)])
    got = arrays(gp.Images(tmp_path, mean=MEAN, std=STD), model())["x"]
    want = (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.numpy(), atol=2e-6)


OPTIONS: list[tuple[dict[str, Any], str, str, Any]] = [
    ({"scale": 1}, "N,3,8,8", "float", lambda p: p.transpose(0, 3, 1, 2)),
    ({"scale": 1, "order": "bgr"}, "N,3,8,8", "float", lambda p: p[..., ::-1].transpose(0, 3, 1, 2)),
    ({"scale": 1}, "N,8,8,3", "float", lambda p: p),
    ({"scale": 1, "mean": 127.0, "std": 128.0}, "N,8,8,3", "float", lambda p: (p.astype(np.float32) - 127) / 128),
    ({}, "N,8,8,3", "uint8", lambda p: p),
    ({"scale": 1, "layout": "nhwc", "size": 8}, "N,A,B,C", "float", lambda p: p),
    ({"mean": 0.5, "std": 0.5}, "N,3,8,8", "float16", lambda p: (p / 127.5 - 1).transpose(0, 3, 1, 2).astype("f2")),
]


@pytest.mark.parametrize(("options", "shape", "kind", "want"), OPTIONS)
def test_layout_order_and_type_are_those_of_the_model(
    tmp_path: Path, options: dict[str, Any], shape: str, kind: str, want: Any
) -> None:
    pixels = np.stack([save(tmp_path / f"{i}.png") for i in range(2)])
    got = arrays(gp.Images(tmp_path, **options), model(shape, kind=kind))["x"]
    np.testing.assert_allclose(
        got.astype(np.float64), want(pixels).astype(np.float64), atol=2e-3 if kind == "float16" else 2e-5
    )


def test_gray_models_get_gray_pictures(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", channels=1)
    got = arrays(gp.Images(tmp_path, scale=1), model("N,1,8,8"))["x"]
    np.testing.assert_array_equal(got[0, 0], pixels[..., 0])


def test_the_whole_picture_or_the_middle_of_it(tmp_path: Path) -> None:
    """Pillow itself says what scaling gives; the crop is a slice."""
    save(tmp_path / "a.png", 32, 64)
    picture = Image.open(tmp_path / "a.png")
    whole = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR))
    middle = np.asarray(picture.resize((20, 10), Image.Resampling.BICUBIC))[1:9, 6:14]
    got = arrays(gp.Images(tmp_path, scale=1), model("N,8,8,3"))["x"]
    np.testing.assert_array_equal(got[0], whole)
    got = arrays(gp.Images(tmp_path, scale=1, crop=0.8, filter="bicubic"), model("N,8,8,3"))["x"]
    np.testing.assert_array_equal(got[0], middle)


def test_a_preprocessor_config_says_it_all(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 32, 64)
    told = {
        "do_resize": True, "size": {"shortest_edge": 10},
        "do_center_crop": True, "crop_size": {"height": 8, "width": 8},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    options = {"crop": 0.8, "filter": "bicubic", "mean": MEAN, "std": STD}
    want = arrays(gp.Images(tmp_path, **options), model())["x"]
    np.testing.assert_array_equal(arrays(tmp_path, model())["x"], want)
    other = arrays(gp.Images(tmp_path, scale=1, mean=0.0, std=1.0), model())["x"]
    np.testing.assert_allclose(
        other, (want * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))) * 255, atol=1e-3
    )
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 3}}')
    with pytest.raises(CalibrationError, match=r"preprocessor_config.json: is no .* of pictures. Give size, crop"):
        arrays(tmp_path, model())


def test_folders_are_labels_where_they_can_be_the_classes(tmp_path: Path) -> None:
    for name in ("dog", "ant", "cat"):
        save(tmp_path / "names" / name / "1.png")
        save(tmp_path / "names" / name / "deep" / "2.png")
    of = model()
    data = gp.calibration_data(gp.Images(tmp_path / "names", scale=1), of)
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.notes == ("labels are the 3 folders in order of their names (0 ant, 1 cat, 2 dog)",)
    for source, why in (
        (gp.Images(tmp_path / "names", scale=1, labels=False), None),
        (gp.Images(tmp_path / "names", scale=1), "3 folders are no labels: the first output has 9 classes"),
    ):
        data = gp.calibration_data(source, model(classes=9))
        assert data is not None
        assert data.labels is None
        assert (why in data.notes[0]) if why else not data.notes
    for number in (0, 2, 10):
        save(tmp_path / "numbers" / str(number) / "1.png")
    data = gp.calibration_data(gp.Images(tmp_path / "numbers", scale=1), model(classes=11))
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [0, 10, 2]  # in order of the names of files


def test_many_files_are_thinned_evenly_and_it_is_said(tmp_path: Path) -> None:
    pixels = np.stack([save(tmp_path / f"{i:02}.png") for i in range(20)])
    data = gp.calibration_data(gp.Images(tmp_path, scale=1, samples=5), model("N,8,8,3"))
    assert data is not None
    (batch,) = data.batches(64)
    np.testing.assert_array_equal(batch["x"], pixels[::4])
    assert data.notes == ("5 of 20 files, evenly spread (images: samples=5)",)


def bomb(path: Path, side: int) -> None:
    """A PNG of some hundred bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    bomb(tmp_path / "a.png", side)
    with pytest.raises(CalibrationError, match=r"a\.png: has over 89 million pixels. Leave it out"):
        arrays(gp.Images(tmp_path, scale=1), model())


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "N,3,8,8", r"holds pictures \(a.png\), and nothing says what their pixels become. Say it as in training"),
    ({"scale": 1, "size": 9}, "N,3,8,8", r"size \(9, 9\) is not the model's, \(8, 8\)"),
    ({"scale": 1}, "N,3,H,W", r"the model leaves the size open. Give size, such as size=224"),
    ({"scale": 1, "crop": 1.5}, "N,3,8,8", r"crop=1.5 is no share"),
    ({"mean": (1.0, 2.0)}, "N,3,8,8", r"mean=\[1.0, 2.0\] does not fit rgb"),
    ({"mean": 0.0, "std": 0.0}, "N,3,8,8", r"std=\[0.0\] does not fit"),
    ({"scale": 1}, "N,5,8,8", "the model takes 5 channels, pictures have"),
    ({"scale": 1, "order": "gray"}, "N,3,8,8", "the model takes 3 channels, pictures have gray"),
    ({"scale": 1}, "N,192", r"the model has no input of 4 axes. It has x \[N, 192\]"),
    ({"scale": 1, "input": "z"}, "N,3,8,8", "the model has no input 'z'"),
    ({"scale": 1, "samples": 0}, "N,3,8,8", "samples=0 leaves nothing"),
    ({"scale": 1, "config": "none.json"}, "N,3,8,8", "none.json: there is no such file"),
]


@pytest.mark.parametrize(("options", "shape", "message"), REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], shape: str, message: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(GraphpressError, match=message):
        arrays(gp.Images(tmp_path, **options), model(shape))


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CalibrationError, match=r"b\.jpg: not a readable picture"):
        arrays(gp.Images(tmp_path, scale=1), model())
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(CalibrationError, match=r"holds no images \(\.jpg"):
        arrays(gp.Images(tmp_path, scale=1), model())
    Image.fromarray(RNG.integers(0, 60_000, (8, 8)).astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(CalibrationError, match=r"deep\.png: has pixels of mode I.*, not of 8 bits"):
        arrays(gp.Images(tmp_path, scale=1), model("N,1,8,8"))
