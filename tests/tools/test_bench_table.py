"""Rows, their file, the README's tables and the bars; a row's process may die."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from graphpress.errors import BadRequest
from graphpress.tools.bench.markdown import missed, render
from graphpress.tools.bench.results import Results, machine, resume
from graphpress.tools.bench.row import BenchRow, measure
from graphpress.tools.bench.table import main, rows
from graphpress.tools.bench.task import Task

GOOD = BenchRow(
    "resnet20",
    "w8a8",
    "classifier",
    metric="top-1 %",
    before={"top-1 %": 80.85},
    after={"top-1 %": 80.6, "other": 1.0},
    bytes=(1134739, 312000),
    latency={"1": {"ratio": 0.5}, "32": {"ratio": 0.333}},
    seconds=1.24,
    integer=0.998,
    note="seen",
)


def test_render() -> None:
    tied = BenchRow(
        "codelm", "w8a8", "language", metric="nats/byte", before={"nats/byte": 1.00535}, after={"nats/byte": 1.0123}
    )
    refused = BenchRow("vad", "w4a16", status="refused", reason="node 'a|b':\nno")
    assert render(Results("a machine", [GOOD, tied, refused])) == (
        "Measured on a machine. Latency as a share of the float model's, in interleaved runs.\n\n"
        "**w8a8**\n\n"
        "| model | metric | float | compressed | size MB | batch 1 | batch 32 | compile s | integer MACs |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| resnet20 | top-1 % | 80.85 | 80.60 | 1.13 → 0.31 | 0.50x | 0.33x | 1.2 | 99.8% |\n"
        "| codelm | nats/byte | 1.0053 | 1.0123 | - | - | - | - | - |\n\n"
        "**w4a16**\n\n"
        "| model | metric | float | compressed | size MB | batch 1 | batch 32 | compile s | integer MACs |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| vad (refused) | - | - | - | - | - | - | - | - |\n\n"
        "- resnet20: seen.\n\n"
        "- vad, w4a16: refused: node 'a|b': no\n"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"after": {"top-1 %": 80.5}}, ["costs 0.35 points, allowed 0.3"]),
        ({"model": "mobilenet_v1", "after": {"top-1 %": 79.9}}, []),
        ({"integer": 0.9}, ["90.0% of the multiply-adds on integer kernels, asked 95 %"]),
        ({"latency": {"32": {"ratio": 0.7}}}, ["0.70x of float's time at batch 32, allowed 0.6"]),
        ({"kind": "language", "recipe": "w8a8-dynamic", "latency": {"1": {"ratio": 0.6}}},
         ["0.60x of float's time at batch 1, allowed 0.5"]),
        ({"recipe": "w4a16", "after": {"top-1 %": 10.0}}, []),
        ({"status": "crash"}, ["crash"]),
    ],
)  # fmt: skip
def test_bars(change: dict, says: list[str]) -> None:
    row = BenchRow.from_json(GOOD.to_json() | change)
    assert missed([row]) == [f"{row.model}, {row.recipe}: {s}" for s in says]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (BadRequest("no", where="here"), "refused", "here: no"),
        (ZeroDivisionError("oh"), "crash", "ZeroDivisionError: oh"),
    ],
)
def test_an_error_is_a_row(error: Exception, status: str, reason: str, tmp_path: Path) -> None:
    def fail(_: Path) -> Path:
        raise error

    row = measure(Task("net", "speech", fail, dict, lambda *_: {}, lambda _: {}), "w8a8", tmp_path)
    assert (row.model, row.recipe, row.kind, row.status, row.reason) == ("net", "w8a8", "speech", status, reason)
    assert BenchRow.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_results_go_on_where_they_stopped(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = resume(path)
    assert (results.machine, results.rows) == (machine(), [])
    results.add(GOOD)
    results.add(BenchRow("resnet20", "w8a8", status="crash"))
    results.save(path)
    again = resume(path)
    assert [(r.model, r.status) for r in again.rows] == [("resnet20", "crash")]
    assert again.missing("resnet20", ["w8a8", "w4a16"]) == ["w4a16"]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results("elsewhere", [GOOD]).save(path)
    with pytest.raises(BadRequest, match="another machine: elsewhere"):
        resume(path)
    path.write_text("[]")
    with pytest.raises(BadRequest, match="not a file of results"):
        resume(path)


CHILD = """
import json, os, sys, time
a = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for r in a["--recipes"].split(","):
    if r == "dies": sys.stderr.write("oh\\nno"); sys.stderr.flush(); os.abort()
    if r == "hangs": time.sleep(60)
    print(json.dumps({"model": a["--models"], "recipe": r}), flush=True)
"""


def test_a_process_that_dies_or_hangs_costs_one_row() -> None:
    found = list(rows([sys.executable, "-c", CHILD], "m", ["a", "dies", "b", "hangs", "c"], limit=2.0))
    assert [(r.recipe, r.status) for r in found] == [
        ("a", "ok"), ("dies", "crash"), ("b", "ok"), ("hangs", "crash"), ("c", "ok"),
    ]  # fmt: skip
    assert found[1].reason == "the process ended with code -6: no"
    assert found[3].reason.startswith("the process ended with code -9")


def test_bad_requests_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--zoo", str(tmp_path / "none"), "--out", str(tmp_path / "r.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "r.json").write_text(json.dumps({"machine": "elsewhere", "rows": []}))
    assert main(["--zoo", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 2
