"""The page of half precision: what an entry misses, what a cell says, what is asked of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from graphpress.tools.bench import half
from graphpress.tools.bench.half import Entry

BASE, OWN = ("ort-cpu", "block", "w8a8", "float32"), ("ort-cpu", "block", "w8a8", "float16 traced")


def missed(base: float, mine: Entry, recipe: str = "w8a8") -> str:
    a, b = ((*key[:2], recipe, key[3]) for key in (BASE, OWN))
    return half.misses({a: Entry(base, 0.3), b: mine}, b)


def test_a_decibel_may_go_and_what_rounding_the_output_costs() -> None:
    assert missed(40.0, Entry(39.1, 0.5)) == ""
    assert missed(40.0, Entry(38.9, 0.5)) == "1.1 dB are lost"
    assert missed(140.0, Entry(64.1, 0.5)) == ""  # two roundings to 11 digits
    assert missed(140.0, Entry(60.0, 0.5)) == "5.0 dB are lost"
    assert missed(65.0, Entry(61.2, 0.5)) == ""  # 65 and 65 dB together are 62


def test_only_clean_is_held_to_the_bytes_of_the_model() -> None:
    assert missed(140.0, Entry(70.0, 1.2), "clean") == "tensors grow to 1.20x"
    assert missed(40.0, Entry(40.0, 1.2), "acm") == missed(140.0, Entry(70.0, 1.04), "clean") == ""


def test_errors_and_nothing_to_do() -> None:
    assert missed(40.0, Entry(error="no")) == "it fails"
    assert missed(40.0, Entry(error="-")) == ""
    assert half.misses({OWN: Entry(1.0, 1.0)}, OWN) == ""  # nothing to compare with


def test_the_page() -> None:
    page = half.render({BASE: Entry(40.0, 0.25), OWN: Entry(30.0, 0.5)})
    assert "## block, ort-cpu" in page
    assert "| w8a8 | 40.0 0.25x | 30.0 (-10.0) 0.50x ! |" in page
    assert "1 of 2 cells hold." in page
    failed = half.render({BASE: Entry(error="broken"), OWN: Entry(error="-")})
    assert "| w8a8 | error ! | - |" in failed
    assert "- ort-cpu, block, w8a8, float32: broken" in failed


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "entries.jsonl"
    arguments = ["--targets", "ort-cpu", "--networks", "vision", "--recipes", "w8a16", "--out", str(out)]
    assert half.main([*arguments, "--forms", "float32,Cast ends"]) == 0
    first = capsys.readouterr().out
    assert "2 of 2 cells hold." in first
    assert len(out.read_text().splitlines()) == 2
    assert half.main([*arguments, "--forms", "float32,Cast ends"]) == 0  # from the file
    assert (capsys.readouterr().out, len(out.read_text().splitlines())) == (first, 2)


def test_a_form_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert half.main(["--forms", "float64"]) == 2
    assert "'float64': there is no such thing" in capsys.readouterr().err
