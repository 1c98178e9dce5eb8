"""Samples in the shapes of a target's phase: which axes are meant, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.observe.shaped import shaped
from graphpress.target import Target
from tests import kit

TEXT = "g (int64[B, T] ids, int64[B, T] mask, float[B, 2, P, 4] past) => (int64[B, T] y) { y = Add(ids, mask) }"
FLOATS = "g (float[N, S, 8] x) => (float[N, S, 8] y) { y = Relu(x) }"
FEEDS = {
    "ids": np.arange(10).reshape(2, 5), "mask": np.ones((2, 5), np.int64),
    "past": np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4),
}  # fmt: skip


def target(phase: str) -> Target:
    return Target.load(f"ort-cpu:{phase}", "x86-64+vnni")


def test_one_token_or_more_than_there_are_from_the_start() -> None:
    model = kit.parse(TEXT)
    one = shaped(model, FEEDS, target("decode"))
    assert {n: a.shape for n, a in one.items()} == {"ids": (1, 1), "mask": (1, 1), "past": (1, 2, 3, 4)}
    many = shaped(model, FEEDS, target("sequence=12"))
    assert many["ids"].tolist() == [[*range(5), *range(5), 0, 1], [*range(5, 10), *range(5, 10), 5, 6]]
    assert shaped(model, FEEDS, target("P=2,B=1"))["past"].tolist() == FEEDS["past"][:1, :, :2].tolist()
    assert shaped(model, FEEDS, Target.load("ort-cpu")) is FEEDS and shaped(model, FEEDS, None) is FEEDS
    x = {"x": np.zeros((3, 7, 8), np.float32)}
    assert shaped(kit.parse(FLOATS), x, target("prefill"))["x"].shape == (1, 512, 8)


def test_what_a_model_has_not_is_said() -> None:
    image = kit.parse("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu(x) }")
    x = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    with pytest.raises(
        BadRequest, match=r"axis 'sequence': the inputs of the model have no such axis\. Its open axes are N"
    ):
        shaped(image, x, target("decode"))
    fixed = kit.parse("g (int64[1, 16] x) => (int64[1, 16] y) { y = Neg(x) }")
    with pytest.raises(BadRequest, match="input 'x' is fixed to 16, not 1"):
        shaped(fixed, {"x": np.zeros((1, 16), np.int64)}, target("decode"))
    with pytest.raises(BadRequest, match=r"no such phase\. Did you mean 'decode'"):
        target("decod")
    for wrong in ("batch=0", "batch=x", "=3", "batch=1,sequence="):
        with pytest.raises(BadRequest, match="is no size of an axis"):
            target(wrong)


def test_a_file_of_ones_own_names_phases(tmp_path: Path) -> None:
    from graphpress import shipped

    data = json.loads(shipped.targets()["ort-cpu"]) | {"phases": {"chat": {"batch": 2, "sequence": 3}}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    made = Target.load(f"{path}:chat")
    assert (made.title, made.name, dict(made.shapes)) == ("mine:chat", "mine", {"batch": 2, "sequence": 3})
    path.write_text(json.dumps(data | {"phases": {"chat": {"batch": 0}}}))
    with pytest.raises(BadRequest, match="phase 'chat' is"):
        Target.load(path)
