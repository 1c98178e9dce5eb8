"""The files shown in CONTRIBUTING.md, put where they say they stand: found there, sound, and as small as promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE, re.M | re.S))
SHOWN = [path for path in BLOCKS if not path.startswith("tests/")]

# Loaded by pytest before any test: the rooms of the house go on in the folder of the shown files.
PLUGIN = """import importlib, pathlib
for folder in {folders}:
    package = folder.replace("/", ".")
    room = importlib.import_module(package if package.startswith("graphpress.") else "graphpress." + package)
    room.__path__.append(str(pathlib.Path({root!r}) / folder))
"""
PYTEST = "import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every shown file in its place."""
    root = tmp_path_factory.mktemp("contributed")
    for path, body in BLOCKS.items():
        place = root / re.sub("^tests/", "shown/", path)  # pytest takes the folder's name for a package
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(body)
    (root / "plugin").mkdir()
    folders = sorted({path.rpartition("/")[0] for path in SHOWN})
    (root / "plugin" / "contributed.py").write_text(PLUGIN.format(folders=folders, root=str(root)))
    return root


def run(house: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(house / "plugin"), str(ROOT)])
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "contributed", "-p", "no:cacheprovider", "-p", "no:randomly"]
    return warm.python(PYTEST, *options, *args, cwd=house, env={"PYTHONPATH": path}, torch=True)


def test_there_is_one_of_each_kind_with_its_test() -> None:
    rooms = {"graphpress/ops", "passes/clean", "passes/quantizers", "passes/recover/losses"}
    assert {path.rpartition("/")[0] for path in SHOWN} == rooms
    assert len(BLOCKS) == 2 * len(SHOWN)
    assert all((ROOT / path).parent.is_dir() and not (ROOT / path).exists() for path in BLOCKS)


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_is_short(path: str) -> None:
    assert BLOCKS[path].count("\n") <= 60


@pytest.mark.slow
def test_the_shown_tests_pass_on_the_shown_files(house: Path) -> None:
    done = run(house, "--rootdir", str(house), str(house / "shown"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_laws_of_all_hold_for_the_shown_files(house: Path) -> None:
    """The shared tests cover a new file at once."""
    laws = ["tests/catalog/test_laws_passes.py", "tests/passes/quantizers/test_laws.py", "tests/core/ops/test_ops.py"]
    names = ["cancel-negations", "sigma", "SquaredRelu"]
    done = run(house, "--rootdir", str(ROOT), "-rA", "-k", " or ".join(names), *(str(ROOT / law) for law in laws))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert re.search(rf"^PASSED .*\[{name}", done.stdout, re.M), name


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_the_shown_files_are_linted(house: Path, command: list[str]) -> None:
    options = [*command, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    rooms = sorted({path.partition("/")[0] for path in SHOWN})
    ruff = [sys.executable, "-m", "ruff", *options, *(str(house / room) for room in rooms)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
