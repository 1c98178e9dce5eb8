"""Tasks on synthetic runners whose score is known, and the cheapest real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.runner import Arrays
from graphpress.tools.bench.calibration import main as write_data
from graphpress.tools.bench.classification import accuracy
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.images import square
from graphpress.tools.bench.language import nats
from graphpress.tools.bench.speech import BLOCK, HOP, Recorder, enhance, noisy, si_sdr, speech
from graphpress.tools.bench.task import first, in_batches, parts
from graphpress.tools.bench.zoo import tasks


class Fake:
    """A runner made of a function."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], run: Callable[..., Sequence[np.ndarray]]) -> None:
        self.input_names, self.output_names, self._run = inputs, outputs, run

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.output_names, self._run(**feeds), strict=True))


def test_samples_are_drawn_over_again_where_there_are_too_few() -> None:
    data = {"x": np.arange(6).reshape(3, 2), "labels": np.arange(3)}
    got = first(data, 5)
    assert list(got) == ["x"]
    np.testing.assert_array_equal(got["x"][:, 0], [0, 2, 4, 0, 2])


def test_parts_cover_everything_once() -> None:
    held_in, held_out = parts(50, 20)
    assert len(held_in) == 20
    assert sorted([*held_in, *held_out]) == list(range(50))


def test_batches_join_to_the_whole() -> None:
    runner = Fake(["x"], ["y"], lambda x: [x * 2])
    x = np.arange(7.0)[:, None]
    np.testing.assert_array_equal(in_batches(runner, "x", x, 3), x * 2)


def test_accuracy() -> None:
    assert accuracy(np.eye(4), np.array([0, 1, 2, 0])) == 75.0


def test_nats_is_the_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 5)).astype(np.float32)  # logits of the next token given this one
    runner = Fake(["ids"], ["logits"], lambda ids: [table[ids]])
    texts = [rng.integers(0, 5, (2, 9)), rng.integers(0, 5, (1, 4))]
    p = np.exp(table.astype(float)) / np.exp(table.astype(float)).sum(1, keepdims=True)
    pairs = [(a, b) for t in texts for row in t for a, b in itertools.pairwise(row)]
    assert nats(runner, texts) == pytest.approx(-np.mean([np.log(p[a, b]) for a, b in pairs]), rel=1e-9)


def test_speech_carries_state_and_context() -> None:
    def run(input: np.ndarray, state: np.ndarray, sr: np.ndarray) -> Sequence[np.ndarray]:
        assert sr == 16000
        assert sr.shape == ()
        return [np.array([[state[0, 0, 0] + input[0, 0]]]), state + 1]

    recorder = Recorder(Fake(["input", "state", "sr"], ["output", "stateN"], run))
    sound = np.arange(3 * 512 + 5, dtype=np.float32)
    np.testing.assert_array_equal(speech(recorder, sound), [0 + 0, 1 + 448, 2 + 960])
    whole = recorder.whole()
    assert {k: v.shape for k, v in whole.items()} == {"input": (3, 1, 576), "state": (3, 2, 1, 128), "sr": (3,)}


def test_dtln_of_identities_sums_the_overlaps() -> None:
    rng = np.random.default_rng(0)
    masks = Fake(["input_2", "input_3"], ["mask", "state"], lambda input_2, input_3: [np.ones_like(input_2), input_3])
    frames = Fake(["input_4", "input_5"], ["frame", "state"], lambda input_4, input_5: [input_4, input_5])
    sound = rng.normal(size=16 * HOP).astype(np.float32)
    inner = slice(BLOCK, -BLOCK)
    np.testing.assert_allclose(enhance(masks, frames, sound)[inner], sound[inner] * (BLOCK // HOP), atol=1e-5)


def test_noise_has_the_level_it_names_and_si_sdr_measures_it() -> None:
    sound = np.sin(np.arange(16000) * 0.1).astype(np.float32)
    assert si_sdr(sound, noisy(sound) * 3) == pytest.approx(5.0, abs=0.2)


def test_the_data_fit_the_models_and_the_cheapest_reproduces(zoo: Path, tmp_path: Path) -> None:
    for name, want in (("ds_cnn", 89.14), ("cnn_mnist_pytorch", 98.7), ("mlperf_tiny_resnet8", 77.35)):
        (task,) = tasks(zoo, name)
        runner = FileRunner(task.file(tmp_path))
        assert task.scores(runner, runner)["top-1 %"] == pytest.approx(want, abs=0.05)
        for batch in task.batches:
            (result,) = runner(task.feeds(batch)).values()
            assert len(result) == batch


def test_calibration_data_are_written_for_the_command_line(zoo: Path, tmp_path: Path) -> None:
    assert write_data(["--zoo", str(zoo), "--models", "ds_cnn,silero_vad", "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "ds_cnn.npz") as z:
        assert {k: z[k].shape for k in z.files} == {"input": (300, 1, 49, 10), "labels": (300,)}
    with np.load(tmp_path / "silero_vad.npz") as z:
        assert {k: z[k].shape[1:] for k in z.files} == {"input": (1, 576), "state": (2, 1, 128), "sr": ()}
        assert np.abs(z["state"][100:]).min(axis=(1, 2, 3)).max() < np.abs(z["state"][100:]).max() > 0.1


def test_every_model_has_a_name_of_its_own(zoo: Path) -> None:
    names = [t.name for t in tasks(zoo)]
    assert len(set(names)) == len(names) == 20
    with pytest.raises(BadRequest, match="resnet20"):
        tasks(zoo, "resnet21")


@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_of_a_picture_the_middle_square_is_taken(shape: tuple[int, int], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    across = pixels[:, 3:7] if shape[1] > 4 else pixels[3:7]
    np.testing.assert_array_equal(square(tmp_path / "a.png", 4), across.astype(np.float32))
