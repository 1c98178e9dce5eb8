"""Sources in words: recipes, options, and packages that are not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import graphpress as gp
from graphpress.errors import BadRequest, CalibrationError, GraphpressError, RecipeError
from graphpress.observe.sources import said
from graphpress.observe.sources.kinds import kinds
from tests import kit


def test_kinds_are_found_by_being_there() -> None:
    assert kinds() == {"audio": gp.Audio, "images": gp.Images, "text": gp.Text}


@pytest.mark.parametrize("source", [
    "samples.npz", gp.Images("photos", mean=(0.5, 0.4, 0.3), std=0.2, size=(8, 9)),
    gp.Text("a.txt", lines=True, samples=7), gp.Audio("wavs", rate=8000),
])  # fmt: skip
def test_a_recipe_says_its_data_and_says_it_again(source: Any) -> None:
    recipe = gp.Recipe.load({"passes": ["fold-batchnorm"], "data": said.to_json(source)})
    assert recipe.data == source
    assert gp.Recipe.load(recipe.to_json()) == recipe
    assert "data" not in gp.Recipe.load("w8a8").to_json()


BAD: list[tuple[Any, str]] = [
    (7, "data: is neither a path nor a mapping with a path"),
    ({"images": {}}, "neither a path nor a mapping"),
    ({"path": "a", "image": {}}, "unknown key 'image'. Did you mean 'images'"),
    ({"path": "a", "images": {}, "text": {}}, "has images and text. Name one kind"),
    ({"path": "a", "images": {"sise": 3}}, "data: images: it has no option 'sise'. Did you mean 'size'"),
    ({"path": "a", "images": {"crop": "big"}}, "images: option 'crop'"),
    ({"path": "a", "images": {"order": "rbg"}}, "images: option 'order'"),
    ({"path": "a", "images": [1]}, "images must be a mapping"),
    ({"path": "a", "images": {"path": "b"}}, "the path stands elsewhere"),
    ({"path": "a", "images": {"samples": 0}}, "samples=0 leaves nothing"),
]


@pytest.mark.parametrize(("told", "message"), BAD)
def test_recipes_that_say_it_wrongly_are_refused(told: Any, message: str) -> None:
    with pytest.raises(GraphpressError, match=message) as caught:
        gp.Recipe.load({"passes": ["fold-batchnorm"], "data": told})
    assert isinstance(caught.value, RecipeError | BadRequest)


def test_the_data_of_a_recipe_are_used_where_none_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "others"):
        Path(folder).mkdir()
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{i}{folder}.png")
    model = kit.parse("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu(x) }")
    recipe = {"passes": ["fold-batchnorm"], "data": {"path": "photos", "images": {"scale": 1, "samples": 5}}}
    seen = [gp.compile(model, recipe, data, prove=False)[1].data for data in (None, "others")]
    assert [s["calibration"] + s["held_out"] for s in seen] == [5, 5]
    np.savez("x.npz", x=np.zeros((3, 3, 4, 4), np.float32))
    _, report = gp.compile(model, recipe, "x.npz", prove=False)
    assert report.data["calibration"] == 3  # arrays need no preparation


def test_a_folder_of_two_kinds_asks_which(tmp_path: Path) -> None:
    for name in ("a.txt", "a.png"):
        (tmp_path / name).write_bytes(b"a")
    model = kit.parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(CalibrationError, match=r"holds images and text. Say which are meant: --images or --text"):
        gp.calibration_data(tmp_path, model)


@pytest.mark.parametrize(
    ("source", "module", "name"),
    [
        (gp.Images("a.png", scale=1), "PIL", "Pillow"),
        (gp.Text("a.txt", tokenizer="t.json", length=2), "tokenizers", "tokenizers"),
        (gp.Audio("a.wav", rate=8000, length=4), "soundfile", "soundfile"),
    ],
)
def test_a_package_that_is_not_there_is_named_with_its_extra(
    source: Any, module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(source.path).write_text("abcd")
    monkeypatch.setitem(sys.modules, module, None)
    shapes = {"images": "float[N,3,4,4]", "text": "int64[N,L]", "audio": "float[N,L]"}
    shape = shapes[source.name]
    model = kit.parse(f"g ({shape} x) => ({shape} y) {{ y = Identity(x) }}")
    with pytest.raises(BadRequest, match=rf"{source.name}: {name} is not installed. Install it: pip install '"):
        gp.calibration_data(source, model)


def test_a_pipeline_of_ones_own_takes_the_same(tmp_path: Path) -> None:
    model = kit.parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Identity(a) }")
    oracle = kit.run
    for data in (np.ones((2, 3), np.float32), [{"x": np.ones((2, 3), np.float32)}]):
        steps = gp.Pipeline(gp.Recipe.load("clean").passes)
        _, reports = steps.run(model, gp.Context(data=data, oracle=lambda m: lambda f: oracle(m, f)))  # type: ignore[arg-type]
        assert any(r.changed and r.checked.startswith("exact") for r in reports)
