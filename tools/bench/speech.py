"""Speech networks that carry state from frame to frame: silero VAD and DTLN.

Calibration data are whole feeds, states included, collected by running the float model over the first part of the
recording; the rest is scored, and there each runner lives with the states it made itself.
"""

from __future__ import annotations

import functools
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np

from graphpress.runner import Arrays, Runner
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.task import Scores, Task, first

RATE = 16000
HELD_IN = 20 * RATE  # samples of the recording for calibration
CHUNK, CONTEXT = 512, 64  # of silero VAD at 16 kHz
BLOCK, HOP = 512, 128  # of DTLN
SNR = 5.0  # dB of speech over the noise that DTLN is to remove


def tasks(zoo: Path) -> list[Task]:
    """Voice activity in two exports, and the two halves of DTLN, each with the other half in float."""
    wav = functools.cache(functools.partial(recording, zoo / "speech/silero_vad/test.wav"))
    vad = [_silero(zoo / f"speech/silero_vad/{n}.onnx", wav) for n in ("silero_vad", "silero_vad_16k_op15")]
    halves = (zoo / "speech/dtln/model_1.onnx", zoo / "speech/dtln/model_2.onnx")
    return [*vad, *(_dtln(halves, i, wav) for i in (0, 1))]


def recording(path: Path) -> np.ndarray:
    """A mono 16-bit recording as float32 in [-1, 1)."""
    with wave.open(str(path)) as w:
        return np.frombuffer(w.readframes(w.getnframes()), np.int16) / np.float32(32768)


class Recorder:
    """A runner that keeps a copy of every feed."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.input_names, self.output_names = runner.input_names, runner.output_names
        self.feeds: list[Arrays] = []

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        self.feeds.append(dict(feeds))
        return self.runner(feeds)

    def whole(self) -> dict[str, np.ndarray]:
        """All feeds, stacked on a new first axis."""
        return {name: np.stack([f[name] for f in self.feeds]) for name in self.input_names}


def speech(runner: Runner, sound: np.ndarray) -> np.ndarray:
    """Silero's probability of speech for each whole chunk of 32 ms, its state carried along."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    found = []
    for chunk in sound[: len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK):
        frame = np.concatenate([context, chunk])[None]
        result = runner({"input": frame, "state": state, "sr": np.array(RATE, np.int64)})
        state, context = result["stateN"], chunk[-CONTEXT:]
        found.append(result["output"].item())
    return np.array(found)


def _silero(path: Path, wav: Callable[[], np.ndarray]) -> Task:
    @functools.cache
    def data() -> dict[str, np.ndarray]:
        recorder = Recorder(FileRunner(path))
        speech(recorder, wav()[:HELD_IN])
        return recorder.whole()

    def scores(runner: Runner, reference: Runner) -> Scores:
        ours, theirs = speech(runner, wav()[HELD_IN:]), speech(reference, wav()[HELD_IN:])
        return {
            "frames as float %": float(((ours > 0.5) == (theirs > 0.5)).mean() * 100),
            "speech %": float((ours > 0.5).mean() * 100),
            "mean probability error": float(np.abs(ours - theirs).mean()),
        }

    def feeds(batch: int) -> dict[str, np.ndarray]:
        some = first(data(), batch)
        state = np.ascontiguousarray(some["state"][:, :, 0].transpose(1, 0, 2))
        return {"input": some["input"][:, 0], "state": state, "sr": np.asarray(some["sr"][0])}

    note = "speech or not in each 32 ms of the last 40 s, states carried; the float model's decisions are the truth"
    return Task(path.stem, "speech", lambda _: path, data, scores, feeds, note=note)


def noisy(sound: np.ndarray, seed: int = 0) -> np.ndarray:
    """The sound with pink noise, ``SNR`` dB below it."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(sound)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(sound))
    noise *= np.sqrt((sound**2).mean() / (noise**2).mean()) * 10 ** (-SNR / 20)
    return (sound + noise).astype(np.float32)


def enhance(masks: Runner, frames: Runner, sound: np.ndarray) -> np.ndarray:
    """DTLN: overlapping blocks of 32 ms, masked in the spectrum by the first half, rebuilt by the second."""
    out = np.zeros(len(sound) + BLOCK, np.float32)
    state = {"input_3": np.zeros((1, 2, 128, 2), np.float32), "input_5": np.zeros((1, 2, 128, 2), np.float32)}
    for start in range(0, len(sound) - BLOCK + 1, HOP):
        spectrum = np.fft.rfft(sound[start : start + BLOCK])
        magnitude = np.abs(spectrum).astype(np.float32).reshape(1, 1, -1)
        mask, state["input_3"] = masks({"input_2": magnitude, "input_3": state["input_3"]}).values()
        block = np.fft.irfft(mask.ravel() * spectrum).astype(np.float32).reshape(1, 1, -1)
        clean, state["input_5"] = frames({"input_4": block, "input_5": state["input_5"]}).values()
        out[start : start + BLOCK] += clean.ravel()
    return out[: len(sound)]


def si_sdr(truth: np.ndarray, found: np.ndarray) -> float:
    """Scale-invariant signal to distortion ratio in dB (Le Roux et al. 2019, "SDR: half-baked or well done?")."""
    truth, found = truth.astype(np.float64), found.astype(np.float64)
    target = truth * (found @ truth) / (truth @ truth)
    return float(10 * np.log10((target @ target) / ((found - target) @ (found - target))))


def _dtln(halves: tuple[Path, Path], which: int, wav: Callable[[], np.ndarray]) -> Task:
    def run(runner: Runner, sound: np.ndarray) -> np.ndarray:
        both: list[Runner] = [FileRunner(p) for p in halves]
        both[which] = runner
        return enhance(both[0], both[1], sound)

    @functools.cache
    def data() -> dict[str, np.ndarray]:
        recorder = Recorder(FileRunner(halves[which]))
        run(recorder, noisy(wav()[:HELD_IN]))
        return {k: a[::8, 0] for k, a in recorder.whole().items()}

    def scores(runner: Runner, reference: Runner) -> Scores:
        clean = wav()[HELD_IN:]
        ours, theirs = run(runner, noisy(clean)), run(reference, noisy(clean))
        noise = np.square(ours - theirs, dtype=np.float64).sum()
        sqnr = 10 * np.log10(np.square(theirs, dtype=np.float64).sum() / noise) if noise else np.inf
        return {"SI-SDR dB": si_sdr(clean, ours), "SQNR to float dB": float(sqnr)}

    note = f"pink noise {SNR:g} dB below the speech, removed by DTLN with this half compressed; scored on the last 40 s"
    name = f"dtln_{halves[which].stem}"
    return Task(
        name, "speech", lambda _: halves[which], data, scores, lambda n: first(data(), n), batches=(1,), note=note
    )
