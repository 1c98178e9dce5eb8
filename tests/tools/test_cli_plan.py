"""``graphpress plan``: the plan of a report, of a model, of a file; their difference; a plan written into a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.types import Plan
from tests.tools.test_cli import DATA, MODEL, parsed, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from graphpress.tools.cli.app import app, guarded

    out = tmp_path_factory.mktemp("plan") / "out"
    arguments = ["compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--out", str(out)]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    return out


def test_report_and_model_hold_one_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_folder, of_report, of_model = (
        parsed(capsys, "plan", "show", str(p)) for p in (folder, folder / "report.json", folder / "model.onnx")
    )
    assert of_folder == of_report
    assert of_model["sites"] == of_folder["sites"]
    assert "node_conv2d" in run(capsys, "plan", "show", str(folder))
    assert parsed(capsys, "plan", "diff", str(folder), str(folder / "model.onnx")) == {}


def test_a_plan_edited_by_hand_is_applied_and_found_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.from_json(parsed(capsys, "plan", "show", str(folder)))
    gone = plan.nodes()[0]
    file, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    file.write_text(str(plan.without([gone])))
    difference = parsed(capsys, "plan", "diff", str(folder), str(file))
    assert {s.partition("[")[0] for s in difference} == {gone}
    assert all(pair[0] is not None and pair[1] is None for pair in difference.values())
    assert "float" in run(capsys, "plan", "diff", str(folder), str(file))
    done = parsed(capsys, "plan", "apply", MODEL, str(file), "--data", DATA, "--out", str(out))
    assert done["operators"] == len(plan.nodes()) - 1
    assert isinstance(gp.load(out), ir.Model)
    assert parsed(capsys, "plan", "diff", str(file), str(out)) == {}


@pytest.mark.slow
def test_a_plan_is_applied_with_gptq_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, better, nearest = tmp_path / "out", tmp_path / "better.onnx", tmp_path / "nearest.onnx"
    options = ["--max-size", "0.2x", "--set", "allocate.samples=8", "--set", "allocate.measure=1"]
    run(capsys, "compile", MODEL, "--recipe", "mixed", "--data", DATA, "--out", str(out), *options, "--keep")
    apply = ["plan", "apply", MODEL, str(out)]
    run(capsys, *apply, "--gptq", "--data", DATA, "--out", str(better))
    run(capsys, *apply, "--data", DATA, "--out", str(nearest))
    assert parsed(capsys, "plan", "diff", str(better), str(nearest)) == {}
    mine, other = codes(gp.load(better)), codes(gp.load(nearest))
    assert len(mine) > 3 and mine.keys() == other.keys()
    assert any(not np.array_equal(mine[n], other[n]) for n in mine)
    run(capsys, *apply, "--gptq", "--out", str(tmp_path / "none.onnx"), code=2)
    assert not (tmp_path / "none.onnx").exists()


def codes(model: ir.Model) -> dict[str, np.ndarray]:
    """Stored weights in codes."""
    held = {n: v.const_value for n, v in model.graph.initializers.items() if n.endswith("QuantizeLinear_out")}
    return {n: t.numpy() for n, t in held.items() if t is not None}


def test_what_is_no_plan_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "x.json"
    for text in ("[1]", "{", '{"sites": {"a": {}}}', '{"plan": null}'):
        other.write_text(text)
        run(capsys, "plan", "show", str(other), code=2)
    run(capsys, "plan", "show", str(tmp_path / "absent.json"), code=2)
    run(capsys, "plan", "show", MODEL, code=2)
    plan = json.loads((folder / "report.json").read_text())["plan"]
    plan["sites"] = {s.replace("node_linear", "node_linaer"): v for s, v in plan["sites"].items()}
    other.write_text(json.dumps(plan))
    capsys.readouterr()
    from graphpress.tools.cli.app import app, guarded

    arguments = ["plan", "apply", MODEL, str(other), "--data", DATA, "--out", str(tmp_path / "y.onnx")]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 2
    assert "Did you mean 'node_linear'" in capsys.readouterr().err
    assert not (tmp_path / "y.onnx").exists()


def test_budgets_go_to_a_recipe_that_holds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    report = parsed(
        capsys, "compile", MODEL, "--recipe", "mixed", "--data", DATA, "--out", str(out), "--max-size", "0.3x",
        "--max-drop", "2", "--set", "allocate.samples=8", "--set", "allocate.measure=1",
    )  # fmt: skip
    assert report["metric"]["allowed"] == 2
    step = next(p for p in report["passes"] if p["name"] == "allocate")
    assert step["metrics"]["size"] <= 0.3
    assert "max_size: 0.3x" in (out / "recipe.yaml").read_text()
    assert 'class="taken"' in (out / "report.html").read_text()
    run(capsys, "compile", MODEL, "--recipe", "w8a8", "--data", DATA, "--out", str(out), "--max-size", "0.3x", code=2)
    run(capsys, "compile", MODEL, "--recipe", "mixed", "--data", DATA, "--out", str(out), "--max-size", "3x", code=2)
