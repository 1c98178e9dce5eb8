"""Sound files as windows of the wave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import CalibrationError, GraphpressError
from tests import kit

soundfile = pytest.importorskip("soundfile")
RNG = np.random.default_rng(0)


def model(shape: str = "N,8", more: str = "", feed: str = "") -> ir.Model:
    return kit.parse(f"g (float[{shape}] x{more}) => (float[N,2] y{feed and ', int64 z'}) {{ y = Flatten(x) {feed} }}")


def save(path: Path, points: int, channels: int = 1, rate: int = 16000) -> np.ndarray:
    """A file of floats, its wave [points, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = RNG.uniform(-1, 1, (points, channels)).astype(np.float32)
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return wave


def arrays(source: Any, of: ir.Model) -> dict[str, np.ndarray]:
    data = gp.calibration_data(source, of)
    assert data is not None
    data.check(of)
    batches = list(data.batches(1000, beside=True))
    return {k: np.concatenate([b[k] for b in batches]) if batches[0][k].ndim else batches[0][k] for k in batches[0]}


def test_the_wave_is_cut_into_windows(tmp_path: Path) -> None:
    wave = save(tmp_path / "a.wav", 37)[:, 0]
    np.testing.assert_array_equal(arrays(gp.Audio(tmp_path, rate=16000), model())["x"], wave[:32].reshape(4, 8))
    got = arrays(gp.Audio(tmp_path, rate=16000, length=5, samples=3), model("N,1,L"))["x"]
    np.testing.assert_array_equal(got[:, 0], wave[:35].reshape(7, 5)[[0, 2, 4]])


def test_channels_are_averaged_and_short_files_padded(tmp_path: Path) -> None:
    wave = save(tmp_path / "a.wav", 5, channels=2)
    got = arrays(gp.Audio(tmp_path, rate=16000), model())["x"]
    np.testing.assert_allclose(got, [[*wave.astype(np.float64).mean(1), 0, 0, 0]], atol=1e-7)


def test_windows_are_normalised_on_request(tmp_path: Path) -> None:
    wave = save(tmp_path / "a.wav", 16)[:, 0].reshape(2, 8).astype(np.float64)
    want = (wave - wave.mean(1, keepdims=True)) / wave.std(1, keepdims=True)
    np.testing.assert_allclose(arrays(gp.Audio(tmp_path, rate=16000, normalize=True), model())["x"], want, atol=1e-4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16000, "do_normalize": True}))
    np.testing.assert_allclose(arrays(tmp_path, model())["x"], want, atol=1e-4)


def test_a_model_that_asks_for_the_rate_gets_it(tmp_path: Path) -> None:
    save(tmp_path / "a.wav", 8, rate=8000)
    of = model(more=", int64 sr", feed="z = Identity(sr)")
    assert arrays(gp.Audio(tmp_path, rate=8000), of)["sr"] == 8000


def test_folders_are_labels(tmp_path: Path) -> None:
    for name in ("yes", "no"):
        save(tmp_path / name / "1.wav", 16)
    assert arrays(gp.Audio(tmp_path, rate=16000), model())["labels"].tolist() == [0, 0, 1, 1]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "N,8", r"a\.wav: has 16000 Hz, and nothing says what the model was trained on. If it was this, say --audio"),
    ({"rate": 8000}, "N,8", r"a\.wav: has 16000 Hz, the model was trained on 8000. Resample it"),
    ({"rate": 16000}, "N,L", "the model leaves the length open"),
    ({"rate": 16000, "length": 4}, "N,8", "length 4 is not the model's, 8"),
    ({"rate": 16000}, "N,3,4,5", "the model has no input of 3 axes. It has x"),
]


@pytest.mark.parametrize(("options", "shape", "message"), REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], shape: str, message: str) -> None:
    save(tmp_path / "a.wav", 16)
    with pytest.raises(GraphpressError, match=message):
        arrays(gp.Audio(tmp_path, **options), model(shape))


def test_files_that_are_no_sound_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(40))
    with pytest.raises(CalibrationError, match=r"a\.wav: not a readable sound file"):
        arrays(gp.Audio(tmp_path, rate=16000), model())
