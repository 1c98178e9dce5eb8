"""The measuring of compile time: figures from fresh processes, medians, shares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from graphpress.tools.bench import compile_time
from graphpress.tools.bench.compile_time import render


def test_peak_grows_with_what_is_touched() -> None:
    program = """if True:
        import numpy as np
        from graphpress.tools.bench.compile_time import peak
        before = peak()
        np.ones(100 << 17)  # 105 MB
        print(peak() - before)
    """
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert 80 < float(grown) < 130


def test_medians_of_interleaved_runs(monkeypatch) -> None:
    calls = []

    def fresh(tool: str, *_: object) -> dict[str, float]:
        calls.append(tool)
        return {"seconds": float(len(calls)), "peak_mb": 1.0}

    monkeypatch.setattr(compile_time, "fresh", fresh)
    found = compile_time.compare_tools(None, None, 3, ("a", "b"))
    assert calls == ["a", "b"] * 3
    assert found == {"a": {"seconds": 3.0, "peak_mb": 1.0}, "b": {"seconds": 4.0, "peak_mb": 1.0}}


def test_whole_processes_take_turns_behind_one_that_warms_up(monkeypatch) -> None:
    calls = []

    def wall(args: list[str]) -> float:
        calls.append("compile" in args)
        return float(len(calls))

    monkeypatch.setattr(compile_time, "_wall", wall)
    found = compile_time.whole_processes(Path("m.onnx"), Path("d.npz"), 3)
    assert calls == [True, False, False] * 4
    assert found == {t: {"seconds": 7.0 + i} for i, t in enumerate(("graphpress", "onnxruntime x1", "onnxruntime x64"))}


def test_render_gives_our_share() -> None:
    figures = {"graphpress": {"seconds": 1.0, "peak_mb": 50.0}, "other": {"seconds": 4.0, "peak_mb": 100.0}}
    text = render({"net": figures, "start-up": {"import": {"seconds": 0.1}}})
    assert [line.split() for line in text.splitlines()] == [
        ["net", "graphpress", "seconds", "1.00", "peak_mb", "50.00"],
        ["net", "other", "seconds", "4.00", "peak_mb", "100.00"],
        ["net", "ours", "is", "seconds", "0.25x", "peak_mb", "0.50x"],
        ["start-up", "import", "seconds", "0.10"],
    ]
