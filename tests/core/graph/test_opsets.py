"""Raising the opset keeps outputs bit for bit on real graphs of every age, and keeps names and metadata."""

import json
from pathlib import Path

import pytest

from graphpress.errors import Unsupported
from graphpress.frontends import onnx_file
from graphpress.graph import edit, opsets, verify
from graphpress.pipeline import deviation
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
