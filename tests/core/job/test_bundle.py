"""The output folder appears whole or not at all, and never in the place of somebody else's files."""

import os
from pathlib import Path

import pytest

from graphpress.errors import BadRequest
from graphpress.job import bundle
from graphpress.recipe import Recipe
from graphpress.report.report import Report
from tests import kit


def fill(draft: Path) -> None:
    bundle.write(draft, kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), Report(), Recipe.load("w8a8"))


def make(folder: Path) -> None:
    with bundle.claim(folder) as draft:
        fill(draft)
        bundle.publish(draft, folder)


def test_the_folder_holds_everything_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {"model.onnx", "report.json", "report.html", "recipe.yaml", "manifest.json"} <= set(names)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_same_twice_is_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    for name in ("model.onnx", "manifest.json", "recipe.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_our_own_folder_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "extra").touch()
    make(tmp_path / "out")
    assert not (tmp_path / "out" / "extra").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_nothing_and_keeps_the_old(tmp_path: Path, failure: type[BaseException]) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out" / "model.onnx").read_bytes()

    def interrupted() -> None:
        with bundle.claim(tmp_path / "out") as draft:
            fill(draft)
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadRequest, match="did not write"), bundle.claim(tmp_path):
        pass
    with pytest.raises(BadRequest, match="not a folder"), bundle.claim(tmp_path / "thesis.tex"):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with bundle.claim(tmp_path / "out"), pytest.raises(BadRequest, match="another run"), bundle.claim(tmp_path / "out"):
        pass
    (tmp_path / ".out.lock").write_text("999999999")  # left behind by a killed run
    make(tmp_path / "out")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the disk is full"), bundle.claim(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_really_full() -> None:
    with pytest.raises(BadRequest, match="the disk is full"), bundle.disk_errors(Path("/dev/full")):
        Path("/dev/full").write_text("x")
