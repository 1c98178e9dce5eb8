"""Recipes: a pipeline as YAML or JSON, and the short text form of the command line.

::

    name: w8a8
    summary: Static 8-bit weights and activations.
    passes:
      - recipe: clean
      - quantize: {mode: static, observer: mse}
      - recipe: fold
    gate: {min_sqnr: 15}
    data: {path: photos, images: {mean: 0.5, std: 0.5}}

or a change to another one::

    base: w8a8
    passes:
      quantize: {observer: percentile}
    gate: {min_sqnr: 20}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from graphpress import borrowed, catalog, shipped
from graphpress.contracts import Pass
from graphpress.errors import RecipeError, nearest
from graphpress.job.bars import Gate
from graphpress.observe.sources import said
from graphpress.observe.sources.source import Source
from graphpress.typed import typed

_KEYS = ("name", "summary", "base", "passes", "gate", "data")
MAX_BYTES = 1 << 20  # a recipe is a page of text


@dataclass(frozen=True)
class Recipe:
    """Passes in order, the accuracy gate at the end, and samples to use where none are given (``said.samples``)."""

    name: str
    passes: tuple[Pass, ...]
    summary: str = ""
    gate: Gate = field(default_factory=Gate)
    data: str | Source | None = None

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe | Sequence[borrowed.Step]) -> Recipe:
        """A recipe by shipped name, file (YAML or JSON), mapping, or list of passes, ours or borrowed.

        Raises:
            RecipeError: Unknown recipe, key, pass or option, or a value of the wrong type.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return _from_mapping(source, "recipe")
        if isinstance(source, str | Path):
            return _from_source(source)
        return cls("custom", tuple(borrowed.as_pass(item) for item in source))

    def set(self, assignments: Sequence[str]) -> Recipe:
        """This recipe with options changed: ``quantize.observer=mse`` or ``gate.min_sqnr=12``."""
        data = self.to_json()
        for text in assignments:
            key, eq, value = text.partition("=")
            owner, dot, option = key.rpartition(".")
            if not (eq and dot):
                raise RecipeError(f"{text!r} is not PASS.OPTION=VALUE", where="--set")
            for slot in [data["gate"]] if owner == "gate" else self._slots(data, owner, f"recipe {self.name!r}"):
                slot[option] = _yaml(value, f"--set {key}")
        return _from_mapping(data, f"recipe {self.name!r}")

    def changed(self, options: Mapping[str, Any], where: str) -> tuple[Pass, ...]:
        """The passes with options changed: those of each pass by its name.

        Raises:
            RecipeError: No such pass in it, or no such option, or a value of the wrong type.
        """
        data = self.to_json()
        for owner, own in options.items():
            if not isinstance(own, Mapping):
                raise RecipeError(f"{owner!r} must have a mapping of options", where=where)
            for slot in self._slots(data, str(owner), where):
                slot |= own
        return tuple(p for item in data["passes"] for p in _from_item(item, where))

    def _slots(self, data: Mapping[str, Any], owner: str, where: str) -> list[dict[str, Any]]:
        """The options, in ``data``, of the passes of a name."""
        named = [(p.name, *item) for p, (item,) in zip(self.passes, (d.items() for d in data["passes"]), strict=True)]
        slots = [given for *names, given in named if owner in names]
        if not slots:
            fix = nearest(owner, [p.name for p in self.passes])
            raise RecipeError(f"no pass {owner!r} in it", where=where, fix=fix)
        return slots

    def to_json(self) -> dict[str, Any]:
        """Fully resolved: every option with its value."""
        return {
            "name": self.name,
            "summary": self.summary,
            "passes": [{borrowed.known_as(p): _plain(p.options())} for p in self.passes],
            "gate": dataclasses.asdict(self.gate),
        } | ({} if self.data is None else {"data": said.to_json(self.data)})

    def dump(self) -> str:
        """The YAML of ``to_json``; loading it gives an equal recipe."""
        return yaml.safe_dump(self.to_json(), sort_keys=False)


def parse_passes(text: str) -> tuple[Pass, ...]:
    """The short form ``pass{option=value,option=value},pass``; values are YAML.

    Raises:
        RecipeError: Unbalanced brackets, unknown pass or option, or a value of the wrong type.
    """
    made = []
    for item in _split(text):
        name, brace, rest = item.partition("{")
        if brace and not rest.endswith("}"):
            raise RecipeError("the brace is not closed", where=f"pass {item!r}")
        options = parse_options(rest[:-1], f"pass {name!r}") if brace else {}
        made.append(make_pass(name.strip(), options))
    if not made:
        raise RecipeError("names no pass", where=f"passes {text!r}", fix="`graphpress passes` lists them.")
    return tuple(made)


def parse_options(text: str, where: str) -> dict[str, Any]:
    """The short form ``option=value,option=value``; values are YAML.

    Raises:
        RecipeError: Unbalanced brackets, or something else between the commas.
    """
    options = {}
    for pair in _split(text):
        key, eq, value = pair.partition("=")
        if not eq:
            raise RecipeError(f"{pair!r} is not option=value", where=where)
        options[key.strip()] = _yaml(value, f"{where}, option {key.strip()!r}")
    return options


