"""A file is found by being there, and two things of one name are refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graphpress import catalog
from graphpress.errors import GraphpressError

PASS = '''
"""Planted."""
from dataclasses import dataclass
from typing import ClassVar
from graphpress.contracts import Pass

@dataclass(frozen=True)
class Planted(Pass):
    """Does nothing."""
    name: ClassVar[str] = "{name}"

    def run(self, model, ctx, report):
        pass
'''
ROOMS = {
    "passes": ("graphpress.passes.clean", PASS.format(name="planted"), PASS.format(name="remove-dead")),
    "ops": ("graphpress.ops", "class OP:\n    name = 'planted'\n", "class OP:\n    name = 'Hadamard'\n"),
    "quantizers": ("graphpress.passes.quantizers", "class QUANTIZER:\n    name = 'planted'\n", ""),
    "adapters": ("graphpress.passes.recover.adapters", "class ADAPTER:\n    name = 'planted'\n", ""),
    "losses": ("graphpress.passes.recover.losses", "class LOSS: ...\n", ""),
    "methods": ("graphpress.passes.recover.methods", "class METHOD: ...\n", ""),
}


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts a file called planted.py into a package, for one test."""
    modules = set(sys.modules)

    def put(package: str, source: str) -> None:
        (tmp_path / "planted.py").write_text(source)
        home = importlib.import_module(package)
        monkeypatch.setattr(home, "__path__", [*home.__path__, str(tmp_path)])
        for kind in ROOMS:
            getattr(catalog, kind).cache_clear()

    yield put
    for name in set(sys.modules) - modules:
        if name.endswith(".planted"):
            del sys.modules[name]
    for kind in ROOMS:
        getattr(catalog, kind).cache_clear()


@pytest.mark.parametrize("kind", ROOMS)
def test_a_new_file_is_found(kind: str, plant: Callable[[str, str], None]) -> None:
    before = set(getattr(catalog, kind)())
    package, source, _ = ROOMS[kind]
    plant(package, source)
    assert set(getattr(catalog, kind)()) == before | {"planted"}


@pytest.mark.parametrize("kind", [k for k, (_, _, again) in ROOMS.items() if again])
def test_two_of_one_name_are_refused(kind: str, plant: Callable[[str, str], None]) -> None:
    package, _, again = ROOMS[kind]
    plant(package, again)
    with pytest.raises(GraphpressError, match="two things are called"):
        getattr(catalog, kind)()
