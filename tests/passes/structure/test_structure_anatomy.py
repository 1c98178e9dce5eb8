"""``inspect --structure``: what the passes find, as data and as tables."""

from __future__ import annotations

import json
from pathlib import Path

import graphpress as gp
from graphpress.tools.cli import app
from tests.passes.rotating import clean, weighted

BODY = """e = Gather(t, ids) n = LayerNormalization(e, g, b) q = MatMul(n, w)
    o = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, q) a = MatMul(o, u) s = Add(e, a)
    m = RMSNormalization(s, g) h = MatMul(m, w) f = Relu(h) d = MatMul(f, u) y = Add(s, d)"""
WEIGHTS = {"t": (9, 4), "g": (4,), "b": (4,), "w": (4, 4), "u": (4, 4)}


def test_all_parts_are_named() -> None:
    found = gp.inspect(weighted(BODY, WEIGHTS, "int64[2,3] ids"), structure=True)
    assert found.structure is not None
    (stream,), (heads,), (pair,) = found.structure.streams, found.structure.heads, found.structure.pairs
    assert (stream["name"], stream["width"], stream["sums"], len(stream["writers"])) == ("e", 4, 2, 3)
    assert stream["turned_back"] == ["y"] and stream["blocked"] == []
    assert [(n["kind"], n["gain"], n["stream"]) for n in found.structure.norms] == [
        ("layer", "own", "e"), ("rms", "own", "e"),
    ]  # fmt: skip
    assert (heads["size"], heads["heads"], len(heads["values_from"]), len(heads["values_to"])) == (2, 2, 1, 1)
    assert pair["width"] == 4 and found.structure.embeddings[0]["rows"] == 9
    assert json.loads(json.dumps(found.to_json()))["structure"]["streams"][0]["width"] == 4
    titles = {t.title for t in found.tables()}
    assert {"Residual streams", "Norms", "Attention heads", "MLP pairs", "Feed-forward blocks", "Embeddings"} <= titles
    assert gp.inspect(weighted(BODY, WEIGHTS, "int64[2,3] ids")).structure is None


def test_each_has_the_reason_where_a_pass_cannot_use_it() -> None:
    body = """e = Gather(t, ids) n = RMSNormalization(e, g) q = MatMul(n, w) f = Relu(q) d = MatMul(f, u)
        x = Exp(f) z = ReduceSum(x) s = Add(e, d) k = Softmax(s) r = Add(k, z) y = MatMul(r, w)"""
    found = gp.inspect(weighted(body, WEIGHTS, "int64[2,3] ids"), structure=True).structure
    assert found is not None
    assert [(b["name"], b["blocked"]) for b in found.blocks] == [
        ("MatMul_4", "its inner value 'f' is read elsewhere too")
    ]
    places = {tuple(p["read_by"]): p for p in found.factors}
    assert places["MatMul_2",]["written_by"] == ["RMSNormalization_1"] and not places["MatMul_2",]["blocked"]
    assert "reads 'f' too" in places["MatMul_4",]["blocked"]
    assert any("Softmax" in why for why in found.streams[0]["blocked"]) or found.streams[0]["turned_back"] == ["s"]


def test_a_block_is_shown_with_its_sizes() -> None:
    found = gp.inspect(weighted(BODY, WEIGHTS, "int64[2,3] ids"), structure=True).structure
    assert found is not None
    assert found.blocks == [
        {
            "name": "MatMul_9", "activation": "relu", "gated": False, "width": 4, "hidden": 4, "out": 4,
            "residual": True, "blocked": "",
        }
    ]  # fmt: skip


def test_the_command_shows_them(capsys, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    gp.save(weighted(BODY, WEIGHTS, "int64[2,3] ids"), path)
    assert app.guarded(lambda: app.app(["inspect", str(path), "--structure"], standalone_mode=False)) == 0
    assert "Residual streams" in capsys.readouterr().out


def test_a_model_without_any_has_no_tables(zoo: Path) -> None:
    found = gp.inspect(clean(gp.load(zoo / "mnist/cnn_mnist_pytorch.onnx")), structure=True)
    assert found.structure is not None and found.structure.streams == [] and found.structure.heads == []
