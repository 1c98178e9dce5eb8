"""If, Loop and Scan against ONNX Runtime; traced, with gradients, nested, and with what they capture."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphpress.backends import fx
from graphpress.errors import Unsupported
from tests import kit
from tests.backends.fx.single import normal


def same_as_ort(source: str | ir.Model, **feeds: Any) -> dict[str, np.ndarray]:
    """Run in torch; equal to ONNX Runtime within a rounding of float32."""
    model = kit.parse(source) if isinstance(source, str) else source
    given, expected = fx.execute(model)(feeds), kit.run(model, feeds)
    for name, y in expected.items():
        assert given[name].dtype == y.dtype
        assert given[name].shape == y.shape
        np.testing.assert_allclose(given[name], y, rtol=1e-6, atol=1e-6)
    return given


def eager(module: torch.nn.Module) -> Any:
    return torch.compile(module, fullgraph=True, dynamic=True, backend="eager")


# -- If ----------------------------------------------------------------------------------------------------------------

BRANCHES = """
g (float[N, 3] x, bool c) => (float[N, 3] y, float[3] z) <float[3] w = {1, 2, 3}, float half = {0.5}> {
    a = Relu(x)
    y, z = If (c) <
        then_branch = yes () => (float[N, 3] b, float[3] e) <float[3] own = {7, 8, 9}> {
            d = Mul(a, w)
            b = Mul(d, half)
            e = Add(own, w)
        },
        else_branch = no () => (float[N, 3] b, float[3] e) {
            b = Identity(a)
            e = Constant<value_floats = [4.0, 5.0, 6.0]>()
        }
    >
}
"""


@pytest.mark.parametrize("c", [True, False])
def test_branches_capture_values_and_weights_and_have_their_own(c: bool) -> None:
    same_as_ort(BRANCHES, x=normal(4, 3), c=np.array(c))


def test_a_branch_has_parameters_of_its_own_and_shares_those_around_it() -> None:
    module = fx.build(kit.parse(BRANCHES))
    names = dict(module.named_parameters())
    assert set(names) == {"w", "If_1_then_branch.own"}
    y, z = module(torch.ones(2, 3), torch.tensor(True))
    (y.sum() + z.sum()).backward()
    assert names["w"].grad is not None
    assert names["w"].grad.tolist() == [2.0, 2.0, 2.0]  # half of two rows, and once in z
    assert names["If_1_then_branch.own"].grad is not None


def test_a_condition_that_is_a_tensor_is_traced_as_torch_cond() -> None:
    module, x = fx.build(kit.parse(BRANCHES)), torch.randn(4, 3)
    compiled = eager(module)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(module, (x, torch.tensor(True)), dynamic_shapes=({0: batch}, None))
    assert any("cond" in str(n.target) for n in exported.graph.nodes)
    for c, n in ((True, 4), (False, 4), (False, 6)):
        given = torch.randn(n, 3), torch.tensor(c)
        for run in (compiled, exported.module()):
            for a, b in zip(run(*given), module(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_gradients_pass_through_a_traced_branch() -> None:
    module = fx.build(kit.parse(BRANCHES))
    x = torch.randn(4, 3, requires_grad=True)
    for c in (True, False):
        expected = torch.autograd.grad(module(x, torch.tensor(c))[0].square().sum(), x)[0]
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        given = torch.autograd.grad(compiled(x, torch.tensor(c))[0].square().sum(), x)[0]
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)


SIZES = """
g (float[N, 3] x) => (float[M, 3] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] wide = {3}> {
    s = Shape(x)
    n = Slice(s, zero, one)
    c = Greater(n, two)
    y = If (c) <
        then_branch = yes () => (float[M, 3] b) {
            to = Concat<axis = 0>(n, wide)
            e = ConstantOfShape(to)
            b = Sub(e, x)
        },
        else_branch = no () => (float[M, 3] b) { b = Concat<axis = 0>(x, x) }
    >
}
"""


def test_a_condition_on_sizes_branches_in_python_and_sizes_are_captured_as_numbers() -> None:
    for n in (2, 3):
        same_as_ort(SIZES, x=normal(n, 3))
    module = fx.build(kit.parse(SIZES))
    batch = torch.export.Dim("batch", min=3)
    exported = torch.export.export(module, (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    assert not any("cond" in str(n.target) for n in exported.graph.nodes)
    x = torch.randn(7, 3)
    torch.testing.assert_close(exported.module()(x), -x)
    compiled = eager(module)
    for n in (2, 5):
        torch.testing.assert_close(compiled(torch.ones(n, 3)), module(torch.ones(n, 3)))


NESTED = """
g (float[2] x, bool[1] c, bool d) => (float[2] y) <float[2] w = {1, 2}> {
    lambda = Neg(x)
    y = If (c) <
        then_branch = yes () => (float[2] b) {
            p = Add(x, lambda)
            b = If (d) <
                then_branch = yes_yes () => (float[2] e) { q = Mul(x, w)  e = Add(q, p) },
                else_branch = yes_no () => (float[2] e) { e = Sub(w, lambda) }
            >
        },
        else_branch = no () => (float[2] b) { b = Identity(w) }
    >
}
"""


def test_bodies_in_bodies_capture_from_any_depth() -> None:
    """Names that Python has for itself are no hindrance."""
    module = fx.build(kit.parse(NESTED))
    compiled = eager(module)
    for c in (True, False):
        for d in (True, False):
            feeds = {"x": normal(2), "c": np.array([c]), "d": np.array(d)}
            same_as_ort(NESTED, **feeds)
            given = [torch.from_numpy(f) for f in feeds.values()]
            torch.testing.assert_close(compiled(*given), module(*given), rtol=0, atol=0)


def test_names_that_differ_only_in_what_python_cannot_spell() -> None:
    source = """
    g (float[2] a, float[2] b, bool c) => (float[2] y) {
        p = Neg(a)
        q = Abs(b)
        y = If (c) < then_branch = yes () => (float[2] e) { e = Sub(p, q) },
                     else_branch = no () => (float[2] e) { e = Add(p, q) } >
    }"""
    model = kit.parse(source)
    for node, name in zip(model.graph, ("v.1", "v/1"), strict=False):
        node.outputs[0].name = name
    same_as_ort(model, a=normal(2), b=normal(2, seed=1), c=np.array(True))


# -- Loop --------------------------------------------------------------------------------------------------------------

POWERS = """
g (int64 m, bool c, float[2] x, float limit) => (float[2] last, float[T, 2] all, int64[T] turns) <float two = {2}> {
    last, all, turns = Loop (m, c, x) <
        body = b (int64 i, bool going, float[2] v) => (bool again, float[2] next, float[2] row, int64 j) {
            next = Mul(v, two)
            row = Add(next, x)
            j = Identity(i)
            top = ReduceMax<keepdims = 0>(next)
            again = Less(top, limit)
        }
    >
}
"""


@pytest.mark.parametrize(("m", "c", "limit"), [(3, True, 1e9), (10, True, 20.0), (0, True, 1e9), (5, False, 1e9)])
def test_a_loop_counts_stops_and_stacks(m: int, c: bool, limit: float) -> None:
    feeds = {
        "m": np.array(m),
        "c": np.array(c),
        "x": np.array([1, 2], np.float32),
        "limit": np.array(limit, np.float32),
    }
    same_as_ort(POWERS, **feeds)


def test_a_loop_without_a_number_of_turns() -> None:
    source = POWERS.replace("int64 m, ", "").replace("Loop (m, c, x)", 'Loop ("", c, x)')
    feeds = {"c": np.array(True), "x": np.array([1, 2], np.float32), "limit": np.array(50, np.float32)}
    assert same_as_ort(source, **feeds)["turns"].tolist() == [0, 1, 2, 3, 4]


COUNTED = """
g (float[N, 3] x) => (float[3] y, float[4, 1, 3] rows) <int64[1] m = {4}, int64[1] zero = {0}, float[3] w = {1, 2, 3}> {
    first = ReduceSum<keepdims = 0>(x, zero)
    y, rows = Loop (m, "", first) <
        body = b (int64 i, bool going, float[3] v) => (bool again, float[3] next, float[1, 3] row)
        <int64[1] one = {1}> {
            again = Identity(going)
            from = Unsqueeze(i, zero)
            to = Add(from, one)
            row = Slice(x, from, to, zero)
            flat = Squeeze(row, zero)
            p = Mul(flat, w)
            next = Add(v, p)
        }
    >
}
"""


def test_a_loop_that_only_counts_is_unrolled_with_its_turn_as_a_number() -> None:
    same_as_ort(COUNTED, x=normal(5, 3))
    module = fx.build(kit.parse(COUNTED))
    x = torch.randn(5, 3)
    batch = torch.export.Dim("batch", min=4)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    assert not any("while" in str(n.target) for n in exported.graph.nodes)
    for run in (eager(module), exported.module()):
        for n in (5, 8):
            x = torch.randn(n, 3)
            for a, b in zip(run(x), module(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_a_loop() -> None:
    module = fx.build(kit.parse(COUNTED)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x), x)
    module(x)[0].sum().backward()
    weight = module.get_parameter("w")
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x[:4].sum(0).detach(), rtol=1e-12, atol=1e-12)


HALVES = """
g (int64 m, float[2] x) => (float[2] y, int64 n)
<float half = {0.5}, float small = {0.1}, bool yes = {1}, int64 one = {1}> {
    s = Identity(one)
    y, n = Loop (m, yes, x, s) <
        body = b (int64 i, bool going, float[2] v, int64 k) => (bool again, float[2] next, int64 more) {
            next = Mul(v, half)
            more = Add(k, i)
            top = ReduceMax<keepdims = 0>(next)
            again = Greater(top, small)
        }
    >
}
"""


def test_a_loop_of_unknown_length_is_traced_as_while_loop() -> None:
    module = fx.build(kit.parse(HALVES))
    given = torch.tensor(10), torch.tensor([8.0, 1.0])
    exported = torch.export.export(module, given)
    assert any("while_loop" in str(n.target) for n in exported.graph.nodes)
    compiled = eager(module)
    for m, top in ((10, 8.0), (3, 8.0), (0, 8.0), (10, 0.5)):
        feeds = {"m": np.array(m), "x": np.array([top, 1], np.float32)}
        expected = same_as_ort(HALVES, **feeds)
        for run in (compiled, exported.module()):
            y, n = run(*(torch.from_numpy(f) for f in feeds.values()))
            np.testing.assert_array_equal(y, expected["y"])
            np.testing.assert_array_equal(n, expected["n"])


def test_a_loop_of_unknown_length_that_stacks_cannot_be_traced() -> None:
    module = fx.build(kit.parse(POWERS))
    given = torch.tensor(3), torch.tensor(True), torch.ones(2), torch.tensor(9.0)
    with pytest.raises(Exception, match="cannot be traced") as e:
        torch.export.export(module, given)
    assert isinstance(e.value, Unsupported) or "Unsupported" in str(e.value)


# -- Scan --------------------------------------------------------------------------------------------------------------

SUMS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[2] start, float[2, 5] x, float[5, 2] z) => (float[2] last, float[%s] sums, float[5, 2] products)
<float[2] w = {1, 2}> {
    last, sums, products = Scan <
        num_scan_inputs = 2, scan_input_axes = [1, -2], scan_input_directions = [%d, 0], scan_output_axes = [%d, 0],
        scan_output_directions = [%d, 1],
        body = b (float[2] state, float[2] row, float[2] other) => (float[2] next, float[2] sum, float[2] product) {
            t = Mul(row, w)
            next = Add(state, t)
            sum = Identity(next)
            product = Mul(row, other)
        }
    > (start, x, z)
}
"""


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("backward", [0, 1])
def test_scan_along_any_axis_in_any_direction(backward: int, turned: int, axis: int) -> None:
    source = SUMS % ("5, 2" if axis == 0 else "2, 5", backward, axis, turned)
    same_as_ort(source, start=normal(2), x=normal(2, 5), z=normal(5, 2, seed=1))


