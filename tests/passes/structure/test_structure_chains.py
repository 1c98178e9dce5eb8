"""Random chains of operators between two layers: what the engine lets through leaves the numbers as they were.

Sizes are known or open; the reference implementation of ONNX runs both models in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.passes.structure.channels.commuting import survey
from graphpress.passes.structure.channels.follow import follow
from tests.passes.rotating import weighted
from tests.passes.structure import rule_cases as cases
from tests.passes.structure.rule_cases import ANY, PERMUTE, ROTATE, SCALE, SIGN, SLICE, Sizes, ints

EXACT = 1e-9  # of the largest output, in float64
EXAMPLES = 4
WEIGHTS = {"w": "6 {C}", "v": "{C} 5", "b": "{C}", "g": "{C}"}


def block(text: str) -> Callable[[int], str]:
    """Text from {h} to {k}; names that begin with _ are its own: _w is a weight, the others are values or ``LISTS``."""

    def made(step: int) -> str:
        return text.replace("_", f"m{step}").replace("%", "_").format(h=f"k{step}", k=f"k{step + 1}")

    return made


BLOCKS = {
    "heads": block("_r = Reshape ({h}, _n) _t = Transpose <perm = [0, 2, 1, 3]> (_r) "
                   "_x = Transpose <perm = [0, 2, 1, 3]> (_t) {k} = Reshape (_x, _z)"),
    "interleaved": block("_r = Reshape ({h}, _n) _t = Transpose <perm = [0, 1, 3, 2]> (_r) {k} = Reshape (_t, _z)"),
    "halves swapped": block("_l, _r = Split <axis = -1, num%outputs = 2> ({h}) {k} = Concat <axis = -1> (_r, _l)"),
    "channels picked": block("{k} = Gather <axis = 2> ({h}, _p)"),
    "tokens beside": block("_t = Neg ({h}) {k} = Concat <axis = 1> ({h}, _t)"),
    "tokens picked": block("{k} = Gather <axis = 1> ({h}, _q)"),
    "one token": block("_t = Gather <axis = 1> ({h}, _0) {k} = Unsqueeze (_t, _1)"),
    "tokens cut": block("{k} = Slice ({h}, _1, _e, _1)"),
    "tokens padded": block("{k} = Pad ({h}, _d)"),
    "channels cut and padded": block("_t = Slice ({h}, _1, _e, _2) {k} = Pad (_t, _y)"),
    "copies": block("_t = Unsqueeze ({h}, _1) _s = Expand (_t, _c) {k} = ReduceMean <keepdims = 0> (_s, _1)"),
    "flat": block("_t = Flatten <axis = 2> ({h}) {k} = Unsqueeze (_t, _o)"),
    "a bias": block("{k} = Add ({h}, b)"),
    "a gain": block("{k} = Mul ({h}, g)"),
    "a bend": block("{k} = Relu ({h})"),
    "a curve": block("{k} = Tanh ({h})"),
    "a norm": block("{k} = LayerNormalization <axis = -1> ({h}, g, b)"),
    "a layer": block("{k} = MatMul ({h}, _w)"),
    "shares": block("{k} = Softmax ({h})"),
    "a branch": block("_t = MatMul ({h}, _w) {k} = Add ({h}, _t)"),
}  # fmt: skip
LISTS = {
    "n": "0, 0, {H}, {D}", "z": "0, 0, {C}", "p": "{PICK}", "q": "-1, 0, -1", "1": "1", "2": "2", "e": "100", "o": "0",
    "d": "0, 1, 0, 0, 0, 0", "y": "0, 0, 1, 0, 0, 0", "c": "1, 2, 1, 1",
}  # fmt: skip


CUTS = {"halves swapped", "channels picked", "channels cut and padded", "interleaved"}
BENT = {"a gain", "a bend", "a curve", "a norm", "shares"}


def chain(names: list[str], s: Sizes, open_: bool) -> ir.Model:
    """x -> layer -> the blocks -> layer y."""
    text = "k0 = MatMul (x, w) "
    for step, name in enumerate(names):
        body = BLOCKS[name](step)
        of_step = {n: v.format(H=s.h, D=s.d, C=s.c, PICK=", ".join(map(str, [*range(1, s.c), 0])))
                   for n, v in LISTS.items() if f"m{step}{n})" in body or f"m{step}{n}," in body}  # fmt: skip
        made = [ints(f"m{step}{n}", *map(int, v.split(","))) for n, v in of_step.items()]
        one = f"m{step}0 = Constant <value_int = 0> () " if f"m{step}0)" in body else ""
        text += "".join(made) + one + body + " "
    text += f"y = MatMul (k{len(names)}, v)"
    sizes = {n: tuple(int(z) for z in shape.format(C=s.c).split()) for n, shape in WEIGHTS.items()}
    sizes |= {f"m{step}w": (s.c, s.c) for step in range(len(names))}
    used = {n: z for n, z in sizes.items() if f" {n})" in text or f" {n}," in text}
    tokens = "B, S" if open_ else f"{s.b}, {s.t}"
    return weighted(text, used, f"float[{tokens}, 6] x")


def assert_exact(model: ir.Model, move: object, sizes: Sizes, seed: int) -> None:
    before, after = cases.moved(model, move, seed)
    feeds = {"x": np.random.default_rng(5).normal(size=(sizes.b, sizes.t, 6))}
    wanted, got = (cases.outputs(m, feeds) for m in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT * np.abs(wanted).max())


@pytest.mark.parametrize("open_", [False, True], ids=["known sizes", "open sizes"])
@pytest.mark.parametrize("name", BLOCKS)
def test_each_alone_is_exact_or_refused(name: str, open_: bool) -> None:
    sizes = Sizes(2, 6, 2, 4)
    for move in ANY:
        model = chain([name], sizes, open_)
        if cases.why_not(model, move) == "":
            assert_exact(model, move, sizes, seed=1)
        else:
            assert name in CUTS | BENT | {"heads", "copies"}  # what has a number for each channel, or counts them


@pytest.mark.parametrize("move", ANY, ids=lambda m: m.name)
def test_what_passes_a_chain_changes_no_number(move: object) -> None:
    passed: list[bool] = []

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
    @given(
        names=st.lists(st.sampled_from(LIKELY[move]), min_size=1, max_size=4),
        sizes=st.builds(Sizes, st.integers(1, 2), st.sampled_from([6, 8]), st.integers(2, 3), st.sampled_from([2, 4])),
        open_=st.booleans(),
        seed=st.integers(0, 99),
    )
    def check(names: list[str], sizes: Sizes, open_: bool, seed: int) -> None:
        model = chain(names, sizes, open_)
        passed.append(cases.why_not(model, move) == "")
        if passed[-1]:
            assert_exact(model, move, sizes, seed)

    check()
    assert sum(passed) >= len(passed) // 3  # or nothing would be shown


LIKELY = {
    PERMUTE: [*BLOCKS],
    SLICE: [n for n in BLOCKS if n not in CUTS | {"heads", "a norm", "shares", "copies"}],
    SCALE: [n for n in BLOCKS if n not in {"a curve", "shares"}],
    SIGN: [n for n in BLOCKS if n not in {"a curve", "shares", "a bend"}],
    ROTATE: [n for n in BLOCKS if n not in CUTS | BENT],
}


@pytest.mark.parametrize(("start", "fine"), [(0, True), (2, False), (4, True)])
def test_two_runs_of_one_number_are_not_cut_across(start: int, fine: bool) -> None:
    """Channels 2, 3 of the one and 0, 1 of the other turn alike, but make no run."""
    body = "l, r = Split <axis = 2, num_outputs = 2> (x) t = Add (l, r) z = MatMul (t, w) k = Slice (x, s, e, a)"
    text = f"{ints('s', start)} {ints('e', start + 4)} {ints('a', 2)} {body} y = MatMul (k, w)"
    graph = weighted(text, {"w": (4, 2)}, "float[1, 3, 8] x").graph
    (x,), k = graph.inputs, next(n for n in graph if n.op_type == "Slice").outputs[0]
    carried = follow(survey(graph, ROTATE, start=x), x, extent=4)
    blocks = [b for b in carried.blocks if "cut off" in b.why]
    assert [b.where for b in blocks] == ([] if fine else [k.producer().name])
    assert not fine or carried.members[k].ravel().tolist() == [0, 1, 2, 3]


COUNTS = {
    "k, l = Split <axis = 2, num_outputs = 2> (x)": True,
    "k = Slice (x, one, end, two)": True,
    "k = Gather <axis = 2> (x, all)": True,
    "k = Pad (x, pads)": True,
    "k = Slice (x, one, end, one)": False,
    "k = Gather <axis = 1> (x, one)": False,
}


@pytest.mark.parametrize("body", COUNTS)
def test_what_counts_channels_lets_none_be_left_out(body: str) -> None:
    lists = {"one": (1,), "two": (2,), "end": (100,), "all": (0, 1, 2, 3), "pads": (0, 0, 0, 0, 0, 1)}
    text = "".join(ints(n, *v) for n, v in lists.items() if f" {n}," in body or f" {n})" in body)
    model = weighted(f"{text} {body} z = Relu (k) y = MatMul (z, w)", {"w": (2, 2)}, "float[1, 3, 4] x")
    node = next(n for n in model.graph if n.domain == "" and n.op_type in body)
    found = survey(model.graph, SLICE, start=model.graph.inputs[0])
    held = [e.lanes for e in found.events if e.why and not e.free]
    assert (node in found.refused) == bool(held) == COUNTS[body]


@pytest.mark.parametrize("tokens", ["3", "S"])
@pytest.mark.parametrize("pick", ["Gather <axis = 1> (x, i)", "Slice (x, i, e, i)", "Slice (x, c, e, i)"])
def test_places_of_another_axis_hold_the_same_channels(tokens: str, pick: str) -> None:
    """At a constant place, at one that is computed, of a known and of an open size."""
    text = f"{ints('i', 1)} {ints('e', 9999)} n = Shape <end = 1> (x) c = Identity (n) k = {pick} y = MatMul (k, w)"
    graph = weighted(text, {"w": (4, 2)}, f"float[1, {tokens}, 4] x").graph
    found = survey(graph, SCALE, start=graph.inputs[0])
    k = next(n for n in graph if n.op_type in pick).outputs[0]
    np.testing.assert_array_equal(found.lanes[k], found.lanes[graph.inputs[0]])
