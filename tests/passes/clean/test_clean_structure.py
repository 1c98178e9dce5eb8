"""Passes that only take nodes away or move them: Before, Expected, and equal outputs bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.borrowed import Step
from graphpress.graph import edit
from graphpress.passes.clean.fuse_pad import FusePad
from graphpress.passes.clean.infer_shapes import InferShapes
from graphpress.passes.clean.inline_branches import InlineBranches
from graphpress.passes.clean.lift_constants import LiftConstants
from graphpress.passes.clean.merge_common import MergeCommon
from graphpress.passes.clean.merge_reshapes import MergeReshapes
from graphpress.passes.clean.remove_dead import RemoveDead
from graphpress.passes.clean.remove_identity import RemoveIdentity
from graphpress.passes.clean.remove_initializer_inputs import RemoveInitializerInputs
from tests import kit


def check(before: str, expected: str, *passes: Step, exact: bool = True) -> ir.Model:
    """Run the passes, compare the structure with ``expected`` and the outputs with those of ``before``."""
    source = kit.parse(before)
    after, _ = kit.apply(source, *passes)
    kit.assert_same_structure(after, kit.parse(expected))
    kit.assert_same_outputs(source, after, rtol=0.0 if exact else 1e-5, atol=0.0 if exact else 1e-5)
    again, reports = kit.apply(after, passes[-1])
    assert reports[0].changed == 0, "a second run finds more to do"
    kit.assert_same_structure(again, after)
    return after


SCALARS = """<float zero = {0.0}, float[1] one = {1.0}, int64[1] start = {0}, int64[1] far = {9223372036854775807},
    int64[1] three = {3}, int64[2] same = {0, -1}, int64[2] ones = {1, 1}, int64[2] dims = {2, 3},
    int64[4] pads = {0, 0, 0, 0}, bool off = {0}, float half = {0.5}>""".replace("\n", " ")


@pytest.mark.parametrize(
    "node",
    [
        "Identity(h)",
        "Dropout(h)",
        "Dropout(h, half, off)",
        "Cast<to=1>(h)",
        "CastLike(h, x)",
        "Reshape(h, same)",
        "Reshape(h, dims)",
        "Flatten(h)",
        "Expand(h, ones)",
        "Expand(h, dims)",
        "Tile(h, ones)",
        "Transpose<perm=[0,1]>(h)",
        "Slice(h, start, far)",
        "Slice(h, start, three, ones1)",
        "Concat<axis=0>(h)",
        "Sum(h)",
        "Pad(h, pads)",
        "Add(h, zero)",
        "Add(zero, h)",
        "Sub(h, zero)",
        "Mul(one, h)",
        "Div(h, one)",
        "Pow(h, one)",
    ],
)
def test_a_node_that_changes_nothing_goes(node: str) -> None:
    head = f"f (float[2,3] x) => (float[2,3] y) {SCALARS.replace('bool off', 'int64[1] ones1 = {1}, bool off')}"
    before = f"{head} {{ h = Relu(x) i = {node} y = Abs(i) }}"
    check(before, f"{head} {{ h = Relu(x) y = Abs(h) }}", InferShapes(), RemoveIdentity())


@pytest.mark.parametrize(
    "node",
    [
        "Cast<to=11>(h)",
        "Reshape(h, other)",
        "Transpose<perm=[1,0]>(h)",
        "Slice(h, begin, far)",
        "Expand(h, grows)",
        "Add(h, grown)",
        "Sub(zero, h)",
        "Mul(h, x)",
    ],
)
def test_a_node_that_changes_something_stays(node: str) -> None:
    constants = """<int64[2] other = {3, 2}, int64[1] begin = {1}, int64[1] far = {9}, int64[3] grows = {4, 1, 1},
        float[1,1,1] grown = {0.0}, float zero = {0.0}>"""
    model = kit.parse(f"f (float[2,3] x) => (y) {constants} {{ h = Relu(x) y = {node} }}")
    after, _ = kit.apply(model, InferShapes(), RemoveIdentity())
    assert len(kit.ops(after)) == 2


def test_outputs_keep_their_names_and_shapes() -> None:
    source = kit.parse("""f (float[n,3] x) => (float[m,3] y, float[n,3] z, float[n,3] w) {
        h = Relu(x) y = Identity(h) z = Identity(h) w = Identity(x)
    }""")
    after, _ = kit.apply(source, RemoveIdentity())
    assert kit.ops(after) == ["Relu", "Identity", "Identity"]
    assert [str(o.shape) for o in after.graph.outputs] == ["[m,3]", "[n,3]", "[n,3]"]
    kit.assert_same_outputs(source, after)


def test_dead_code_goes_from_graphs_bodies_and_functions() -> None:
    before = """<ir_version: 10, opset_import: ["" : 21, "l" : 1]>
    f (float[2] x, bool c) => (float[2] y) <float[2] unused = {1.0, 2.0}> {
        d = Neg(x) e = Abs(d)
        y = If (c) <
            then_branch = t () => (float[2] a) { q = Neg(x) a = Relu(x) },
            else_branch = g () => (float[2] b) { b = l.g(x) }
        >
    }
    <domain: "l", opset_import: ["" : 21]> g (p) => (r) { s = Neg(p) r = Abs(p) }
    <domain: "l", opset_import: ["" : 21]> h (p) => (r) { r = Abs(p) }"""
    after, _ = kit.apply(kit.parse(before), RemoveDead())
    assert kit.ops(after) == ["If", "Relu", "g", "Abs"]
    assert not after.graph.initializers
    assert [k[1] for k in after.functions] == ["g"]
    kit.assert_same_outputs(kit.parse(before), after)


def test_an_unread_input_stays() -> None:
    after, _ = kit.apply(kit.parse("f (float[2] x, float[2] unread) => (float[2] y) { y = Relu(x) }"), RemoveDead())
    assert [v.name for v in after.graph.inputs] == ["x", "unread"]


def test_equal_work_is_done_once() -> None:
    check(
        """f (float[2,3] x) => (float[2,3] y)
        <int64[2] a = {3, 2}, int64[2] b = {3, 2}, float s = {2.0}, float t = {2.0}> {
            p = Reshape(x, a) q = Reshape(x, b)
            u = Mul(p, s) v = Mul(q, t)
            w = Add(u, v) z = Transpose<perm=[1,0]>(w) y = Relu(z)
        }""",
        """f (float[2,3] x) => (float[2,3] y) <int64[2] a = {3, 2}, float s = {2.0}> {
            p = Reshape(x, a) u = Mul(p, s) w = Add(u, u) z = Transpose<perm=[1,0]>(w) y = Relu(z)
        }""",
        MergeCommon(),
    )


def test_a_body_reuses_what_the_graph_around_it_computed() -> None:
    before = """f (float[2] x, bool c) => (float[2] y) {
        n = Neg(x)
        z = If (c) <
            then_branch = t () => (float[2] a) { m = Neg(x) a = Relu(m) },
            else_branch = e () => (float[2] b) { b = Neg(x) }
        >
        y = Add(n, z)
    }"""
    after, _ = kit.apply(kit.parse(before), MergeCommon())
    assert kit.ops(after) == ["Neg", "If", "Add", "Relu", "Neg"]
    for flag in (True, False):
        feeds = {"x": np.array([1.0, -2.0], np.float32), "c": np.array(flag)}
        kit.assert_same_outputs(kit.parse(before), after, feeds)


@pytest.mark.parametrize(
    "body",
    [
        "a = RandomNormal<shape=[2]>() b = RandomNormal<shape=[2]>() y = Sub(a, b)",
        "a = Add(x, p) b = Add(x, q) y = Mul(a, b)",  # equal parameters are not tied
        "a = Sum(x, k) b = Sum(x, l) y = Mul(a, b)",  # 0.0 and -0.0
        "a = Relu(x) b = Relu(x) y = Identity(a) z = Identity(b)",
    ],
)
def test_what_is_not_the_same_is_not_merged(body: str) -> None:
    constants = "<float[2] p = {1.0, 1.0}, float[2] q = {1.0, 1.0}, float k = {0.0}, float l = {-0.0}>"
    model = kit.parse(
        f"f (float[2] x) => (float[2] y{', float[2] z' if 'z =' in body else ''}) {constants} {{ {body} }}"
    )
    after, _ = kit.apply(model, MergeCommon())
    merged = 1 if "z =" in body else 0  # the two Relus are one; the public names stay two
    assert len(kit.ops(after)) == len(kit.ops(model)) - merged


def test_chains_of_reshapes_become_one() -> None:
    check(
        """f (float[n,4,6] x) => (float[n,24] y) <int64[3] t = {0, 2, 12}, int64[1] one = {1}> {
            a = Reshape(x, t) b = Unsqueeze(a, one) c = Flatten(b) y = Relu(c)
        }""",
        """f (float[n,4,6] x) => (float[n,24] y) <int64[2] t = {0, 24}> { c = Reshape(x, t) y = Relu(c) }""",
        InferShapes(),
        MergeReshapes(),
    )


def test_transposes_compose() -> None:
    check(
        """f (float[2,3,4] x) => (float[3,4,2] y) {
            a = Transpose<perm=[2,0,1]>(x) b = Transpose<perm=[2,0,1]>(a) y = Relu(b)
        }""",
        "f (float[2,3,4] x) => (float[3,4,2] y) { b = Transpose<perm=[1,2,0]>(x) y = Relu(b) }",
        MergeReshapes(),
    )


def test_a_computed_target_becomes_constant() -> None:
    check(
        """f (float[n,s,8] x) => (float[n,s,2,4] y) <int64[2] tail = {2, 4}> {
            lead = Shape<end=2>(x) t = Concat<axis=0>(lead, tail) h = Reshape(x, t) y = Relu(h)
        }""",
        """f (float[n,s,8] x) => (float[n,s,2,4] y) <int64[4] t = {0, 0, 2, 4}> { h = Reshape(x, t) y = Relu(h) }""",
        MergeReshapes(),
    )


def test_a_shape_that_lies_is_not_believed() -> None:
    source = "f (float[2,6] x, int64[r] t) => (float[3,4] y) { y = Reshape(x, t) }"
    after, _ = kit.apply(kit.parse(source), InferShapes(), MergeReshapes())
    feeds = {"x": np.ones((2, 6), np.float32), "t": np.array([6, 2])}
    assert kit.run(after, feeds)["y"].shape == (6, 2)


def test_pads_go_into_the_conv() -> None:
    weight = "float[1,1,2,2] w = {1.0, 2.0, 3.0, 4.0}"
    check(
        f"""f (float[1,1,4,4] x) => (float[1,1,7,5] y) <{weight}, int64[8] p = {{0,0,1,0,0,0,2,1}}> {{
            h = Pad(x, p) y = Conv<pads=[1,0,0,1]>(h, w)
        }}""",
        f"f (float[1,1,4,4] x) => (float[1,1,7,5] y) <{weight}> {{ y = Conv<pads=[2,0,2,2]>(x, w) }}",
        FusePad(),
    )


@pytest.mark.parametrize(
    ("pad", "why"),
    [
        ('Pad<mode="reflect">(x, p)', "not pad with zeros"),
        ("Pad(x, p, one)", "not pad with zeros"),
        ("Pad(x, batch)", "pads batch"),
        ("Pad(x, crop)", "crops"),
    ],
)
def test_a_pad_that_no_conv_can_do_stays(pad: str, why: str) -> None:
    constants = """<float[1,1,2,2] w = {1.0, 2.0, 3.0, 4.0}, int64[8] p = {0,0,1,0,0,0,1,1}, float one = {1.0},
        int64[8] batch = {1,0,0,0,0,0,0,0}, int64[8] crop = {0,0,-1,0,0,0,0,0}>"""
    model = kit.parse(f"f (float[1,1,4,4] x) => (float[a,b,c,d] y) {constants} {{ h = {pad} y = Conv(h, w) }}")
    after, reports = kit.apply(model, FusePad())
    assert kit.ops(after) == ["Pad", "Conv"]
    assert why in reports[0].skips[0].why


@pytest.mark.parametrize("taken", [True, False])
def test_a_decided_branch_is_inlined(taken: bool) -> None:
    before = f"""f (float[2] x) => (float[2] y) <bool c = {{{int(taken)}}}, bool d = {{1}}> {{
        h = Neg(x)
        y = If (c) <
            then_branch = t () => (float[2] a) {{
                inner = If (d) <
                    then_branch = tt () => (float[2] k) {{ k = Abs(h) }},
                    else_branch = te () => (float[2] l) {{ l = Ceil(h) }}
                >
                a = Add(inner, h)
            }},
            else_branch = e () => (float[2] b) <float[2] w = {{1.0, 2.0}}> {{ inner = Mul(h, w) b = Relu(inner) }}
        >
    }}"""
    after, _ = kit.apply(kit.parse(before), InlineBranches())
    assert kit.ops(after) == (["Neg", "Abs", "Add"] if taken else ["Neg", "Mul", "Relu"])
    kit.assert_same_outputs(kit.parse(before), after)


def test_a_branch_that_gives_back_an_outer_value() -> None:
    before = """f (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
        z = Neg(x)
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Identity(z) },
            else_branch = e () => (float[2] b) { b = Abs(z) }
        >
    }"""
    after, _ = kit.apply(kit.parse(before), InlineBranches(), RemoveIdentity())
    kit.assert_same_outputs(kit.parse(before), after)


def test_constants_are_lifted_under_their_names() -> None:
    source = """f (float[2] x) => (float[2] y, float[2] z) {
        c = Constant<value_floats=[1.0, 2.0]>() y = Add(x, c) z = Constant<value_floats=[3.0, 4.0]>()
    }"""
    after, _ = kit.apply(kit.parse(source), LiftConstants())
    assert kit.ops(after) == ["Add", "Constant"]
    assert list(after.graph.initializers) == ["c"]
    kit.assert_same_outputs(kit.parse(source), after)


def test_shapes_are_filled_in_and_never_rewritten() -> None:
    model = kit.parse(
        """f (float[batch,3,8,8] x, bool c) => (float[q,4,6,6] y) {
        w = ConstantOfShape(s)
        h = Conv(x, w)
        y = If (c) <
            then_branch = t () => (a) { r = Relu(h) a = Neg(r) },
            else_branch = e () => (b) { b = Abs(h) }
        >
    }""".replace("(float[q,4,6,6] y)", "(float[q,4,6,6] y) <int64[4] s = {4, 3, 3, 3}>")
    )
    after, _ = kit.apply(model, InferShapes())
    shapes = {o.name: (str(o.shape), o.dtype) for n in edit.nodes(after) for o in n.outputs}
    assert shapes["h"] == ("[batch,4,6,6]", ir.DataType.FLOAT)
    assert shapes["r"] == ("[batch,4,6,6]", ir.DataType.FLOAT)
    assert shapes["y"] == ("[q,4,6,6]", ir.DataType.FLOAT)


def test_weights_that_are_inputs_become_constants() -> None:
    model = kit.parse("f (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    weight = model.graph.inputs[1]
    weight.const_value = ir.tensor(np.ones(2, np.float32), name="w")
    model.graph.register_initializer(weight)
    after, _ = kit.apply(model, RemoveInitializerInputs())
    assert [v.name for v in after.graph.inputs] == ["x"]
    assert edit.is_constant(next(edit.nodes(after)).inputs[1])
    kit.assert_same_outputs(model, after)
