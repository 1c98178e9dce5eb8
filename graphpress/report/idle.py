"""Whether a recipe did what it is for: which of its passes changed nothing, and why; and whether the file grew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from graphpress.contracts import PassReport, Skip
from graphpress.recipe import Recipe

_NOTHING = "there is nothing that it applies to"


def grown(size: Mapping[str, int]) -> list[Skip]:
    """A warning where the file is larger than it was: scales and nodes weigh more than a small model saves."""
    before, after = size.get("file_before", 0), size.get("file_after", 0)
    if not 0 < before < after:
        return []
    return [Skip("file size", f"the file is larger than before: {before:,} -> {after:,} bytes")]


def purpose(recipe: Recipe) -> set[str]:
    """Names of the passes that a recipe is for: what it has beside ``clean`` and ``fold``, or all where that is all."""
    names = {p.name for p in recipe.passes}
    return (names - _frame()) or names


def _frame() -> set[str]:
    return {p.name for shipped in ("clean", "fold") for p in Recipe.load(shipped).passes} | {
        "widen-half",
        "equalize-columns",
    }


def main_reason(passes: Iterable[PassReport]) -> str:
    """The most frequent reason of their skips, "" where there is none."""
    counts = Counter(s.why for p in passes for s in p.skips)
    return counts.most_common(1)[0][0] if counts else ""


def idle(recipe: Recipe, passes: Sequence[PassReport]) -> list[Skip]:
    """One line where the recipe changed nothing of what it is for, else one for each of its passes that did not.

    Of recipes that only tidy up or fold most passes find nothing, and nobody misses it.
    """
    wanted = purpose(recipe)
    mine = [p for p in passes if p.name in wanted and not p.handed]  # what only hands data on has done its part
    still = [p for p in mine if not p.changed]
    if still and len(still) == len(mine):
        return [Skip(f"recipe {recipe.name!r}", f"it changed nothing: {main_reason(mine) or _NOTHING}")]
    telling = wanted - _frame()
    return [Skip(p.name, f"it changed nothing: {main_reason([p]) or _NOTHING}") for p in still if p.name in telling]
