"""inspect and diff against counts made by onnx itself."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphpress as gp
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.quantize import Quantize
from tests import kit

MODEL = str(resources.files("graphpress.tools.demo") / "digits.onnx")


def quantized(weight: str = "int8", **options) -> gp.inspect:
    return gp.Pipeline([Quantize(mode="weight", weight=weight, **options), FoldWeights()]).run(gp.load(MODEL))[0]


def test_operators_and_bytes_are_those_of_the_file() -> None:
    proto = onnx.load(MODEL)
    found = gp.inspect(MODEL)
    assert found.ops == dict(Counter(n.op_type for n in proto.graph.node))
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    sizes = [prod(t.dims) for t in floats]
    assert found.storage["float"] == {"tensors": len(floats), "elements": sum(sizes), "bytes": 4 * sum(sizes)}
    assert found.opsets == {o.domain: o.version for o in proto.opset_import}
    assert {s.node for s in found.sites} == {n.name for n in proto.graph.node if n.op_type in ("Conv", "Gemm")}
    json.dumps(found.to_json())


@pytest.mark.parametrize(("weight", "bits"), [("int8", 8), ("int4", 4)])
def test_stored_bits_are_those_of_the_scheme(weight: str, bits: int) -> None:
    model = quantized(weight)
    found = gp.inspect(model)
    stored = found.storage[weight]
    assert stored["bytes"] * 8 - stored["elements"] * bits in range(8 * stored["tensors"])
    assert found.stage == "qdq"
    assert all(weight in s.scheme for s in found.sites)
    assert [s.weights > 0 for s in gp.inspect(MODEL).sites] == [True] * len(found.sites)


def test_diff_names_what_changed_and_only_that() -> None:
    kept = gp.inspect(MODEL).sites[0].node
    found = gp.diff(MODEL, quantized(ignore=(kept,)))
    assert {s.node for s in found.sites} == {s.node for s in gp.inspect(MODEL).sites} - {kept}
    assert all(s.before.endswith("float") and "int8" in s.after for s in found.sites)
    assert found.ops.keys() >= {"DequantizeLinear"}
    assert found.storage["int8"][0] == 0 < found.storage["int8"][1]
    assert found.lines
    json.dumps(found.to_json())


def test_nothing_differs_from_itself_also_after_a_round_trip(tmp_path: Path) -> None:
    model = quantized()
    gp.save(model, tmp_path / "m.onnx")
    found = gp.diff(model, tmp_path / "m.onnx")
    assert (found.sites, found.ops, found.storage, found.lines) == ([], {}, {}, "")


def test_sites_in_branches_and_missing_ones_are_seen() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2, 2] x, bool c) => (float[2, 2] y) <float[2, 2] w = {1.0, 2.0, 3.0, 4.0}> {
      [if] y = If (c) <
        then_branch = t () => (float[2, 2] a) { [deep] a = MatMul(x, w) },
        else_branch = e () => (float[2, 2] b) { [neg] b = Neg(x) }>
    }"""
    a, b = kit.parse(text), kit.parse(text.replace("MatMul(x, w)", "Add(x, w)"))
    assert [s.node for s in gp.inspect(a).sites] == ["deep"]
    change = gp.diff(a, b).sites
    assert [(s.node, s.before, s.after) for s in change] == [("deep", "MatMul float", "")]
    for result in (gp.inspect(a), gp.diff(a, b)):
        for table in result.tables():
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_empty_models_are_inspected() -> None:
    found = gp.inspect(kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert (found.sites, found.storage) == ([], {})
    assert np.all([t.to_json() is not None for t in found.tables()])