def make_pass(name: str, options: Mapping[str, Any], where: str = "") -> Pass:
    """A pass of the catalog by name, or one of a user's own as ``module:Class``, with these options, types checked.

    Raises:
        RecipeError: No such pass or option (nearest name given), or a value of the wrong type.
    """
    known = catalog.pass_named(name)
    place = f"{where}: pass {name!r}" if where else f"pass {name!r}"
    if known is None and ":" not in name:
        raise RecipeError("there is no such pass", where=place, fix=nearest(name, catalog.passes()))
    cls = known or borrowed.made(name, options, place)
    if isinstance(cls, Pass):
        return cls
    made: Pass = typed(cls, options, place, RecipeError)
    return made


def _from_source(source: str | Path, above: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file; ``above`` are those whose base it is."""
    text, where = _read(source)
    known = where if str(source) in shipped.recipes() else str(Path(source).resolve())
    if known in above:
        raise RecipeError("its bases go in a circle", where=where, fix="Name a shipped recipe as base.")
    return _from_mapping(_yaml(text, where), where, (*above, known))


def _from_mapping(data: Any, where: str, above: Sequence[str] = ()) -> Recipe:
    if not isinstance(data, Mapping):
        raise RecipeError("a recipe is a mapping with name, passes and gate", where=where)
    for key in data:
        if key not in _KEYS:
            raise RecipeError(f"unknown key {key!r}", where=where, fix=nearest(str(key), _KEYS))
    base = _base(data["base"], where, above) if data.get("base") is not None else None
    gate_fields = [f.name for f in dataclasses.fields(Gate)]
    gate = data.get("gate") or {}
    if not isinstance(gate, Mapping) or (unknown := [k for k in gate if k not in gate_fields]):
        bad = unknown[0] if isinstance(gate, Mapping) else "gate"
        raise RecipeError(f"the gate has no option {bad!r}", where=where, fix=nearest(str(bad), gate_fields))
    samples = said.from_json(data.get("data"), f"{where}: data")
    return Recipe(
        str(data.get("name", f"{base.name}, changed" if base else "custom")),
        _passes(data.get("passes"), base, where),
        str(data.get("summary", base.summary if base else "")),
        typed(Gate, {**(dataclasses.asdict(base.gate) if base else {}), **gate}, f"{where}: gate", RecipeError),
        base.data if samples is None and base else samples,
    )


def _base(name: Any, where: str, above: Sequence[str]) -> Recipe:
    """The recipe that another changes: shipped, or a file from the folder of that one."""
    if not isinstance(name, str):
        raise RecipeError(f"base is {name!r}, no name or file of a recipe", where=where)
    beside = Path(above[-1]).parent / name if above else Path(name)
    return _from_source(beside if name not in shipped.recipes() and beside.is_file() else name, above)


def _passes(told: Any, base: Recipe | None, where: str) -> tuple[Pass, ...]:
    """Those of a list, or those of the base with options changed."""
    if base is not None:
        if told is not None and not isinstance(told, Mapping):
            what = "with a base, 'passes' is a mapping: pass -> options to change"
            raise RecipeError(what, where=where, fix="To have other passes, leave base out.")
        return base.changed(told, where) if told else base.passes
    if not isinstance(told, Sequence) or isinstance(told, str) or not told:
        raise RecipeError("'passes' must be a list of at least one pass", where=where)
    return tuple(p for item in told for p in _from_item(item, where))


def _from_item(item: Any, where: str) -> tuple[Pass, ...]:
    """The pass of one item, or all those of the shipped recipe that it names."""
    if isinstance(item, str):
        return (make_pass(item, {}, where),)
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        if name == "recipe":
            return _included(str(options), where)
        if options is None or isinstance(options, Mapping):
            return (make_pass(str(name), options or {}, where),)
    raise RecipeError(f"{item!r} is neither a pass name nor 'name: {{option: value}}'", where=where)


def _included(name: str, where: str) -> tuple[Pass, ...]:
    """Shipped recipes include others, but only shipped ones: a file stands for itself and cannot include itself."""
    known = shipped.recipes()
    if name not in known:
        raise RecipeError(f"includes {name!r}, which is no shipped recipe", where=where, fix=nearest(name, known))
    return Recipe.load(name).passes


def _read(source: str | Path) -> tuple[str, str]:
    known = shipped.recipes()
    if str(source) in known:
        return known[str(source)], f"recipe {str(source)!r}"
    path = Path(source)
    if not path.is_file():
        raise RecipeError(
            "there is no such recipe or file", where=f"recipe {str(source)!r}", fix=nearest(str(source), known)
        )
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError("larger than 1 MiB: not a recipe", where=str(path))
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as e:
        raise RecipeError("not a text file", where=str(path), fix="A recipe is YAML or JSON.") from e


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise RecipeError(f"not valid YAML: {' '.join(str(e).split())}", where=where) from e


def _split(text: str) -> list[str]:
    """Cut at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in "}])")
        if depth < 0:
            raise RecipeError("a bracket is closed that was not opened", where=f"passes {text!r}")
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth:
        raise RecipeError("a bracket is not closed", where=f"passes {text!r}")
    return [p.strip() for p in (*parts, text[start:]) if p.strip()]


def _plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, enums and paths as text."""
    if hasattr(value, "to_json"):  # first: a Plan is a mapping, and more
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | type(None)) else str(value)
