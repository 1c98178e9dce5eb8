"""The table of other tools: what it says of rows, and that each method runs by its name."""

from __future__ import annotations

import importlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import graphpress as gp
from graphpress.errors import BadRequest
from graphpress.tools.bench import language
from graphpress.tools.bench.peers import child, methods
from graphpress.tools.bench.peers.__main__ import known, main, run
from graphpress.tools.bench.peers.mct_torch import bytes_of
from graphpress.tools.bench.peers.rows import PeerRow, render, verdict


def row(method: str, score: float | None, ours: bool = False, kind: str = "language", why: str = "") -> PeerRow:
    whole = 1.0 if kind == "language" else 80.0
    cost = {} if score is None else {"size": 2_000_000, "seconds": 4.0 if ours else 8.0, "peak": 300_000_000}
    return PeerRow("m", kind, method, "W4A16", ours, whole, score, why=why, **cost)


def test_ours_may_be_worse_by_a_little() -> None:
    """0.005 nats or 0.3 points, to either side of the bound."""
    for kind, ours, theirs, held in (
        ("language", 1.0149, 1.01, "holds"), ("language", 1.0151, 1.01, "does NOT hold"),
        ("classifier", 79.0, 79.25, "holds"), ("classifier", 79.0, 79.35, "does NOT hold"),
        ("classifier", 79.9, 70.0, "holds"),
    ):  # fmt: skip
        said = " ".join(verdict([row("a", ours, True, kind), row("b", theirs, False, kind)]))
        assert f"which {held};" in said
        assert "0.50x of its time, 1.00x of its memory" in said


def test_the_best_of_each_side_is_compared_and_a_failure_is_a_row() -> None:
    rows = [
        row("bad", 1.5, True),
        row("good", 1.001, True),
        row("peer", 1.003),
        row("gone", None, why="not installed: x"),
    ]
    page = render(rows)
    lines = page.splitlines()
    order = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert order == ["method", "**good**", "peer", "**bad**", "gone"]
    assert "| gone | - | - | - | - | - | not installed: x |" in lines
    assert "Ours (good) against the best peer (peer): -0.0020, which holds;" in page
    assert "Nothing to compare." in " ".join(verdict(rows[:2]))
    assert "Nearest" not in page
    close = [replace(r, apart=a) for r, a in zip(rows, (0.5, 0.0123, 0.011, None), strict=True)]
    assert "Nearest to the float model: peer." in render(close)
    assert any(line.startswith("| **good** | +0.0010 | 0.0123 | 2.00 |") for line in render(close).splitlines())


def test_like_is_compared_with_like() -> None:
    """Of each method that both sides have the ones nearest to float, by divergence where there is one, not by score."""
    rows = [
        replace(row("our-gptq", 1.003, True), apart=0.002),
        replace(row("GPTQ of ours", 1.001, True), apart=0.003),
        replace(row("peer GPTQ", 1.002), apart=0.0025, seconds=16.0, peak=600_000_000),
        replace(row("peer AWQ", 1.001), apart=0.001),
    ]
    said = " ".join(verdict(rows))
    assert "By GPTQ: 0.0020 (our-gptq) against 0.0025 (peer GPTQ), 0.25x of its time, 0.50x of its memory." in said
    assert "By AWQ" not in said


def test_methods_are_told_apart_by_name_and_scheme() -> None:
    keys = [methods.key(m) for m in methods.every()]
    assert len(keys) == len(set(keys))
    assert methods.named(keys[0]).ours
    with pytest.raises(BadRequest, match="is no method"):
        methods.named("graphpres w8a8 W8A8")


