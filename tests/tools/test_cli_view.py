"""`graphpress view` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpress.report.view import library
from graphpress.tools.cli import app
from tests import kit


@pytest.mark.skipif(not library.available(), reason="netron, of the extra `view`, is not installed")
def test_a_page_is_written_or_one_line_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import graphpress as gp

    model, out = tmp_path / "m.onnx", tmp_path / "view.html"
    gp.save(kit.parse("g (float[1] x) => (float[1] y) { y = Relu(x) }"), model)

    def run(*words: str | Path) -> tuple[int, str]:
        code = app.guarded(lambda: app.app([*map(str, words)], standalone_mode=False))
        said = capsys.readouterr()
        return code, said.out + said.err

    assert run("view", model, "--before", model, "--out", out) == (0, f"written to {out} (open it in a browser)\n")
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, said = run("view", tmp_path / "none.onnx", "--out", out)
    assert code == 2
    assert "none.onnx" in said
    assert said.count("\n") == 1
