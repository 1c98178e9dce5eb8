"""move-qdq: Before and Expected, random graphs bit for bit, and the minimum by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpress.context import Context
from graphpress.passes.fold.cancel_qdq import CancelQdq
from graphpress.passes.fold.conversions import conversions
from graphpress.passes.fold.min_cut import Network
from graphpress.passes.fold.move_qdq import MoveQdq
from graphpress.target import Target
from tests.kit import apply, assert_same_outputs, assert_same_structure, ops, parse, random_feeds, run, show

# --- the cut


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 3)), max_size=14))
def test_the_cut_is_minimal_and_its_sink_side_the_smallest(arcs: list[tuple[int, int, int]]) -> None:
    network = Network(0, 5)
    for tail, head, capacity in arcs:
        network.arc(tail, head, capacity)
    sides = [{5, *extra} for n in range(5) for extra in itertools.combinations(range(1, 5), n)]
    cost = {frozenset(s): sum(c for a, b, c in arcs if a not in s and b in s) for s in sides}
    best = min(cost.values())
    found = frozenset(network.sink_side()) & frozenset(range(6))
    assert cost[found] == best
    assert all(found <= s for s, c in cost.items() if c == best)


def test_what_cannot_be_cut_is_an_error() -> None:
    network = Network("s", "t")
    network.arc("s", "a")
    network.arc("a", "t")
    with pytest.raises(ValueError, match="no cut"):
        network.sink_side()


# --- Before and Expected

GRID = "float s = {0.02}, uint8 z = {128}"


def test_q_goes_up_and_dq_down_until_they_meet() -> None:
    before = f"""
g (float[1,3,4,4] x) => (float[1,12] y)
<{GRID}, int64[2] shape = {{1, 12}}>
{{
    r = Relu(x)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    q = QuantizeLinear(p, s, z)
    d = DequantizeLinear(q, s, z)
    y = Reshape(d, shape)
}}
"""
    expected = f"""
g (float[1,3,4,4] x) => (float[1,12] y)
<{GRID}, int64[2] shape = {{1, 12}}, uint8 zero = {{128}}>
{{
    q = QuantizeLinear(x, s, z)
    r = Clip(q, zero)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    i = Reshape(p, shape)
    y = DequantizeLinear(i, s, z)
}}
"""
    model = parse(before)
    after, [report] = apply(model, MoveQdq())
    assert_same_structure(after, parse(expected))
    assert_same_outputs(model, after)
    assert report.metrics == {"conversions before": 2, "conversions after": 2}
    assert [n.name for n in after.graph][1:4] == ["Relu_0", "MaxPool_1", "Reshape_4"]


BRANCHES = f"""
g (float[2,8] x) => (float[2,4] a, float[2,4] b)
<{GRID}>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    l, r = Split<axis = 1, num_outputs = 2>(d)
    a = Neg(l)
    b = Neg(r)
}}
"""


def test_one_dq_before_a_split_is_better_than_two_behind() -> None:
    after, [report] = apply(parse(BRANCHES), MoveQdq())
    assert report.changed == 0
    quantized = BRANCHES.replace("b = Neg(r)", "p = QuantizeLinear(r, s, z)  b = DequantizeLinear(p, s, z)")
    after, [report] = apply(parse(quantized), MoveQdq())
    assert report.changed == 1 and report.metrics == {"conversions before": 4, "conversions after": 3}
    assert_same_outputs(parse(quantized), after)


def test_a_convolution_before_a_pool_gets_its_integer_kernel() -> None:
    before = parse(f"""
g (float[1,1,4,4] x) => (float[1,2,2,2] y)
<{GRID}, int8[2,1,1,1] w = {{100, -70}}, float[2] t = {{0.01, 0.02}}, int8[2] u = {{0, 0}}>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear<axis = 0>(w, t, u)
    c = Conv(d, k)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
    e = QuantizeLinear(p, s, z)
    y = DequantizeLinear(e, s, z)
}}
""")
    after, [report] = apply(before, MoveQdq())
    assert ops(after)[3:] == ["Conv", "QuantizeLinear", "MaxPool", "DequantizeLinear"]
    assert report.metrics == {"conversions before": 4, "conversions after": 2}
    assert_same_outputs(before, after)


def test_a_concat_of_several_grids_keeps_its_kernel_and_the_reshape_goes_behind_it() -> None:
    text = f"""
