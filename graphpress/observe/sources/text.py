"""Text, cut into windows of tokens or bytes (tokenizers, extra ``text``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.errors import CalibrationError
from graphpress.observe.sources.source import Source, missing, shares, spread, the_input, window

_AT_ONCE = 64  # windows in memory
_MOST = 16 << 20  # bytes of a file that are read
_BYTES = 256
_TOKENIZER = "tokenizer.json"
_Row: TypeAlias = tuple[np.ndarray, np.ndarray]  # ids and mask of a sample, [length] each
_IDS = ("input_ids", "ids", "tokens", "token_ids")


@dataclass(frozen=True)
class Text(Source):
    """Text files for a model that reads token ids, [samples, length].

    Ids come from a tokenizer.json, which is also found in the folder; a model whose vocabulary is 256 gets bytes where
    there is none. Inputs whose names speak of a mask are 1 at every token, types and segments are 0, positions count.

    Attributes:
        samples: At most so many windows or lines, spread evenly.
        tokenizer: A tokenizer.json, as tokenizers and transformers write it.
        length: Tokens of a sample; None: as the model's input has them.
        lines: Whether each line is a sample, with the tokenizer's special tokens, cut or padded to ``length``, as
            encoders are trained; otherwise the text is one run of tokens, as decoders are.
        input: Which input the ids are for; "": the only one of two axes, or the one called input_ids.
    """

    tokenizer: str | None = field(default=None, kw_only=True)
    length: int | None = field(default=None, kw_only=True)
    lines: bool = field(default=False, kw_only=True)
    input: str = field(default="", kw_only=True)

    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = (".txt", ".text")

    def batches(self, model: ir.Model, files: Sequence[Path], notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Windows of each file, at most 64 at a time.

        Raises:
            CalibrationError: No tokenizer, or one of another model; no length; or a file that is no text.
        """
        where = f"text {self.path}"
        named = [v.name for v in model.graph.inputs if v.name in _IDS]
        value = the_input(model, self.input or (named[0] or "" if named else ""), 2, where)
        length = window(value, self.length, where)
        vocabulary = _vocabulary(model, value)
        encode = self._encoder(vocabulary, length)
        short = 0
        for most, file in shares(files, self.samples):
            rows = encode(_read(file, notes))
            short += not rows
            _known(rows, vocabulary, file)
            rows = [rows[i] for i in spread(len(rows), most)]
            for i in range(0, len(rows), _AT_ONCE):
                ids = np.stack([r for r, _ in rows[i : i + _AT_ONCE]])
                mask = np.stack([m for _, m in rows[i : i + _AT_ONCE]])
                yield {v.name or "": _beside(v, value, ids, mask) for v in model.graph.inputs if _is_fed(v, value)}
        if short == len(files):
            fix = "Give a longer text, or a smaller length."
            raise CalibrationError(f"no file holds the {length} tokens of a sample", where=where, fix=fix)
        if short:
            notes.append(f"{short} of {len(files)} files are shorter than {length} tokens, and left out")

    def _encoder(self, vocabulary: int | None, length: int) -> Callable[[str], list[_Row]]:
        """What makes samples of a text."""
        folder = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        path = Path(self.tokenizer) if self.tokenizer else folder / _TOKENIZER
        if not self.tokenizer and not path.is_file():
            if vocabulary != _BYTES:
                size = f"{vocabulary:,} tokens" if vocabulary else "tokens that are not known"
                raise CalibrationError(
                    f"the model reads {size}, and there is no {_TOKENIZER}", where=f"text {self.path}",
                    fix="Give that of the model: --text tokenizer=PATH (graphpress.Text(path, tokenizer=PATH)).",
                )  # fmt: skip
            return lambda text: _windows(np.frombuffer(text.encode(), np.uint8), length)
        tokenizer = _tokenizer(path)
        if self.lines:
            known = (tokenizer.token_to_id(t) for t in ("[PAD]", "<pad>", "<|endoftext|>"))
            pad = (tokenizer.padding or {}).get("pad_id", next((i for i in known if i is not None), 0))
            tokenizer.enable_truncation(length)
            tokenizer.enable_padding(length=length, pad_id=pad)
            return lambda text: [
                (np.asarray(e.ids), np.asarray(e.attention_mask))
                for e in tokenizer.encode_batch([line for line in text.splitlines() if line.strip()])
            ]
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda text: _windows(np.asarray(tokenizer.encode(text, add_special_tokens=False).ids), length)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise missing("tokenizers", "text") from e
    if not path.is_file():
        raise CalibrationError("there is no such file", where=str(path))
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises nothing narrower
        said = " ".join(str(e).split())[:150]
        raise CalibrationError(f"is no tokenizer.json: {said}", where=str(path)) from e


def _read(path: Path, notes: list[str]) -> str:
    """The text of a file, as far as it is read.

    Raises:
        CalibrationError: It is no text in UTF-8.
    """
    with path.open("rb") as f:
        raw = f.read(_MOST)
        if f.read(1):
            notes.append(f"the first {_MOST >> 20} MiB of {path.name}")
            raw = raw[: max(raw.rfind(b"\n"), 0) or len(raw)]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        what = f"is no text in UTF-8 (byte {e.start})"
        raise CalibrationError(what, where=str(path), fix="Convert it, or leave it out.") from e


def _windows(ids: np.ndarray, length: int) -> list[_Row]:
    count = len(ids) // length
    return [(row, np.ones(length, np.int64)) for row in ids[: count * length].reshape(count, length)]


def _known(rows: Sequence[_Row], vocabulary: int | None, file: Path) -> None:
    most = max((int(ids.max()) for ids, _ in rows), default=0)
    if vocabulary is not None and most >= vocabulary:
        what = f"comes out with token {most}, the model knows {vocabulary}"
        raise CalibrationError(what, where=str(file), fix="Give the tokenizer of the model itself.")


def _vocabulary(model: ir.Model, ids: ir.Value) -> int | None:
    """How many tokens the model knows: rows of the table that the ids choose from, else scores of its first output."""
    seen = [ids]
    for value in seen:
        for node in value.consumers():
            if node.op_type == "Gather" and node.inputs[1] is value and node.inputs[0] is not None:
                table = node.inputs[0].shape
                if table is not None and len(table) == 2 and isinstance(table[0], int):
                    return table[0]
            if node.op_type in ("Cast", "Reshape", "Flatten", "Identity") and node.inputs[0] is value:
                seen.extend(node.outputs)
    shape = model.graph.outputs[0].shape if model.graph.outputs else None
    last = shape[2] if shape is not None and len(shape) == 3 else None
    return last if isinstance(last, int) else None


def _is_fed(value: ir.Value, ids: ir.Value) -> bool:
    return value is ids or (not value.is_initializer() and _kind(value) is not None)


def _kind(value: ir.Value) -> str | None:
    """What an input beside the ids holds, by its name."""
    name = (value.name or "").lower()
    if value.shape is not None and len(value.shape) != 2:
        return None
    return next((k for k in ("mask", "type", "segment", "position") if k in name), None)


def _beside(value: ir.Value, ids_of: ir.Value, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What an input is fed, [samples, length]."""
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.int64)
    if value is ids_of:
        return ids.astype(dtype)
    match _kind(value):
        case "mask":
            return mask.astype(dtype)
        case "position":
            return np.broadcast_to(np.arange(ids.shape[1], dtype=dtype), ids.shape).copy()
        case _:
            return np.zeros(ids.shape, dtype)
