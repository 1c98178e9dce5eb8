"""What is installed is what stands in the checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graphpress.tools.check import directions, rooms

# import name -> distribution, where they differ
NAMES = {"PIL": "pillow", "google": "protobuf", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def test_pyproject_lists_every_package(checkout: Path) -> None:
    listed = rooms.settings(checkout)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(rooms.packages(checkout))
    assert len(listed) == len(set(listed))


def test_every_folder_with_sources_is_a_package(checkout: Path) -> None:
    known = set(rooms.packages(checkout))
    homes = {s.module if s.path.name == "__init__.py" else s.module.rpartition(".")[0] for s in rooms.sources(checkout)}
    assert homes == known


@pytest.mark.parametrize("cwd", [".", "/"])
def test_rooms_import_from_anywhere(checkout: Path, cwd: str) -> None:
    code = f"import {', '.join(rooms.packages(checkout))}"
    subprocess.run([sys.executable, "-c", code], cwd=checkout / cwd, check=True)


def test_the_wheel_holds_every_file(checkout: Path, tmp_path: Path) -> None:
    """Setuptools leaves out what pyproject does not name, and an editable install does not show it."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(checkout, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        f"{package.replace('.', '/')}/{path.relative_to(folder)}"
        for package, folder in rooms.rooms(source).items()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert inside == wanted


def _third_party(sources: list[rooms.Source]) -> set[str]:
    """Distributions that the sources import, also inside functions."""
    names = {name for source in sources for _, name in directions.imported(source.tree, ())}
    roots = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "graphpress", "tests"}
    return {_canonical(NAMES.get(root, root)) for root in roots}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_canonical(re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0]) for r in requirements} - {"graphpress"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(checkout: Path) -> None:
    project = rooms.settings(checkout)["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    shipped = _names(sum((extras[e] for e in extras if e != "dev"), project["dependencies"]))
    imported = _third_party(rooms.sources(checkout))
    assert imported - shipped == set(), "imported but not declared"
    assert shipped - imported == set(), "declared but never imported"
    tests = [rooms.Source(path.stem, path) for path in (checkout / "tests").rglob("*.py")]
    assert _third_party(tests) - shipped - _names(extras["dev"]) == set(), "imported by tests but not declared"


def test_constraints_pin_what_is_declared(checkout: Path) -> None:
    lines = (checkout / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    project = rooms.settings(checkout)["project"]
    declared = _names(sum(project["optional-dependencies"].values(), project["dependencies"]))
    assert declared <= {pin.partition("==")[0] for pin in pins}


def test_version_is_the_one_of_the_changelog(checkout: Path) -> None:
    version = importlib.metadata.version("graphpress")
    assert version == rooms.settings(checkout)["project"]["version"]
    assert f"\n## {version}" in (checkout / "CHANGELOG.md").read_text()


def test_modules_parse_under_the_oldest_python(checkout: Path) -> None:
    for source in rooms.sources(checkout):
        ast.parse(source.text, feature_version=(3, 11))


def test_nothing_that_git_ignores_is_tracked(checkout: Path) -> None:
    if not (checkout / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(tracked) == 0, tracked[:3]