g (float[2,4] x) => (float[16] y)
<{GRID}, float t = {{0.03}}, uint8 u = {{100}}, int64[1] shape = {{16}}>
{{
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    p = QuantizeLinear(x, t, u)  e = DequantizeLinear(p, t, u)
    c = Concat<axis = 0>(d, e)
    r = Reshape(c, shape)
    o = QuantizeLinear(r, t, u)  y = DequantizeLinear(o, t, u)
}}
"""
    before = parse(text)
    after, [report] = apply(before, MoveQdq())
    assert ops(after)[4:] == ["Concat", "QuantizeLinear", "Reshape", "DequantizeLinear"]
    assert report.metrics == {"conversions before": 6, "conversions after": 3}
    assert_same_outputs(before, after)
    equal = parse(text.replace("s, z)", "t, u)"))
    after, _ = apply(equal, MoveQdq(), CancelQdq())
    assert ops(after) == ["QuantizeLinear", "Concat", "Reshape", "DequantizeLinear"]
    assert_same_outputs(equal, after)


def test_values_cross_into_branches_and_public_names_stay() -> None:
    before = parse(f"""
g (bool c, float[2,4] x) => (float[4,2] t, float[4,2] y)
<{GRID}>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    t = Transpose(d)
    y = If (c) <
        then_branch = a () => (float[4,2] v) {{
            f = Transpose(d)  p = QuantizeLinear(f, s, z)  v = DequantizeLinear(p, s, z)
        }},
        else_branch = b () => (float[4,2] w) {{ o = QuantizeLinear(t, s, z)  w = DequantizeLinear(o, s, z) }}
    >
}}
""")
    after, [report] = apply(before, MoveQdq(), CancelQdq())[0], apply(before, MoveQdq())[1]
    assert report.changed == 2
    assert ops(after).count("QuantizeLinear") == 1
    for c in (True, False):
        feeds = random_feeds(before) | {"c": np.array(c)}
        assert_same_outputs(before, after, feeds)


def test_below_opset_13_nothing_moves() -> None:
    text = f'<ir_version: 7, opset_import: ["" : 12]> g (float[2,2] x) => (float[2,2] y) <{GRID}>'
    body = "{ t = Transpose(x)  q = QuantizeLinear(t, s, z)  y = DequantizeLinear(q, s, z) }"
    assert apply(parse(text + body), MoveQdq())[1][0].changed == 0


# --- random graphs

EXAMPLES = settings.default.max_examples  # of the profile: few where `make mutants` asks

GRIDS = {"g": (0.02, 128), "h": (0.05, 100)}
UNARY = [
    "Transpose<perm = [0, 1, 3, 2]>({0})",
    "Relu({0})",
    "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({0})",
    "Clip({0}, lo, hi)",
    "Reshape({0}, shape)",
]


@dataclass
class Drawn:
    """A random graph on values [1, 2, 4, 4], as a list that a brute force can read.

    Each value: how it is made ("g" from a DQ on that grid, "float", or "move" with op and inputs); who reads it beside
    moves: a set of "g", "h" (a Q on that grid, its integers public) and "float" (public as floats).
    """

    makers: list[tuple[str, str, list[int]]] = field(default_factory=list)
    sinks: list[set[str]] = field(default_factory=list)

    def model(self) -> ir.Model:
        body, outputs = [], []
        for i, (kind, op, inputs) in enumerate(self.makers):
            if kind == "move":
                body.append(f"v{i} = {op.format(*(f'v{j}' for j in inputs))}")
            else:
                body.append(f"n{i} = Mul(x, c{i})")
                quantized = (
                    f"q{i} = QuantizeLinear(n{i}, {kind}s, {kind}z)  v{i} = DequantizeLinear(q{i}, {kind}s, {kind}z)"
                )
                body.append(f"v{i} = Neg(n{i})" if kind == "float" else quantized)
            for sink in sorted(self.sinks[i]):
                outputs.append(f"{'float' if sink == 'float' else 'uint8'}[?] o{i}{sink}")
                body.append(
                    f"o{i}{sink} = " + (f"Neg(v{i})" if sink == "float" else f"QuantizeLinear(v{i}, {sink}s, {sink}z)")
                )
        constants = [f"float {k}s = {{{s}}}, uint8 {k}z = {{{z}}}" for k, (s, z) in GRIDS.items()]
        constants += [f"float c{i} = {{{1 + i % 3}}}" for i, m in enumerate(self.makers) if m[0] != "move"]
        constants += ["float lo = {-0.31}, float hi = {1.3}", "int64[4] shape = {1, 4, 2, -1}"]
        text = f"g (float[1,2,4,4] x) => ({', '.join(outputs)}) <{', '.join(constants)}> {{ {'  '.join(body)} }}"
        model = parse(text)
        for out in model.graph.outputs:
            out.shape = None
        return model


@st.composite
def graphs(draw: st.DrawFn, grids: tuple[str, ...] = ("g", "h")) -> Drawn:
    drawn = Drawn()
    for _ in range(draw(st.integers(1, 2))):
        drawn.makers.append((draw(st.sampled_from([*grids, "float"])), "", []))
    for _ in range(draw(st.integers(1, 5))):
        known = st.integers(0, len(drawn.makers) - 1)
        concat = draw(st.integers(0, 4)) == 0
        op = "Concat<axis = 0>({0}, {1})" if concat else draw(st.sampled_from(UNARY))
        drawn.makers.append(("move", op, [draw(known)] * 2 if concat else [draw(known)]))
    read = {j for m in drawn.makers for j in m[2]}
    for i in range(len(drawn.makers)):
        sinks = draw(st.sets(st.sampled_from(["float", *grids]), max_size=2))
        drawn.sinks.append(sinks or ({"float"} if i not in read else set()))
    assume(any(kind in GRIDS for kind, _, _ in drawn.makers) or any(sinks - {"float"} for sinks in drawn.sinks))
    return drawn


@settings(max_examples=EXAMPLES * 4 // 5)
@given(graphs())
def test_random_graphs_mean_the_same_bit_for_bit(drawn: Drawn) -> None:
    before = drawn.model()
    after, _ = apply(before, MoveQdq(), CancelQdq())
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 2, 4, 4), scale=2).astype(np.float32)}
    assert_same_outputs(before, after, feeds)
    again, _ = apply(after, MoveQdq(), CancelQdq())
    assert len(conversions(again)) == len(conversions(after))
    fast = run(after, feeds, optimize=True)
    for name, exact in run(before, feeds).items():
        step = max(s for s, _ in GRIDS.values()) if exact.dtype == np.float32 else 1
        assert np.abs(exact.astype(np.float64) - fast[name]).max() <= step * 1.001


def _labels(drawn: Drawn) -> Iterator[dict[int, str]]:
    """Every choice of float or a grid for the moves under which no number can change."""
    moves = [i for i, m in enumerate(drawn.makers) if m[0] == "move"]
    on: dict[int, str | None] = {}
    for i, (kind, op, inputs) in enumerate(drawn.makers):
        grids = {on[j] for j in inputs}
        on[i] = grids.pop() if kind == "move" and len(grids) == 1 and "Clip" not in op else None
        on[i] = kind if kind in GRIDS else on[i]
    for choice in itertools.product(["float", *GRIDS], repeat=len(moves)):
        label = dict(zip(moves, choice, strict=True))
        if all(k == "float" or on[i] == k or _only_read_on(drawn, i, k, label) for i, k in label.items()):
            yield label


def _only_read_on(drawn: Drawn, i: int, grid: str, label: dict[int, str]) -> bool:
    readers = [j for j in label if i in drawn.makers[j][2]]
    return drawn.sinks[i] <= {grid} and all(label[j] == grid for j in readers)


def _cost(drawn: Drawn, label: dict[int, str]) -> int:
    """Conversions: each form of each value (float, or on a grid) that somebody reads and that it is not made in."""
    cost = sum(kind in GRIDS for kind, _, _ in drawn.makers)  # the Q that makes a source
    for i, (kind, _, _) in enumerate(drawn.makers):
        made = label.get(i, kind)
        read = drawn.sinks[i] | {label[j] for j in label if i in drawn.makers[j][2]}
        needed = read - {made}
        if made != "float" and needed:
            needed |= {"float"}  # another grid is reached by way of floats
        cost += len(needed)
    return cost


@settings(max_examples=EXAMPLES * 3 // 2)
@given(graphs())
def test_the_conversions_are_the_fewest(drawn: Drawn) -> None:
    least = min(_cost(drawn, label) for label in _labels(drawn))
    no_kernels = Context(
        target=Target(name="none", runtime="", provider="", activation_dtype="uint8", isa="", capabilities=())
    )
    after, _ = apply(drawn.model(), MoveQdq(), CancelQdq(), ctx=no_kernels)
    assert len(conversions(after, {})) == least, show(after)
