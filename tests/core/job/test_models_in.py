"""Models as people have them, and what they see of the work: ModelProto, arguments of trace, records, notebooks."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphpress as gp
from graphpress.errors import BadRequest, InvalidModel
from graphpress.frontends import torch_export
from graphpress.graph import text
from tests import kit

SOURCE = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"""
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def test_a_model_proto_is_a_model(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SOURCE)
    before = proto.SerializeToString(deterministic=True)
    onnx.save(proto, tmp_path / "m.onnx")
    made, report = gp.compile(proto, "w8a16", prove=False)
    want, _ = gp.compile(tmp_path / "m.onnx", "w8a16", prove=False)
    assert text.diff(made, want) == ""
    assert proto.SerializeToString(deterministic=True) == before
    assert report.model == "g"
    assert gp.inspect(proto).sites == gp.inspect(tmp_path / "m.onnx").sites
    np.testing.assert_array_equal(gp.lower(proto)({"x": X})["y"], kit.run(gp.load(tmp_path / "m.onnx"), {"x": X})["y"])


def test_a_proto_that_cannot_be_compiled_is_refused() -> None:
    proto = onnx.parser.parse_model(SOURCE)
    proto.graph.node[0].op_type = "MatMull"
    with pytest.raises(InvalidModel, match=r"^ModelProto: .*'MatMull'"):
        gp.inspect(proto)
    proto = onnx.parser.parse_model(SOURCE)
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(InvalidModel, match=r"ModelProto: its weights lie in a file beside it. Give the path"):
        gp.inspect(proto)
    with pytest.raises(BadRequest, match=r"an onnx_ir.Model, an onnx.ModelProto or the path of an ONNX file"):
        gp.inspect(7)  # type: ignore[arg-type]


def test_trace_says_what_it_takes() -> None:
    own, inner = (inspect.signature(f).parameters for f in (gp.trace, torch_export.trace))
    assert [(p.name, p.kind, p.default) for p in own.values()] == [(p.name, p.kind, p.default) for p in inner.values()]
    for name in own:
        assert f"        {name}: " in (gp.trace.__doc__ or "")


def test_what_is_done_is_in_the_log_and_nothing_is_printed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="graphpress"):
        gp.compile(onnx.parser.parse_model(SOURCE), "w8a16", prove=False)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("graphpress.")]
    assert any(s.startswith("pass quantize: 1 changed, 0 skipped") for s in said)
    assert any(s.startswith("lower: ") for s in said)
    assert capsys.readouterr() == ("", "")
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger("graphpress").handlers)


def test_a_notebook_shows_reports_and_inspections() -> None:
    proto = onnx.parser.parse_model(SOURCE.replace("g (", "a<b (").replace("a<b", "ab"))
    _, report = gp.compile(proto, "w8a8", {"x": X}, prove=False)
    shown = report._repr_html_()
    assert shown.startswith("<table>")
    for wanted in ("w8a8", "SQNR of y", f"{report.gate.outputs[0].sqnr:.1f} dB", "of weights"):
        assert wanted in shown
    report.model = "<script>"
    assert "<script>" not in report._repr_html_()
    assert "<caption>Weights by type</caption>" in gp.inspect(proto)._repr_html_()
    assert "<table>" in gp.diff(proto, gp.compile(proto, "w8a16", prove=False)[0])._repr_html_()
