"""The command of the figures: what it finds, prints and refuses."""

import pytest

from graphpress.tools.bench.figures import __main__ as command
from graphpress.tools.bench.figures.base import Figure


def test_each_family_has_measure() -> None:
    import importlib

    for name in command.names():
        assert callable(importlib.import_module(f"graphpress.tools.bench.figures.{name}").measure)


def test_a_row_says_whether_the_bar_holds() -> None:
    assert command.line(Figure("loss", "<= 0.1", "0.2", False)) == "| loss | <= 0.1 | 0.2 | NOT met |  |"
    assert command.line(Figure("loss", "", "0.2")) == "| loss |  | 0.2 |  |  |"


def test_an_unknown_family_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert command.main(["--zoo", str(tmp_path), "--only", "nothing"]) == 2
    assert "--only 'nothing': has no figures" in capsys.readouterr().err
