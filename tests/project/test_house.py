"""The rules of the house hold, and each of them is seen to bite on a planted offence."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpress.tools.check import directions, rooms, sizes, typecheck

OTHERS = [
    "graphpress.graph.edit", "graphpress.passes.clean", "graphpress.passes.quantizers", "graphpress.backends.reference",
]  # fmt: skip


def _sources(folder: Path, module: str, line: str) -> list[rooms.Source]:
    """A module that says ``line``, among some empty ones."""
    (folder / "planted.py").write_text(line)
    (folder / "empty.py").touch()
    others = [rooms.Source(name, folder / "empty.py") for name in OTHERS if name != module]
    return [rooms.Source(module, folder / "planted.py"), *others]


def test_imports_go_in_one_direction(sources: list[rooms.Source]) -> None:
    assert directions.violations(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("graphpress.graph.edit", "from graphpress.passes.clean import planted"),
        ("graphpress.graph.edit", "import graphpress.ops.hadamard"),
        ("graphpress.graph.edit", "import graphpress"),
        ("graphpress.ops.hadamard", "from graphpress.passes.quantizers import affine"),
        ("graphpress.passes.quantizers.affine", "from graphpress.passes.fold import bias"),
        ("graphpress.passes.clean.dead", "from graphpress.passes.fold.bias import FoldBias"),
        ("graphpress.passes.clean.dead", "def f():\n    from graphpress.backends import reference"),
        ("graphpress.passes.clean.dead", "importlib.import_module('graphpress.frontends.onnx_file')"),
        ("graphpress.frontends.onnx_file", "import graphpress.backends.reference"),
        ("graphpress.backends.reference", "from graphpress.passes import quantizers"),
        ("graphpress.frontends.onnx_file", "import graphpress.tools.cli"),
        ("graphpress.frontends.onnx_file", "from tests import kit"),
    ],
)
def test_an_import_against_the_direction_is_found(tmp_path: Path, module: str, line: str) -> None:
    assert len(directions.violations(_sources(tmp_path, module, line))) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("graphpress.passes.clean.dead", "from graphpress.graph import edit"),
        ("graphpress.passes.clean.dead", "from graphpress.passes.clean import other"),
        ("graphpress.passes.fold.bias", "from graphpress.passes.quantizers.affine import fit"),
        ("graphpress.job.compile", "from graphpress.passes.clean.dead import Dead"),
        ("graphpress.tools.cli.main", "import graphpress"),
        ("graphpress.backends.ort.lower", "from graphpress.ops import hadamard"),
    ],
)
def test_an_import_along_the_direction_is_fine(tmp_path: Path, module: str, line: str) -> None:
    assert directions.violations(_sources(tmp_path, module, line)) == []


def test_nothing_imports_in_a_circle(sources: list[rooms.Source]) -> None:
    assert directions.circles(sources) == []


@pytest.mark.parametrize(
    "back", ["import graphpress.a", "def f():\n    from graphpress import a", "if X:\n    import graphpress.a"]
)
def test_a_circle_is_found(tmp_path: Path, back: str) -> None:
    texts = {
        "a": "from graphpress import b",
        "b": "from graphpress import c",
        "c": back,
        "d": "from graphpress import a",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = directions.circles([rooms.Source(f"graphpress.{name}", tmp_path / f"{name}.py") for name in texts])
    assert found == [["graphpress.a", "graphpress.b", "graphpress.c"]]


def test_only_types_of_torch_and_the_like_are_imported_for_checking_alone(sources: list[rooms.Source]) -> None:
    """An own module that only TYPE_CHECKING imports is a circle in hiding, or could as well be imported plainly."""
    found = [
        f"{source.path}:{line}"
        for source in sources
        if source.module != "graphpress"  # the face, whose names are imported when they are used
        for line, _ in directions.for_checking(source.tree)
    ]
    assert found == []


def test_an_import_for_checking_alone_is_found(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n    from graphpress import types\n"
    source, *_ = _sources(tmp_path, "graphpress.graph.edit", text)
    assert list(directions.for_checking(source.tree)) == [(4, "graphpress")]


def test_files_and_functions_are_small(checkout: Path, sources: list[rooms.Source]) -> None:
    paths = [s.path for s in sources] + sorted((checkout / "tests").rglob("*.py"))
    assert sizes.violations(paths) == []


def test_a_long_file_and_a_long_function_are_found(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * sizes.FUNCTION + "\n" * sizes.FILE)
    found = sizes.violations([path])
    assert len(found) == 2
    assert "f has 61 lines" in found[1]


@pytest.mark.slow
def test_a_planted_type_error_is_found_across_rooms(checkout: Path, tmp_path: Path) -> None:
    """A checker that cannot find the rooms takes all that is imported from them for Any, and finds nothing wrong."""
    typecheck.link(checkout, tmp_path)
    (tmp_path / "graphpress/backends/planted.py").write_text(
        "from graphpress.passes.planted import bits\n\nwrong: str = bits()\n"
    )
    (tmp_path / "graphpress/passes/planted.py").write_text(
        "from graphpress.types import Scheme\n\n\ndef bits() -> int:\n    return Scheme().bits\n"
    )
    fine, text = typecheck.run(checkout, tmp_path, "-m", "graphpress.backends.planted")
    assert not fine
    assert 'backends/planted.py:3: error: Incompatible types in assignment (expression has type "int"' in text
