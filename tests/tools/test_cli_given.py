"""What is given on the command line beside the model: data of other kinds than arrays, and what to measure by."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from graphpress.tools.cli.app import app, guarded

RNG = np.random.default_rng(0)
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] x) => (float[N, 192] y) { y = Flatten(x) }"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its data, pictures and a metric, and the current one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(MODEL), "m.onnx")
    np.savez("d.npz", x=RNG.normal(size=(16, 3, 8, 8)).astype(np.float32))
    for i in range(12):
        Path(f"photos/{i}").mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(f"photos/{i}/a.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *more: str, data: str | None = "d.npz", code: int = 0) -> str:
    """Standard output of a compilation, or its one line on standard error."""
    capsys.readouterr()
    given = ["--data", data] if data else []
    done = guarded(
        lambda: app(["compile", "m.onnx", "--recipe", "clean", "--out", "out", *given, *more], standalone_mode=False)
    )
    out, err = capsys.readouterr()
    assert done == code, err
    return err if code else out


def refused(capsys: pytest.CaptureFixture[str], *more: str, data: str | None = "d.npz") -> str:
    err = run(capsys, *more, data=data, code=2)
    assert re.fullmatch(r"graphpress: [^\n]+\n", err), err
    return err


def test_pictures_are_data_and_folders_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "--images", "mean=0.5,std=0.5,samples=10", "--evaluate", "top-5", data="photos")
    assert "labels are the names of 12 folders" in said
    assert "10 of 12 files, evenly spread" in said
    assert "top-5 %" in said


def test_a_metric_of_the_working_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_cli_metric.py").write_text("def twelve(run):\n    return 12\n")
    said = run(capsys, "--evaluate", "own_cli_metric:twelve")
    assert re.search(r"metric +own_cli_metric:twelve: 12.00 -> 12.00 +\+0.00", said)


def test_options_of_files_that_are_no_arrays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--images and --text: exclude each other" in refused(capsys, "--images", "scale=1", "--text", "length=4")
    assert "--images: says how files become samples" in refused(capsys, "--images", "scale=1", data=None)
    assert "'scale' is not option=value" in refused(capsys, "--images", "scale")
    assert "no option 'sise'. Did you mean 'size'" in refused(capsys, "--images", "sise=4")
    assert "d.npz: not a readable picture" in refused(capsys, "--images", "scale=1")


def test_metrics_that_are_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such metric" in refused(capsys, "--evaluate", "accuracy")
    assert "there is no module 'nowhere'" in refused(capsys, "--evaluate", "nowhere:f")
    assert "is no name of a module" in refused(capsys, "--evaluate", "../here/m:f")
    assert "metric 'top-5' needs labels" in refused(capsys, "--evaluate", "top-5")


def test_shells_complete_the_names_of_recipes() -> None:
    """As the script does that --install-completion writes."""
    asked = {"_GRAPHPRESS_COMPLETE": "complete_bash", "COMP_WORDS": "graphpress compile m.onnx --recipe w8a8-s"}
    command = [Path(sys.executable).with_name("graphpress")]
    env = os.environ | asked | {"COMP_CWORD": "4"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["w8a8-smooth"]


def test_options_of_a_pass_are_explained_with_their_values_in_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(["passes", "quantize", "--recipe", "w8a8", "--json"], standalone_mode=False)) == 0
    rows = {r.pop("option"): r for r in json.loads(capsys.readouterr().out)["options"]}
    assert rows["mode"] == {
        "takes": "static | dynamic | weight", "default": "'static'", "in the recipe": "'static'",
        "meaning": rows["mode"]["meaning"],
    }  # fmt: skip
    assert (rows["observer"]["default"], rows["observer"]["in the recipe"]) == ("'minmax'", "'mse'")
    for wrong, message in (
        (["passes", "--recipe", "w8a8"], "Name a pass"),
        (["passes", "prune", "--recipe", "w8a8"], "no pass 'prune' in it"),
    ):
        assert guarded(lambda wrong=wrong: app(wrong, standalone_mode=False)) == 2  # type: ignore[misc]
        assert message in capsys.readouterr().err


def test_the_schema_of_recipes_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"]):
        assert guarded(lambda more=more: app(["recipes", "--schema", *more], standalone_mode=False)) == 0  # type: ignore[misc]
        assert json.loads(capsys.readouterr().out)["title"] == "A recipe of graphpress"
