"""What is installed is what stands in the checkout."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from graphpress.tools.check import directions, rooms
from tests import warm

# import name -> distribution, where they differ
NAMES = {"PIL": "pillow", "google": "protobuf", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Stands in for a distribution of the same import name: never installed beside it, so not among the pins.
INSTEAD = {"onnxruntime-openvino": "onnxruntime"}
# What the table of peers runs where it happens to be installed: their own pins exclude one another.
PEERS = {
    "aimet-onnx",
    "auto-round",
    "compressed-tensors",
    "hqq",
    "llmcompressor",
    "model-compression-toolkit",
    "modelopt",
    "nncf",
}
READ = {"netron"}  # files of it go into a page; nothing imports it
# What stands in the rooms and is for those who work on the project.
CHECKOUT_ONLY = ("graphpress/tools/bench/", "graphpress/tools/check/", "graphpress/tools/mutants/")


def test_every_folder_with_sources_is_a_package(checkout: Path, sources: list[rooms.Source]) -> None:
    known = set(rooms.packages(checkout))
    homes = {s.module if s.path.name == "__init__.py" else s.module.rpartition(".")[0] for s in sources}
    assert homes == known


@pytest.mark.parametrize("cwd", [".", "/"])
def test_rooms_import_from_anywhere(checkout: Path, cwd: str) -> None:
    code = f"import {', '.join(rooms.packages(checkout))}"
    warm.python(code, cwd=checkout / cwd, torch=True).check_returncode()


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools writes into the folder it builds from."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(checkout, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    return built


def _tracked(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_wheel_holds_every_file_of_the_rooms_but_benchmarks_and_checks(checkout: Path, wheel: Path) -> None:
    """Setuptools leaves out what it is not told of, and an editable install does not show it."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        f"{package.replace('.', '/')}/{path.relative_to(folder)}"
        for package, folder in rooms.rooms(checkout).items()
        for path in _tracked(folder)
    }
    assert inside == {name for name in wanted if not name.startswith(CHECKOUT_ONLY)}
    assert sum(name.startswith(CHECKOUT_ONLY) for name in wanted) > 20


def test_nothing_in_the_wheel_imports_what_stays_in_the_checkout(sources: list[rooms.Source]) -> None:
    kept = {f.rstrip("/").replace("/", ".") for f in CHECKOUT_ONLY}
    modules = {s.module for s in sources}
    stay = {m for m in modules if any(m == k or m.startswith(f"{k}.") for k in kept)}
    wrong = [(s.module, n) for s in sources if s.module not in stay for _, n in directions.imported(s.tree, modules)]
    assert [(here, there) for here, there in wrong if there in stay] == []


def test_the_wheel_says_what_it_is(checkout: Path, wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    head = email.message_from_bytes(archive.read(metadata))
    assert (head["Name"], head["License-Expression"]) == ("graphpress", "Apache-2.0")
    (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert archive.read(licence) == (checkout / "LICENSE").read_bytes()
    assert "Apache License" in (checkout / "LICENSE").read_text()


def test_the_wheel_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the dependencies: path files inside a borrowed folder do not count,
    so the editable install is not seen."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    code = "import graphpress.tools.cli as c; print(c.__file__)"
    where = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(where.strip()).is_relative_to(packages)
    command = [home / "bin" / "graphpress"]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "compile" in shown
    shown = subprocess.run([*command, "demo"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "written to" in shown
    gone = subprocess.run([python, "-m", "graphpress.tools.bench", "--help"], cwd=tmp_path, capture_output=True)
    assert gone.returncode != 0


def _third_party(sources: list[rooms.Source]) -> set[str]:
    """Distributions that the sources import, also inside functions."""
    names = {name for source in sources for _, name in directions.imported(source.tree, ())}
    roots = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "graphpress", "tests"}
    return {_canonical(NAMES.get(root, root)) for root in roots}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_canonical(re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0]) for r in requirements} - {"graphpress"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(
    checkout: Path, sources: list[rooms.Source]
) -> None:
    project = rooms.settings(checkout)["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    shipped = _names(sum((extras[e] for e in extras if e != "dev"), project["dependencies"]))
    imported = _third_party(sources)
    assert imported - shipped == PEERS, "imported but not declared"
    assert shipped - imported - INSTEAD.keys() == READ, "declared but never imported"
    tests = [rooms.Source(path.stem, path) for path in (checkout / "tests").rglob("*.py")]
    assert _third_party(tests) - shipped - _names(extras["dev"]) == set(), "imported by tests but not declared"


def test_constraints_pin_what_is_declared(checkout: Path) -> None:
    lines = (checkout / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    project = rooms.settings(checkout)["project"]
    declared = _names(sum(project["optional-dependencies"].values(), project["dependencies"]))
    assert declared - INSTEAD.keys() <= {pin.partition("==")[0] for pin in pins}


def test_version_is_the_one_of_the_changelog(checkout: Path) -> None:
    version = importlib.metadata.version("graphpress")
    assert version == rooms.settings(checkout)["project"]["version"]
    assert f"\n## {version}" in (checkout / "CHANGELOG.md").read_text()


def test_modules_parse_under_the_oldest_python(sources: list[rooms.Source]) -> None:
    for source in sources:
        ast.parse(source.text, feature_version=(3, 11))


def test_nothing_lies_at_the_top_but_what_belongs_there(checkout: Path) -> None:
    """A tool that writes into the working folder is a commit away from shipping a model's weights."""
    if not (checkout / ".git").exists():
        pytest.skip("not a checkout of git")
    done = subprocess.run(["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True)
    rooms = {"backends", "docs", "examples", "frontends", "graphpress", "passes", "tests", "tools", ".ci"}
    pages = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"}
    files = {"Makefile", "constraints.txt", "pyproject.toml", "setup.py", ".gitignore"}
    assert {line.split("/")[0] for line in done.stdout.splitlines()} <= rooms | pages | files


def test_nothing_that_git_ignores_is_tracked(checkout: Path) -> None:
    if not (checkout / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(tracked) == 0, tracked[:3]
