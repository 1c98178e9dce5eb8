"""What there is: passes, dialect operators, quantizers, losses, training methods, adapters. Packages are walked.

No registry: a new file is found by being there. Two things of one name are an error.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from graphpress.contracts import Pass
from graphpress.errors import GraphpressError

_PASSES = "graphpress.passes"


def _modules(package: str) -> Iterator[ModuleType]:
    root = importlib.import_module(package)
    for info in sorted(pkgutil.walk_packages(root.__path__, f"{package}."), key=lambda i: i.name):
        if not info.ispkg:
            yield importlib.import_module(info.name)


def _put(known: dict[str, Any], name: str, thing: Any) -> None:
    if known.setdefault(name, thing) is not thing:
        raise GraphpressError(f"two things are called {name!r}: {known[name]!r} and {thing!r}", where="catalog")


@functools.cache
def passes() -> dict[str, type[Pass]]:
    """Every concrete pass under graphpress.passes by its name."""
    known: dict[str, type[Pass]] = {}
    for module in _modules(_PASSES):
        for cls in _passes_of(module):
            _put(known, cls.name, cls)
    return known


def _passes_of(module: ModuleType) -> Iterator[type[Pass]]:
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if issubclass(cls, Pass) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
            yield cls


def pass_named(name: str) -> type[Pass] | None:
    """The pass of that name, or None. Its file, called after it, is looked at first: to import all takes a second."""
    return _in_its_file(name) or passes().get(name)


@functools.cache
def _in_its_file(name: str) -> type[Pass] | None:
    stem = name.replace("-", "_")
    for folder in importlib.import_module(_PASSES).__path__ if stem.isidentifier() else ():
        for path in sorted(Path(folder).rglob(f"{stem}.py")):
            module = importlib.import_module(".".join((_PASSES, *path.relative_to(folder).with_suffix("").parts)))
            for cls in _passes_of(module):
                if cls.name == name:
                    return cls
    return None


def named(package: str, constant: str) -> dict[str, Any]:
    """What the files of a package give under the name ``constant``, each by its own name."""
    known: dict[str, Any] = {}
    for module in _modules(package):
        if hasattr(module, constant):
            thing = getattr(module, constant)
            _put(known, thing.name, thing)
    return known


@functools.cache
def ops() -> dict[str, Any]:
    """Every operator of the dialect ``graphpress::`` by its op type: the ``OP`` of each file in graphpress.ops."""
    return named("graphpress.ops", "OP")


@functools.cache
def quantizers() -> dict[str, Any]:
    """Every number format by its name: the ``QUANTIZER`` of each file in graphpress.passes.quantizers."""
    return named("graphpress.passes.quantizers", "QUANTIZER")


def quantizer_named(name: str) -> type[Any] | None:
    """The number format of that name, or None. Its file is looked at first, as for passes."""
    path = f"graphpress.passes.quantizers.{name}"
    if name.isidentifier() and importlib.util.find_spec(path) is not None:
        found: type[Any] | None = getattr(importlib.import_module(path), "QUANTIZER", None)
        if found is not None and found.name == name:
            return found
    return quantizers().get(name)


@functools.cache
def adapters() -> dict[str, Any]:
    """Every trainable addition by its name: the ``ADAPTER`` of each file in graphpress.passes.recover.adapters."""
    return named("graphpress.passes.recover.adapters", "ADAPTER")


@functools.cache
def metrics() -> dict[str, type[Any]]:
    """Every metric by its name: the ``METRIC`` of each file in graphpress.job.metrics."""
    return named("graphpress.job.metrics", "METRIC")


@functools.cache
def losses() -> dict[str, type[Any]]:
    """Every loss of ``recover`` by the name of its file: its ``LOSS``."""
    return _in_folder("graphpress.passes.recover.losses", "LOSS")


@functools.cache
def methods() -> dict[str, type[Any]]:
    """Every training method of ``recover`` by the name of its file: its ``METHOD``."""
    return _in_folder("graphpress.passes.recover.methods", "METHOD")


def _in_folder(package: str, mark: str) -> dict[str, type[Any]]:
    return {m.__name__.rpartition(".")[2]: getattr(m, mark) for m in _modules(package) if hasattr(m, mark)}


@functools.cache
def _readers() -> dict[str, Callable[[str | Path], ir.Model]]:
    """What reads files of each ending: the ``load`` of each file in graphpress.frontends that has ``READS``."""
    known: dict[str, Any] = {}
    for module in _modules("graphpress.frontends"):
        for ending in getattr(module, "READS", ()):
            _put(known, ending, module.load)
    return known


def reader(path: str | Path) -> Callable[[str | Path], ir.Model]:
    """What reads a model file, by its ending; one that nothing claims is taken for ONNX."""
    known = _readers()
    return known.get(Path(path).suffix.lower(), known[".onnx"])
