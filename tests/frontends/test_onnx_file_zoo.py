"""Every model at hand comes through load and save, and the committed table says the truth about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphpress.tools.bench import roundtrip

PARTS = 12  # so that several processes can share the work
LIGHT = "onnx_light"  # large networks of made-up weights: a fourth of the time of all


@pytest.fixture(scope="module")
def committed(checkout: Path) -> dict[str, str]:
    """File -> status, as the table in the repository has it."""
    status, table = "", {}
    for line in (checkout / "docs" / "figures" / "roundtrip.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            status = line[3:]
        elif status and (row := re.match(r"\| (\S+\.onnx) \|", line)):
            table[row[1]] = status
    return table


@pytest.mark.parametrize("part", [pytest.param(n, marks=[pytest.mark.slow] * (n % 2)) for n in range(PARTS)])
def test_every_model_comes_back_equal_or_is_refused(zoo: Path, committed: dict[str, str], part: int) -> None:
    paths = [path for path in roundtrip.files(zoo) if path.parent.name != LIGHT][part::PARTS]
    _hold(zoo, committed, paths)


@pytest.mark.slow
def test_the_light_models_come_back_equal(zoo: Path, committed: dict[str, str]) -> None:
    """Their operators stand in the other models as well."""
    _hold(zoo, committed, [path for path in roundtrip.files(zoo) if path.parent.name == LIGHT])


def _hold(zoo: Path, committed: dict[str, str], paths: list[Path]) -> None:
    assert paths
    results = [roundtrip.round_trip(path, str(path.relative_to(zoo))) for path in paths]
    assert [r for r in results if r.status == roundtrip.DIFFERS] == []
    assert {r.file: r.status for r in results} == {r.file: committed.get(r.file, "not in the table") for r in results}
    assert all(r.reason for r in results if r.status != roundtrip.EQUAL)


def test_the_table_has_every_model(zoo: Path, committed: dict[str, str]) -> None:
    assert sorted(committed) == [str(p.relative_to(zoo)) for p in roundtrip.files(zoo)]


def test_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Path) -> None:
    """The check itself can fail: here saving spoils a weight."""
    path = zoo / "mnist" / "burn_mnist.onnx"
    save = roundtrip.onnx_file.save

    def spoil(model: object, to: Path) -> None:
        save(model, to)  # type: ignore[arg-type]
        data = bytearray(to.read_bytes())
        data[-2] ^= 0x40
        to.write_bytes(data)

    monkeypatch.setattr(roundtrip.onnx_file, "save", spoil)
    assert roundtrip.round_trip(path).status == roundtrip.DIFFERS
