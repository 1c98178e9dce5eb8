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
        logits = runner({"ids": ids[:, :-1]})["logits"].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        right = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
        total += float((np.log(np.exp(logits).sum(-1)) - right).sum())
        count += right.size
    return total / count


def _codelm(folder: Path, name: str) -> Task:
    def load(part: str) -> np.ndarray:
        with np.load(folder / part) as z:
            return z["ids"].astype(np.int64)

    def scores(runner: Runner, _: Runner) -> Scores:
        ids = load("valid.npz")
        return {"nats/byte": nats(runner, (ids[i : i + 8] for i in range(0, len(ids), 8)))}

    note = "65,536 bytes of held-out text; a sample is 256 bytes"
    return _task(name, lambda _: folder / f"{name}.onnx", lambda: load("calib.npz")[:, :TOKENS], scores, note)


def _task(
    name: str,
    file: Callable[[Path], Path],
    ids: Callable[[], np.ndarray],
    scores: Callable[[Runner, Runner], Scores],
    note: str,
) -> Task:
    load = functools.cache(ids)

    def data() -> dict[str, np.ndarray]:
        return {"ids": load()}

    return Task(name, "language", file, data, scores, lambda n: first(data(), n), higher=False, note=note)


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

    def scores(runner: Runner, _: Runner) -> Scores:
        return {"nats/token": nats(runner, stories())}

    note = "1,804 tokens of five stories; other stories calibrate"
    return _task("stories260K", functools.partial(_trace, folder), held_in, scores, note)


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
