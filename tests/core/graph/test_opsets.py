"""Raising the opset keeps outputs bit for bit on real graphs of every age, and keeps names and metadata."""

import json
from pathlib import Path

import numpy as np
import pytest

from graphpress.errors import Unsupported
from graphpress.frontends import onnx_file
from graphpress.graph import edit, opsets, verify
from graphpress.pipeline import deviation
from graphpress.tools.bench import opsets as opset_proof
from graphpress.tools.conformance import earlier_made
from tests import kit


def test_nodes_that_kept_their_meaning_are_not_touched() -> None:
    model = kit.parse(
        '<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,4] y) { a = Add(x, x) y = Relu(a) }'
    )
    kept = list(model.graph)
    opsets.require(model, 21)
    assert list(model.graph) == kept and edit.opset(model) == 21 and model.ir_version == 10


def test_attributes_that_became_inputs() -> None:
    source = """<ir_version: 7, opset_import: ["": 11]> g (float[2,3] x) => (float[2] y) {
        u = Unsqueeze <axes=[0]> (x)
        s = Squeeze <axes=[0]> (u)
        y = ReduceSum <axes=[1], keepdims=0> (s)
    }"""
    model = kit.parse(source)
    raised = model.clone()
    opsets.require(raised, 18)
    verify.check(raised)
    assert [n.name for n in raised.graph if n.op_type == "Squeeze"] == ["Squeeze_1"]
    kit.assert_same_outputs(model, raised)


@pytest.mark.parametrize("sizes", [False, True])
def test_a_split_says_into_how_many(sizes: bool) -> None:
    """From opset 18 on it needs sizes or their number, which the schemas do not tell."""
    constant = "n = Constant <value_ints=[2,2]> ()" if sizes else ""
    source = f"""<ir_version: 8, opset_import: ["": 13]> g (float[2,4] x) => (float[2,2] a, float[2,2] b) {{
        {constant}
        a, b = Split <axis=1> (x{", n" if sizes else ""})
    }}"""
    model = kit.parse(source)
    raised = model.clone()
    opsets.require(raised, 18)
    verify.check(raised)
    kit.assert_same_outputs(model, raised)


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = kit.parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(Unsupported, match="opset 99 is newer"):
        opsets.require(model, 99)
    assert edit.opset(model) == 21


def test_graphs_of_every_age(zoo: Path) -> None:
    entries = json.loads((zoo / "onnx_zoo/manifest.json").read_text())
    old = [
        e
        for e in entries
        if e["ort"] == "runs" and (e["opset"] or 21) < 16 and e["nodes"] < 300 and "Random" not in str(e["ops"])
    ]
    checked, seen = 0, set[tuple[str, int]]()
    for entry in sorted(old, key=lambda e: e["nodes"]):
        of_an_age = {(op, entry["opset"]) for op in entry["ops"]}
        if of_an_age <= seen:  # each operator of each age once: the smallest model that has it
            continue
        try:
            model = onnx_file.load(zoo / "onnx_zoo" / entry["file"])
            feeds = kit.random_feeds(model)
            raised = model.clone()
            opsets.require(raised, 21)
            before = kit.run(model, feeds)
        except Exception:  # noqa: BLE001, not loadable, or random inputs do not suit it: the round trip table speaks of those
            continue
        verify.check(raised)
        after = kit.run(raised, feeds)
        assert deviation(before, after) <= 1e-5, entry["file"]
        seen |= of_an_age
        checked += 1
    assert checked > 40


SAMPLE = {
    "Upsample",
    "Resize",
    "RoiAlign",
    "Hardmax",
    "Softmax",
    "Dropout",
    "GroupNormalization",
    "Scan",
    "Split",
    "TopK",
}


def test_a_sample_of_the_proof() -> None:
    """The operators that have a rule, and some that onnx's converter does: a form of each at each opset."""
    forms = {}
    for case in earlier_made.made():
        if case.op in SAMPLE:
            form = str(sorted((a.name, a.s) for a in case.node.attribute if a.name in ("mode", "axis")))
            forms.setdefault((case.op, case.opset, form), case)
    verdicts = [v for case in forms.values() for v in opset_proof.judge(case, [(False, True)])]
    assert not [v for v in verdicts if v.status == opset_proof.DIFFERS]
    assert {v.op for v in verdicts if v.status in (opset_proof.EQUAL, opset_proof.RULE)} == SAMPLE


@pytest.mark.slow
def test_every_operator_at_every_older_opset() -> None:
    verdicts = [v for case in opset_proof.everything() for v in opset_proof.judge(case)]
    assert not [v for v in verdicts if v.status == opset_proof.DIFFERS]
    ran = {(v.op, v.opset) for v in verdicts if v.status != opset_proof.NOT_RUN}
    assert len(ran) > 300, "cases that do not run prove nothing"


@pytest.mark.parametrize(("opset", "op"), [(9, "Upsample"), (10, "Resize")])
def test_linear_interpolation_of_old_opsets(opset: int, op: str) -> None:
    """Place i of the result lies at i / scale of the source; beyond its end the last value goes on."""
    source = f"""<ir_version: 4, opset_import: ["": {opset}]> g (float[1,1,1,4] x) => (float[1,1,1,8] y)
        <float[4] s = {{1, 1, 1, 2}}> {{ y = {op} <mode="linear"> (x, s) }}"""
    model = kit.parse(source)
    opsets.require(model, 21)
    feeds = {"x": np.float32([[[[1, 3, 2, -4]]]])}
    expected = [1, 2, 3, 2.5, 2, -1, -4, -4]
    assert kit.run(model, feeds)["y"].ravel().tolist() == expected


def test_nearest_of_opset_10_takes_the_next_place_where_an_axis_shrinks() -> None:
    source = """<ir_version: 5, opset_import: ["": 10]> g (float[1,1,2,5] x) => (float[1,1,4,2] y)
        <float[4] s = {1, 1, 2, 0.4}> { y = Resize <mode="nearest"> (x, s) }"""
    model = kit.parse(source)
    opsets.require(model, 19)
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 2, 5)
    assert kit.run(model, {"x": x})["y"][0, 0].tolist() == [[0, 3], [0, 3], [5, 8], [5, 8]]


def test_what_has_no_equal_form_is_refused_with_the_way_out() -> None:
    source = """<ir_version: 6, opset_import: ["": 11]> g (float[1,1,2,5] x) => (float[1,1,4,2] y)
        <float[0] r = {}, float[4] s = {1, 1, 2, 0.4}> {
        y = Resize <mode="linear", coordinate_transformation_mode="tf_half_pixel_for_nn"> (x, r, s) }"""
    model = kit.parse(source)
    with pytest.raises(Unsupported, match=r"tf_half_pixel_for_nn went with opset 13.*Export the model at opset 18"):
        opsets.require(model, 18)
    assert edit.opset(model) == 11
