"""The commands as people and scripts use them: exit codes, one JSON document, quiet pipes, bars on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphpress as gp
from graphpress.report.view import library
from graphpress.tools.cli.app import app, guarded
from tests import warm
from tests.passes import quantizing

COMMAND = Path(sys.executable).with_name("graphpress")
DEMO = resources.files("graphpress.tools.demo")
MODEL, DATA = str(DEMO / "digits.onnx"), str(DEMO / "digits.npz")


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Standard output of a command; standard error stays empty where it succeeds."""
    capsys.readouterr()
    done = guarded(lambda: app(list(arguments), standalone_mode=False))
    out, err = capsys.readouterr()
    assert done == code, err
    assert bool(err) == bool(code)
    return out


def parsed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(run(capsys, *arguments, "--json", code=code))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    arguments = ["compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--out", str(out)]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    return out


def test_compile_writes_the_whole_folder(compiled: Path) -> None:
    names = {p.name for p in compiled.iterdir()}
    explorer = {f"explorer.{k}.json" for k in ("bits", "sqnr", "time")}
    drawn = {"view.html"} if library.available() else set()
    assert names == {"model.onnx", "report.json", "report.html", "recipe.yaml", "manifest.json"} | explorer | drawn
    assert ('href="view.html"' in (compiled / "report.html").read_text(encoding="utf-8")) == bool(drawn)
    report = json.loads((compiled / "report.json").read_text())
    assert report["gate"]["passed"]
    assert report["size"]["file_before"] == Path(MODEL).stat().st_size
    assert report["size"]["file_after"] == (compiled / "model.onnx").stat().st_size
    assert report["coverage"]["macs"] > 0.95
    assert str(Path.cwd()) not in (compiled / "report.html").read_text()
    assert str(Path.cwd()) not in (compiled / "manifest.json").read_text()
    recipe = gp.Recipe.load(compiled / "recipe.yaml")
    assert recipe.to_json() == gp.Recipe.load("w8a8").to_json()


def test_every_site_of_the_report_has_a_figure_or_a_reason(compiled: Path) -> None:
    report = json.loads((compiled / "report.json").read_text())
    for site in report["sites"]:
        assert (site["sqnr"] is not None) != bool(site["unmeasured"]), site
    assert all(20 < s["sqnr"] < 70 for s in report["sites"] if s["sqnr"])
    worst = min((s for s in report["sites"] if s["sqnr"]), key=lambda s: s["sqnr"])["node"]
    assert 1 <= len(report["histograms"]) <= 8
    assert next(iter(report["histograms"])).startswith(worst + "[")


def test_the_saved_model_is_one_that_viewers_open(compiled: Path) -> None:
    model = onnx.load(compiled / "model.onnx")
    onnx.checker.check_model(model, full_check=all(o.domain in ("", "ai.onnx") for o in model.opset_import))
    known = {v.name for v in (*model.graph.value_info, *model.graph.output) if v.type.tensor_type.HasField("shape")}
    lacking = [o for n in model.graph.node for o in n.output if o and o not in known]
    assert lacking == []


def test_node_data_for_model_explorer(compiled: Path) -> None:
    """``GraphNodeData`` of model-explorer: name, results by output tensor, gradient with stops from 0 to 1."""
    tensors = {o for n in onnx.load(compiled / "model.onnx").graph.node for o in n.output}
    for stem in ("bits", "sqnr", "time"):
        data = json.loads((compiled / f"explorer.{stem}.json").read_text())
        assert set(data) == {"name", "results", "gradient"}
        assert data["results"]
        assert set(data["results"]) <= tensors
        assert all(set(r) == {"value"} and np.isfinite(r["value"]) for r in data["results"].values())
        assert [g["stop"] for g in data["gradient"]] == [0, 0.5, 1]
        assert all(g["bgColor"].startswith("#") for g in data["gradient"])
    bits = json.loads((compiled / "explorer.bits.json").read_text())
    assert {r["value"] for r in bits["results"].values()} == {8}


def test_compile_prints_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    more = ["--recipe", "w8a16", "--out", str(tmp_path / "o"), "--set", "quantize.weight=int4"]
    found = parsed(capsys, "compile", MODEL, *more)
    assert found["recipe"] == "w8a16"
    assert all("int4" in s["scheme"] for s in found["sites"] if s["scheme"])
    assert {s["unmeasured"] for s in found["sites"]} == {"no data"}
    assert found == json.loads((tmp_path / "o" / "report.json").read_text())


