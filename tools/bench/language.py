"""Language models: mean cross-entropy of the next token in nats, lower is better. Batch n is n x 256 tokens."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import numpy as np

from graphpress.runner import Runner
from graphpress.tools.bench.task import Scores, Task, first

TOKENS = 256  # of a sample
BLOCK = 800  # characters that hold at least TOKENS of stories260K's


def tasks(zoo: Path) -> list[Task]:
    """stories260K, which comes in through torch, and the byte-level code model with and without outliers."""
    code = [_codelm(zoo / "llm/codelm", name) for name in ("codelm", "codelm_outliers")]
    return [_stories(zoo), *code]


def nats(runner: Runner, texts: Iterable[np.ndarray]) -> float:
    """Mean cross-entropy per token over ``texts``: ids [batch, length], each but the first predicted from the left."""
    total, count = 0.0, 0
    for ids in texts:
        right = np.take_along_axis(_log_softmax(runner, ids), ids[:, 1:, None], -1)
        total -= float(right.sum())
        count += right.size
    return total / count


def divergence(runner: Runner, whole: Runner, texts: Iterable[np.ndarray]) -> float:
    """Mean over tokens of KL(whole || runner), in nats: what changed, whether or not it happens to suit the text."""
    total, count = 0.0, 0
    for ids in texts:
        before, after = (_log_softmax(r, ids) for r in (whole, runner))
        total += float((np.exp(before) * (before - after)).sum())
        count += ids[:, 1:].size
    return total / count


def _log_softmax(runner: Runner, ids: np.ndarray) -> np.ndarray:
    logits = runner({"ids": ids[:, :-1]})["logits"].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def _codelm(folder: Path, name: str) -> Task:
    def load(part: str) -> np.ndarray:
        with np.load(folder / part) as z:
            return z["ids"].astype(np.int64)

    def texts() -> list[np.ndarray]:
        ids = load("valid.npz")
        return [ids[i : i + 8] for i in range(0, len(ids), 8)]

    note = "65,536 bytes of held-out text; a sample is 256 bytes"
    return _task(name, lambda _: folder / f"{name}.onnx", lambda: load("calib.npz")[:, :TOKENS], texts, "byte", note)


def _task(
    name: str,
    file: Callable[[Path], Path],
    ids: Callable[[], np.ndarray],
    texts: Callable[[], Iterable[np.ndarray]],
    unit: str,
    note: str,
) -> Task:
    load = functools.cache(ids)

    def scores(runner: Runner, _: Runner) -> Scores:
        return {f"nats/{unit}": nats(runner, texts())}

    def apart(runner: Runner, whole: Runner) -> float:
        return divergence(runner, whole, texts())

    def data() -> dict[str, np.ndarray]:
        return {"ids": load()}

    def feeds(count: int) -> dict[str, np.ndarray]:
        return first(data(), count)

    return Task(name, "language", file, data, scores, feeds, higher=False, note=note, apart=apart)


def _stories(zoo: Path) -> Task:
    folder, text = zoo / "llm/stories260K", zoo / "text"

    def encode(pieces: Iterable[str]) -> list[np.ndarray]:
        tokens = _module(folder / "load.py").Tok(str(folder / "tok512.bin"), 512)
        return [np.array([tokens.encode(p)], np.int64) for p in pieces]

    @functools.cache
    def stories() -> list[np.ndarray]:
        pieces = (text / "tinystories_sample.txt").read_text().split("<|endoftext|>")
        return [ids[:, :512] for ids in encode(p.strip() for p in pieces if p.strip())]

    def held_in() -> np.ndarray:
        train = (text / "tinystories_200k.txt").read_text()
        blocks = encode(train[i : i + BLOCK] for i in range(0, 100 * BLOCK, BLOCK))
        return np.concatenate([ids[:, :TOKENS] for ids in blocks])

    note = "1,804 tokens of five stories; other stories calibrate"
    return _task("stories260K", functools.partial(_trace, folder), held_in, stories, "token", note)


def _trace(source: Path, out: Path) -> Path:
    """Bring the torch module of ``source`` in and write it below ``out`` as ONNX."""
    import torch

    import graphpress as gp

    path = out / "stories260K.onnx"
    if not path.exists():
        module = _module(source / "load.py").load(source / "stories260K.bin")
        sizes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("sequence", min=2, max=512)}
        ids = torch.zeros((2, TOKENS), dtype=torch.int64)
        model = gp.trace(module, (ids,), dynamic_shapes={"ids": sizes})
        model.graph.outputs[0].name = "logits"
        gp.save(model, path)
    return path


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
