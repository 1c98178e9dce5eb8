"""Text files as token ids, by a tokenizer or byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import CalibrationError, GraphpressError
from graphpress.observe.sources import text
from tests import kit

WORDS = ["[PAD]", "[UNK]", "[CLS]", "a", "b", "c", "d"]


def model(length: str = "S", vocabulary: int = 256, more: str = "", feed: str = "") -> ir.Model:
    table = ",".join(["0"] * vocabulary * 2)
    return kit.parse(f"""g (int64[N,{length}] ids{more}) => (float[N,{length},2] y{feed and ", int64[N,S] z"})
        <float[{vocabulary},2] w = {{{table}}}> {{ y = Gather(w, ids) {feed} }}""")


def taken(source: Any, of: ir.Model) -> gp.CalibrationData:
    data = gp.calibration_data(source, of)
    assert data is not None
    data.check(of)
    return data


def arrays(source: Any, of: ir.Model) -> dict[str, np.ndarray]:
    batches = list(taken(source, of).batches(1000))
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    folder = tmp_path / "tokens"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_model_of_bytes_gets_bytes(tmp_path: Path) -> None:
    written = "".join(map(chr, range(32, 128))) + "äöü€"
    (tmp_path / "a.txt").write_text(written, encoding="utf-8")
    raw = np.frombuffer(written.encode(), np.uint8)
    got = arrays(tmp_path, model("10"))["ids"]
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, raw[: len(raw) // 10 * 10].reshape(-1, 10))
    np.testing.assert_array_equal(arrays(gp.Text(tmp_path, length=10, samples=5), model())["ids"], got[::2])


def test_windows_are_spread_over_the_files(tmp_path: Path) -> None:
    for name, size in (("a", 400), ("b", 80), ("c", 3)):
        (tmp_path / f"{name}.txt").write_text(name * size)
    data = taken(gp.Text(tmp_path, length=4, samples=30), model())
    ids = np.concatenate([b["ids"] for b in data.batches(64)])
    assert [chr(row[0]) for row in ids] == ["a"] * 10 + ["b"] * 10
    assert data.notes == ("1 of 3 files are shorter than 4 tokens, and left out",)


def test_a_tokenizer_makes_one_run_of_tokens(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c d\nd c x a\nb")
    got = arrays(gp.Text(tmp_path / "a.txt", tokenizer=str(tokenizer), length=4), model(vocabulary=7))["ids"]
    assert got.tolist() == [[3, 4, 5, 6], [6, 5, 1, 3]]
    (tokenizer.parent / "a.txt").write_text("a b c d")
    assert arrays(tokenizer.parent, model("4", 7))["ids"].tolist() == [[3, 4, 5, 6]]  # it lies in the folder


def test_a_long_text_is_encoded_in_pieces_of_whole_lines(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a b c\nd\n" * 50 + "a " * 40)
    source = gp.Text(tmp_path / "a.txt", tokenizer=str(tokenizer), length=4, samples=40)
    whole = arrays(source, model(vocabulary=7))["ids"]
    monkeypatch.setattr(text, "_PIECE", 21)
    np.testing.assert_array_equal(arrays(source, model(vocabulary=7))["ids"], whole)
    assert len(whole) == 40


def test_lines_are_padded_and_the_mask_says_so(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\n\nc d a b c\n")
    of = model(vocabulary=7, more=", int64[N,S] attention_mask, int64[N,S] token_type_ids, int64[N,S] position_ids",
               feed="z0 = Add(attention_mask, token_type_ids) z = Add(z0, position_ids)")  # fmt: skip
    got = arrays(gp.Text(tmp_path / "a.txt", tokenizer=str(tokenizer), length=4, lines=True), of)
    assert got["ids"].tolist() == [[2, 3, 4, 0], [2, 5, 6, 3]]
    assert got["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert got["token_type_ids"].tolist() == [[0] * 4] * 2
    assert got["position_ids"].tolist() == [[0, 1, 2, 3]] * 2


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"vocabulary": 300, "length": "4"}, r"the model reads 300 tokens, and there is no tokenizer.json. Give that"),
    ({}, {}, "the model leaves the length open. Give length"),
    ({"length": 5}, {"length": "4"}, "length 5 is not the model's, 4"),
    ({"length": 0}, {}, "length=0 leaves nothing"),
    ({"length": 99}, {}, "no file holds the 99 tokens of a sample. Give a longer text"),
    ({"length": 4, "tokenizer": "none.json"}, {}, "none.json: there is no such file"),
    ({"length": 4, "input": "z"}, {}, "the model has no input 'z' of 2 axes. It has ids"),
]


@pytest.mark.parametrize(("options", "of", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], of: dict[str, Any], message: str
) -> None:
    if "tokenizer" in options:
        pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("a b c d e f")
    with pytest.raises(GraphpressError, match=message):
        arrays(gp.Text(tmp_path, **options), model(**of))


def test_files_that_are_no_text_and_tokenizers_of_others_are_named(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(CalibrationError, match=r"a\.txt: is no text in UTF-8 \(byte 3\)"):
        arrays(gp.Text(tmp_path, length=2), model())
    (tmp_path / "a.txt").write_text("a b c d")
    with pytest.raises(CalibrationError, match=r"comes out with token 6, the model knows 5. Give the tokenizer of the"):
        arrays(gp.Text(tmp_path, length=2, tokenizer=str(tokenizer)), model(vocabulary=5))
    tokenizer.write_text("{}")
    with pytest.raises(CalibrationError, match=r"tokenizer\.json: is no tokenizer\.json"):
        arrays(gp.Text(tmp_path, length=2, tokenizer=str(tokenizer)), model())


@pytest.mark.zoo
def test_the_code_model_reads_a_text_file(zoo: Path, tmp_path: Path) -> None:
    written = Path(__file__).read_bytes()
    (tmp_path / "code.txt").write_bytes(written)
    of = gp.load(zoo / "llm/codelm/codelm.onnx")
    got = arrays(gp.Text(tmp_path / "code.txt", length=64), of)["ids"]
    np.testing.assert_array_equal(got.ravel(), np.frombuffer(written, np.uint8)[: got.size])
    assert len(got) == len(written) // 64
