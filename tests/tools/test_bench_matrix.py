"""Cells, their file, the table of them; what a report makes of a cell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from graphpress import shipped
from graphpress.contracts import PassReport, Skip
from graphpress.errors import BadRequest, PassError, Unsupported
from graphpress.job.gate import GateResult
from graphpress.recipe import Recipe
from graphpress.report.report import Report, SiteRow
from graphpress.tools.bench.cell import Cell, fill, judge, quick
from graphpress.tools.bench.children import lines
from graphpress.tools.bench.matrix import chosen, in_order, load, main, render, save
from graphpress.tools.bench.task import Task
from graphpress.types import Plan


def test_render() -> None:
    cells = [
        Cell("a", "w8a8", share=1.0),
        Cell("a", "sparse24", changes={"permute": 0, "prune": 3}, reason="too narrow"),
        Cell("b", "w8a8", share=0.5, changes={"prune": 2}, reason="too\nnarrow", gate=False),
        Cell("b", "sparse24", "skipped", reason="nothing | here"),
        Cell("c", "w8a8", "refused", reason="no data"),
        Cell("c", "sparse24", "crash", reason="ZeroDivisionError: oh"),
    ]
    text = render(cells, "few samples")
    assert "at quick settings: few samples." in text
    assert text.endswith(
        "\n| | w8a8 | sparse24 |\n|---|---|---|\n"
        "| a | 100% | prune 3<sup>1</sup> |\n"
        "| b | prune 2, 50%*<sup>1</sup> | -<sup>2</sup> |\n"
        "| c | no<sup>3</sup> | CRASH<sup>4</sup> |\n\n"
        "1. too narrow\n2. nothing / here\n3. no data\n4. ZeroDivisionError: oh\n"
    )


def test_new_cells_go_into_a_page_by_name_and_the_others_stay() -> None:
    old = [
        Cell("a", "w4a16", share=1.0, gate=False),
        Cell("b", "w4a16", "skipped", reason="nothing"),
        Cell("b", "w8a8", share=1.0),
    ]
    page = render(old, "few samples")
    assert render([], "few samples", page) == page
    new = [Cell("a", "w4a8", "refused", reason="no data"), Cell("b", "w4a16", share=0.5, reason="too narrow")]
    assert render(new, "few samples", page).endswith(
        "\n| | w4a16 | w4a8 | w8a8 |\n|---|---|---|---|\n"
        "| a | 100%* | no<sup>1</sup> |  |\n"
        "| b | 50%<sup>2</sup> |  | 100% |\n\n"
        "1. no data\n2. too narrow\n"
    )
    with pytest.raises(BadRequest, match="no table of cells"):
        render(new, page="# something else")


def test_the_page_of_the_project_is_one_that_can_be_filled() -> None:
    page = (Path(__file__).parents[2] / "docs/figures/matrix.md").read_text()
    assert render([], page=page) == page


def test_cells_survive_their_file(tmp_path: Path) -> None:
    path, cells = tmp_path / "matrix.json", [Cell("a", "b", share=0.25), Cell("a", "c", "crash", trace="x")]
    assert load(path) == []
    save(cells, path)
    assert load(path) == cells[:1]  # what crashed is tried again
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.json"]
    path.write_text("[]")
    with pytest.raises(BadRequest, match="not a file of cells"):
        load(path)


def test_quick_settings_never_make_a_search_longer() -> None:
    for name in shipped.recipes():
        quick(Recipe.load(name))  # of every shipped recipe
    made = {p.name: p for p in quick(Recipe.load("zeroq")).passes}
    assert made["zeroq"].options()["iterations"] == 10
    short = Recipe.load("zeroq").set(["zeroq.iterations=3"])
    assert quick(short) == short


def _report(changed: int, schemes: list[str], skips: list[str]) -> Report:
    quantize = PassReport("quantize", changed, [Skip("n", why) for why in skips], plan=Plan())
    passes = [PassReport("fold-constants", changed=7), quantize]
    return Report(passes=passes, sites=[SiteRow(f"s{i}", "Conv", scheme) for i, scheme in enumerate(schemes)])


@pytest.mark.parametrize(
    ("report", "status", "share", "reason"),
    [
        (_report(4, ["int8", "int8"], ["odd"]), "applied", 1.0, ""),
        (_report(4, ["int8", ""], ["odd", "even", "even"]), "applied", 0.5, "even"),
        (_report(0, ["", ""], ["odd"]), "skipped", None, "odd"),
        (_report(0, [], []), "skipped", None, "there is nothing of what it changes"),
    ],
)
def test_what_a_report_says(report: Report, status: str, share: float | None, reason: str) -> None:
    cell = Cell("a", "w8a8")
    judge(cell, Recipe.load("w8a8"), report)
    assert (cell.status, cell.share, cell.reason, cell.gate) == (status, share, reason, True)
    report.gate = GateResult(failures=["low"])
    judge(cell, Recipe.load("w8a8"), report)
    assert cell.gate is False


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (BadRequest("no", where="here", fix="Go there."), "refused", "no. Go there"),
        (ZeroDivisionError("oh"), "crash", "ZeroDivisionError: oh"),
        (PassError("moved"), "crash", "PassError: moved"),
        (
            Unsupported("ONNX Runtime 1 refuses the model: no"),
            "crash",
            "Unsupported: ONNX Runtime 1 refuses the model: no",
        ),
    ],
)
def test_an_error_is_a_cell(error: Exception, status: str, reason: str) -> None:
    def fail(_: Path) -> Path:
        raise error

    cell = fill(Task("net", "speech", fail, dict, lambda *_: {}, lambda _: {}), "w8a8")
    assert (cell.model, cell.recipe, cell.status, cell.reason) == ("net", "w8a8", status, reason)
    assert ("Traceback" in cell.trace) == (status == "crash")
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_a_real_cell(checkout: Path) -> None:
    demo = checkout / "tools/demo"
    with np.load(demo / "digits.npz") as z:
        data = dict(z)
    task = Task("digits", "classifier", lambda _: demo / "digits.onnx", lambda: data, lambda *_: {}, lambda _: {})
    cell = fill(task, "w8a8")
    assert (cell.status, cell.share) == ("applied", 1.0)
    assert fill(task, "fold").status == "refused"  # there is nothing quantized to fold


def test_bad_requests_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--zoo", str(tmp_path / "none"), "--out", str(tmp_path / "m.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["--zoo", str(tmp_path), "--recipes", "w8a9", "--out", str(tmp_path / "m.json")]) == 2
    assert "'w8a9': there is no such recipe" in capsys.readouterr().err
    assert chosen(None) == list(shipped.recipes())


def test_the_table_in_the_docs_is_of_shipped_recipes(checkout: Path) -> None:
    text = (checkout / "docs/figures/matrix.md").read_text()
    columns = next(line for line in text.splitlines() if line.startswith("| | ")).strip("| ").split(" | ")
    assert set(columns) <= set(shipped.recipes())
    assert len(columns) == len(set(columns)) >= 17


def test_what_a_native_library_prints_is_no_cell() -> None:
    script = """import json; print("Warning: a library speaks"); print(); print(json.dumps({"recipe": "w8a8"}))"""
    assert list(lines([sys.executable, "-c", script], "m", ["w8a8"], 30)) == [("w8a8", {"recipe": "w8a8"})]


def test_order(zoo: Path) -> None:
    cells = [Cell("codelm", "w8a8"), Cell("unknown", "acm"), Cell("resnet20", "w8a8"), Cell("resnet20", "acm")]
    assert [(c.model, c.recipe) for c in in_order(cells, zoo)] == [
        ("resnet20", "acm"), ("resnet20", "w8a8"), ("codelm", "w8a8"), ("unknown", "acm"),
    ]  # fmt: skip