def test_below_the_gate_is_exit_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--set", "gate.min_sqnr=90"]
    capsys.readouterr()
    arguments = [*given, "--out", str(tmp_path / "o"), "--json"]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not found["gate"]["passed"]
    blamed = [name for name, _ in found["gate"]["blame"]]
    assert blamed
    assert blamed[0] in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o" / "model.onnx").exists()
    assert (tmp_path / "o" / "report.html").exists()
    assert guarded(lambda: app([*given, "--keep", "--out", str(tmp_path / "k")], standalone_mode=False)) == 1
    assert (tmp_path / "k" / "model.onnx").exists()


def test_inspect_diff_audit(capsys: pytest.CaptureFixture[str], compiled: Path) -> None:
    model = str(compiled / "model.onnx")
    before, after = parsed(capsys, "inspect", MODEL), parsed(capsys, "inspect", model)
    assert before["ops"]["Conv"] == 6
    stored = [after["storage"][k]["elements"] for k in ("int8", "uint8") if k in after["storage"]]
    assert sum(stored) > 0  # unsigned where products of signed weights would saturate
    changed = parsed(capsys, "diff", MODEL, model)
    assert {s["node"] for s in changed["sites"]} >= {s["node"] for s in before["sites"]}
    assert all("int8" in s["after"] for s in changed["sites"])
    assert parsed(capsys, "diff", model, model)["sites"] == []
    ran = parsed(capsys, "audit", model)
    assert ran["integer_mac_share"] > 0.95
    assert parsed(capsys, "audit", model, "--data", DATA)["sites"]
    for arguments in (["inspect", model], ["diff", MODEL, model], ["audit", model]):
        assert "Sites" in run(capsys, *arguments)


def test_a_model_that_fixes_its_batch_is_fed_batches_of_that_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (
        "g (float[4, 8] x, float[8, 8] w) => (float[4, 8] y) { [layer] m = MatMul(x, w)  i = Identity(m)  y = Relu(i) }"
    )
    w, x = np.eye(8, dtype=np.float32), np.ones((16, 8), np.float32)
    model, data = str(tmp_path / "m.onnx"), str(tmp_path / "x.npz")
    gp.save(quantizing.model(text, {"w": w}), model)
    np.savez(data, x=x)
    assert parsed(capsys, "audit", model, "--data", data)["sites"]
    found = parsed(capsys, "opt", model, "-p", "remove-identity", "--data", data, "--out", str(tmp_path / "o.onnx"))
    assert found["passes"][0]["checked"] == "exact: 0.0e+00"


def test_opt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "n.onnx")
    passes = "fold-batchnorm,quantize{mode=weight, weight=int4},fold-weights"
    found = parsed(capsys, "opt", MODEL, "-p", passes, "--out", out, "--show")
    assert [p["pass"] for p in found["passes"]] == ["fold-batchnorm", "quantize", "fold-weights"]
    assert found["diff"]
    assert parsed(capsys, "inspect", out)["storage"]["int4"]["elements"] > 0


def test_opt_trains_towards_the_model_before_the_first_lossy_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = parsed(
        capsys, "opt", MODEL, "-p", "prune{method=magnitude},recover{steps=3}", "--data", DATA,
        "--out", str(tmp_path / "n.onnx"),
    )  # fmt: skip
    assert [p["pass"] for p in found["passes"]] == ["prune", "recover"]


def test_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    names = parsed(capsys, "recipes")
    assert {"w8a8", "w8a8-dynamic", "w8a16", "w4a16", "w4a8"} <= set(names)
    listed = run(capsys, "recipes")
    for name in names:
        assert name in listed
        assert "passes:" in run(capsys, "recipes", name)
        assert parsed(capsys, "recipes", name)
    for name in parsed(capsys, "passes"):
        found = parsed(capsys, "passes", name)
        assert found["pass"] == name
        assert found["about"]


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_each_pass_is_told_as_text(capsys: pytest.CaptureFixture[str], every: int) -> None:
    for name in list(parsed(capsys, "passes"))[::every]:
        assert run(capsys, "passes", name).split()[:2] == ["pass", name]


def test_a_pipe_is_quiet(tmp_path: Path) -> None:
    arguments = ["compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--out", str(tmp_path / "o")]
    done = warm.graphpress(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("digits.onnx, recipe w8a8, target ort-cpu\n")
    assert done.stdout.count("\n") <= 20
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert done.stdout.rstrip().endswith("report.html)")


def test_a_terminal_shows_bars_and_results_stay_clean(tmp_path: Path) -> None:
    """Standard error is a terminal here, standard output a pipe."""
    arguments = ["compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--out", str(tmp_path / "o"), "--json"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    assert process.stdout is not None
    with process.stdout:
        found = json.loads(process.stdout.read())
    assert process.wait(60) == 0
    os.close(ours)
    assert found["gate"]["passed"]
    for label in (b"passes", b"calibrate"):
        assert label in shown
    assert b"\x1b[" in shown


def test_the_reader_of_a_pipe_may_leave(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{COMMAND} inspect {MODEL} | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