def test_scan_is_unrolled_and_passes_gradients() -> None:
    module = fx.build(kit.parse(SUMS % ("5, 2", 1, 0, 0))).double()
    given = [torch.from_numpy(normal(*s, dtype=np.float64)).requires_grad_() for s in ((2,), (2, 5), (5, 2))]
    assert torch.autograd.gradcheck(module, given)
    for a, b in zip(torch.compile(module, fullgraph=True, backend="eager")(*given), module(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_scan_over_nothing_gives_the_declared_type_and_shape() -> None:
    source = SUMS.replace("float[2, 5] x, float[5, 2] z", "float[2, T] x, float[T, 2] z").replace(
        "[5, 2] pr", "[T, 2] pr"
    )
    model = kit.parse(source % ("2, T", 0, 1, 0))
    given = fx.execute(model)({"start": normal(2), "x": normal(2, 0), "z": normal(0, 2)})
    np.testing.assert_array_equal(given["last"], normal(2))
    assert given["sums"].shape == (2, 0)
    assert given["products"].shape == (0, 2)


@pytest.mark.parametrize("lengths", [None, [3, 1]])
def test_scan_of_opset_8_has_a_batch_and_lengths(lengths: list[int] | None) -> None:
    """Against a plain loop: ONNX Runtime runs opset 8 with all lengths equal only."""
    source = """
    <ir_version: 3, opset_import: ["" : 8]>
    g (int64[2] lens, float[2, 4] start, float[2, 3, 4] x) => (float[2, 4] last, float[2, 3, 4] sums) {
        last, sums = Scan <num_scan_inputs = 1, directions = [1],
            body = b (float[4] state, float[4] row) => (float[4] next, float[4] sum) {
                next = Add(state, row)
                sum = Identity(next)
            }
        > (lens, start, x)
    }
    """
    model = kit.parse(
        source if lengths else source.replace("int64[2] lens, ", "").replace("(lens, start", '("", start')
    )
    start, x = normal(2, 4), normal(2, 3, 4, seed=1)
    given = fx.execute(model)({"start": start, "x": x, **({"lens": np.array(lengths)} if lengths else {})})
    for b, length in enumerate(lengths or [3, 3]):
        sums = start[b] + np.cumsum(x[b, :length][::-1], 0)
        np.testing.assert_allclose(given["sums"][b, :length], sums, rtol=1e-5, atol=1e-6)
        assert not given["sums"][b, length:].any()
        np.testing.assert_allclose(given["last"][b], sums[-1], rtol=1e-5, atol=1e-6)


# -- what the checker lets pass ----------------------------------------------------------------------------------------


def test_a_body_may_use_a_name_of_the_graph_around_for_another_value() -> None:
    """ONNX Runtime refuses it, files have it all the same: names are nothing, values are."""
    source = """
    g (float[2] x, bool c) => (float[2] y) {
        a = Neg(x)
        y = If (c) < then_branch = yes () => (float[2] b) { t = Exp(a)  b = Add(t, a) },
                     else_branch = no () => (float[2] b) { b = Identity(a) } >
    }"""
    model = kit.parse(source)
    branch = list(model.graph)[1].attributes["then_branch"].as_graph()
    next(iter(branch)).outputs[0].name = "a"
    x = torch.randn(2)
    torch.testing.assert_close(fx.build(model)(x, torch.tensor(True)), torch.exp(-x) - x)


def test_constants_on_the_host_reach_bodies() -> None:
    source = """
    g (float[2, 3] x, bool c) => (float[A, B] y) {
        to = Constant<value_ints = [3, 2]>()
        y = If (c) < then_branch = yes () => (float[A, B] b) { b = Reshape(x, to) },
                     else_branch = no () => (float[A, B] b) { b = Identity(x) } >
    }"""
    same_as_ort(source, x=normal(2, 3), c=np.array(True))


def test_a_branch_with_inputs_is_refused() -> None:
    source = """
    g (float[2] x, bool c) => (float[2] y) {
        y = If (c) < then_branch = yes (float[2] x) => (float[2] b) { b = Neg(x) },
                     else_branch = no () => (float[2] b) { b = Abs(x) } >
    }"""
    with pytest.raises(Unsupported, match="branches of If take no inputs"):
        fx.build(kit.parse(source))
