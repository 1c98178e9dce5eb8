"""The bench of the view page: the graph that it draws, what it says without a browser, and a page in a real one."""

from __future__ import annotations

import shutil

import pytest

import graphpress as gp
from graphpress.graph import verify
from graphpress.report.view import library, modules
from graphpress.tools.bench import view_fluency

needs_netron = pytest.mark.skipif(not library.available(), reason="netron, of the extra `view`, is not installed")


def test_the_graph_has_as_many_operators_as_asked_in_modules_within_modules() -> None:
    model = view_fluency.transformer(500)
    verify.check(model)
    assert 500 <= len(list(model.graph)) < 600
    assert {len(path) for path in modules.paths(model).values()} == {1, 2, 3}


@needs_netron
def test_without_a_browser_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view_fluency.shutil, "which", lambda name: None)
    assert view_fluency.main(["--nodes", "50"]) == 2
    assert "needs Chromium, which is not installed" in capsys.readouterr().err


def test_a_row_a_step() -> None:
    lines = view_fluency.render({"a": dict.fromkeys(view_fluency.STEPS, 12.4)}).splitlines()
    assert lines[0] == "| milliseconds | a |"
    assert lines[2] == "| load, until drawn | 12 |"
    assert len(lines) == 2 + len(view_fluency.STEPS)


@pytest.mark.slow
@needs_netron
@pytest.mark.skipif(not any(map(shutil.which, view_fluency.BROWSERS)), reason="no chromium is installed")
def test_a_real_browser_gives_a_figure_of_each_step() -> None:
    found = view_fluency.measure(gp.view(view_fluency.transformer(150)), 90)
    assert found.keys() == view_fluency.STEPS.keys()
    assert all(took > 0 for took in found.values())