def test_a_child_writes_the_model_and_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime as ort

    import graphpress.tools.demo as demo

    folder = Path(demo.__file__).parent
    data = tmp_path / "data.npz"
    with np.load(folder / "digits.npz") as arrays:
        np.savez(data, image=arrays["image"][:32])
    out = tmp_path / "out.onnx"
    args = [
        "--method",
        "graphpress w8a8 W8A8",
        "--model",
        str(folder / "digits.onnx"),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    assert child.main(args) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["seconds"] > 0
    assert cost["peak"] > 10_000_000
    ort.InferenceSession(out, providers=["CPUExecutionProvider"])


def test_methods_without_data_are_given_none_and_the_export_with_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, object]] = []
    monkeypatch.setattr(gp, "compile", lambda source, recipe, data, **_: seen.append((source, data)) or ("made", None))
    monkeypatch.setattr(gp, "save", lambda model, path: None)
    data = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    for key in ("graphpress zeroq W8A8 without data", "graphpress w8a8 W8A8"):
        methods.named(key).compress(tmp_path / "net.onnx", data, tmp_path / "out.onnx")
    assert seen == [(tmp_path / "net_bn.onnx", None), (tmp_path / "net.onnx", data)]


def test_mixed_precision_has_the_bytes_of_four_bits_a_convolution_and_of_eight_behind() -> None:
    """By hand: 2 * 3 * 9 / 2 + 5 * 7; biases are not counted by the tool either."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(5, 7))
    assert bytes_of(net, 4) == 27 + 35


def test_a_tool_that_leaves_files_behind_leaves_them_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's quantizers leave weights in the working folder, which was the user's."""
    seen: list[tuple[list[str], Path]] = []

    def started(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        seen.append((command, cwd))
        return subprocess.CompletedProcess(command, 1, "", "stopped here")

    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.chdir(tmp_path)
    method, out = methods.named("graphpress w8a8 W8A8"), tmp_path / "apart" / "out.onnx"
    found = run(method, None, row("a", None), None, Path("m.onnx"), Path("d.npz"), out, 9.0)  # type: ignore[arg-type]
    ((command, folder),) = seen
    assert folder == tmp_path / "apart"
    assert {str(tmp_path / "m.onnx"), str(tmp_path / "d.npz"), str(out)} <= set(command)
    assert found.why == "stopped here"


def test_rows_are_kept_and_a_wrong_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(row("a", 1.0, True).to_json()) + "\n")
    assert known(out) == [row("a", 1.0, True)]
    assert known(tmp_path / "none") == []
    assert main(["--zoo", str(tmp_path), "--models", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_divergence_is_that_of_two_coins() -> None:
    """KL of (3/4, 1/4) from (1/2, 1/2), whatever the text: 3/4 log 3/2 + 1/4 log 1/2."""

    class Coin:
        input_names, output_names = ("ids",), ("logits",)

        def __init__(self, *odds: float) -> None:
            self.logits = np.log(np.array(odds, np.float32)) + 7

        def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": np.broadcast_to(self.logits, (*feeds["ids"].shape, 2))}

    texts = [np.array([[0, 1, 1], [1, 0, 1]]), np.array([[1, 1]])]
    wanted = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert language.divergence(Coin(1, 1), Coin(3, 1), texts) == pytest.approx(wanted, abs=1e-7)
    assert language.divergence(Coin(3, 1), Coin(3, 1), texts) == pytest.approx(0, abs=1e-12)
    assert language.nats(Coin(3, 1), texts) == pytest.approx(-(1 * np.log(0.75) + 4 * np.log(0.25)) / 5, abs=1e-6)


def test_imports_are_told_apart_from_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module takes a second to import, and so does one that it imports: both are counted once, and no work is."""
    now = [0.0]
    monkeypatch.setattr(child.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(child, "now", now, raising=False)
    second = "from graphpress.tools.bench.peers.child import now\nnow[0] += 1\n"
    (tmp_path / "slow_outer.py").write_text("import slow_inner\n" + second)
    (tmp_path / "slow_inner.py").write_text(second)
    monkeypatch.syspath_prepend(tmp_path)
    with child.importing() as spent:
        for name in ("slow_outer", "slow_outer", "slow_inner"):
            importlib.import_module(name)
            now[0] += 5
    assert sum(spent) == 2
