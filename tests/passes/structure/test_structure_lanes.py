"""Lanes through reshapes whose sizes are open: whatever those are, numpy's reshape says the same."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.passes.structure.channels.lanes import reshape, told_apart

ATOMS = st.lists(st.sampled_from(["n", "t", 2, 3, 4]), min_size=2, max_size=5)


def grouped(atoms: list[object], cuts: set[int]) -> list[list[object]]:
    """The atoms in runs, a new one behind each cut."""
    ends = [*sorted(c for c in cuts if c < len(atoms)), len(atoms)]
    return [atoms[a:b] for a, b in itertools.pairwise([0, *ends]) if a < b]


def dim(run: list[object], known: bool) -> object:
    """A run as a dimension: a number, names and numbers as a product, or None."""
    if all(isinstance(f, int) for f in run):
        return math.prod(run)
    return "*".join(map(str, run)) if known else None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(ATOMS, st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4)), st.booleans(), st.booleans(), st.integers(0, 4))
def test_open_sizes_never_matter(atoms, before_cuts, after_cuts, before_known, after_known, at) -> None:
    runs, made = grouped(atoms, before_cuts), grouped(atoms, after_cuts)
    before, after = [dim(r, before_known) for r in runs], [dim(r, after_known) for r in made]
    axis = at % len(before)
    assume(isinstance(before[axis], int))
    lanes = np.arange(before[axis]).reshape([-1 if a == axis else 1 for a in range(len(before))])
    found = reshape(lanes, before, after)
    if all(isinstance(d, int) for d in (*before, *after)):
        assert found is not None
    if found is None:
        return
    for n, t in itertools.product((1, 2, 5), (1, 3, 4)):
        sizes = {"n": n, "t": t}
        old, new = ([math.prod(sizes.get(f, f) for f in run) for run in group] for group in (runs, made))
        np.testing.assert_array_equal(
            np.broadcast_to(found, new), np.broadcast_to(lanes, old).reshape(new), err_msg=f"{before} -> {after}"
        )


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=12), st.integers(1, 3))
def test_what_is_told_apart_is_the_same_again_modulo_the_period(flat: list[int], extent: int) -> None:
    lanes = np.array(flat)
    apart, period = told_apart(lanes, extent), extent * (max(0, *flat) // extent + 1)
    np.testing.assert_array_equal(np.where(apart < 0, apart, apart % period), lanes)
    assert len(set(apart[apart >= 0].tolist())) == (apart >= 0).sum()
