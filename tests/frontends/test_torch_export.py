"""Tracing: the graph computes what the module computes, and everything in it has the name it has in torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import graphpress as gp
from graphpress.backends import reference
from graphpress.frontends.torch_weights import SOURCE
from graphpress.graph import edit
from graphpress.keys import SCOPE
from tests.frontends.torch_modules import Case, ConvNorm, Language, Tied, cases

CASES = cases()


@pytest.fixture(scope="module")
def traced() -> dict[str, ir.Model]:
    return {}


def trace(name: str, traced: dict[str, ir.Model]) -> tuple[Case, ir.Model]:
    case = CASES[name]
    if name not in traced:
        traced[name] = gp.trace(*case)
    return case, traced[name]


def eager(case: Case) -> list[np.ndarray]:
    training = case.module.training
    with torch.no_grad():
        result = case.module.eval()(*case.args, **case.kwargs or {})
    case.module.train(training)
    return [t.numpy() for t in pytree.tree_leaves(result)]


def run(model: ir.Model, case: Case) -> list[np.ndarray]:
    tensors = [t.numpy() for t in pytree.tree_leaves((case.args, case.kwargs)) if isinstance(t, torch.Tensor)]
    feeds = {v.name or "": t for v, t in zip(model.graph.inputs, tensors, strict=True)}
    return list(reference.execute(model)(feeds).values())


def close(model: ir.Model, case: Case) -> None:
    for got, want in zip(run(model, case), eager(case), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_graph_computes_what_the_module_computes(name: str, traced: dict[str, ir.Model]) -> None:
    case, model = trace(name, traced)
    close(model, case)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("name", ["conv-norm", "batch of one", "recurrent, dynamic", "transformer"])
def test_dynamic_dimensions_may_have_any_size(name: str, traced: dict[str, ir.Model]) -> None:
    case, model = trace(name, traced)
    grown = [torch.cat([a, a, a]) for a in case.args]
    grown = [torch.cat([a, a], 1) for a in grown] if name == "transformer" else grown
    close(model, case._replace(args=tuple(grown)))


def test_names_of_dimensions_are_kept(traced: dict[str, ir.Model]) -> None:
    _, model = trace("transformer", traced)
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["batch", "time"]
    assert [str(d) for d in model.graph.outputs[0].shape or ()] == ["batch", "time", "13"]


@pytest.mark.parametrize("name", CASES)
def test_weights_have_the_names_of_their_parameters(name: str, traced: dict[str, ir.Model]) -> None:
    case, model = trace(name, traced)
    found: set[str] = set()
    state = dict(case.module.named_parameters()) | dict(case.module.named_buffers())
    for value in model.graph.initializers.values():
        source = json.loads(value.metadata_props.get(SOURCE, "{}"))
        found |= {value.name or "", source.get("parameter", ""), *source.get("others", []), *source.get("tied", [])}
        if value.name in state and "transform" not in source:
            array = edit.constant(value)
            np.testing.assert_array_equal(array, state[value.name].detach().numpy())
    buffers = {n for n, _ in case.module.named_buffers() if not n.endswith("num_batches_tracked")}
    assert {n for n, _ in case.module.named_parameters(remove_duplicate=False)} | buffers <= found
    assert not [n for n in model.graph.initializers if n.startswith("val_")]


def test_transposed_and_folded_weights_say_so(traced: dict[str, ir.Model]) -> None:
    case, model = trace("transformer", traced)
    weight = model.graph.initializers["blocks.0.down.weight"]
    assert json.loads(weight.metadata_props[SOURCE]) == {"parameter": weight.name, "transform": "transpose"}
    expected = case.module.get_parameter("blocks.0.down.weight").detach().numpy().T
    np.testing.assert_array_equal(edit.constant(weight), expected)

    _, model = trace("conv-norm", traced)
    sources = {n: json.loads(v.metadata_props.get(SOURCE, "{}")) for n, v in model.graph.initializers.items()}
    norm = ["stem.1.weight", "stem.1.running_mean", "stem.1.running_var"]
    assert sources["stem.0.weight"] == {
        "parameter": "stem.0.weight", "transform": "batchnorm", "others": ["stem.1.weight", "stem.1.running_var"]
    }  # fmt: skip
    assert sources["stem.0.bias"] == {"parameter": "stem.1.bias", "transform": "batchnorm", "others": norm}
    assert sources["deep.0.bias"]["parameter"] == "deep.0.bias"
    assert sources["deep.3.weight"] == sources["head.weight"] == {}


def test_tied_weights_stay_one(traced: dict[str, ir.Model]) -> None:
    case, model = trace("tied", traced)
    assert isinstance(case.module, Tied)
    big = [v for v in model.graph.initializers.values() if len(v.shape or ()) == 2]
    assert {v.name for v in big} == {"embed.weight", "first.weight"}
    assert json.loads(big[0].metadata_props[SOURCE])["tied"]


def test_equal_weights_that_are_not_tied_stay_two() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module.load_state_dict({k: torch.zeros_like(v) for k, v in module.state_dict().items()})
    model = gp.trace(module, torch.randn(2, 4))
    assert set(model.graph.initializers) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_nodes_are_called_after_their_module(traced: dict[str, ir.Model]) -> None:
    case, model = trace("transformer", traced)
    modules = {n for n, _ in case.module.named_modules()}
    names = [n.name for n in edit.nodes(model)]
    assert len(set(names)) == len(names)
    assert {"embed/Gather", "blocks.1.down/MatMul", "blocks.1.norm2/RMSNormalization", "head/MatMul"} <= set(names)
    for node in edit.nodes(model):
        scope = node.metadata_props.get(SCOPE, "")
        assert scope in modules
        assert (node.name or "").startswith(f"{scope}/{node.op_type}" if scope else node.op_type)
    assert "blocks.1/Attention" in names
    _, model = trace("conv-norm", traced)
    assert edit.find(model, "stem.0/Conv").metadata_props[SCOPE] == "stem.0"


def test_inputs_and_outputs_are_called_after_their_place(traced: dict[str, ir.Model]) -> None:
    _, model = trace("nested", traced)
    assert [v.name for v in model.graph.inputs] == ["x", "rest_0", "extra_pair_0", "extra_pair_1"]
    assert [v.name for v in model.graph.outputs] == ["logits", "state_0", "state_1_0", "x_1"]
    _, model = trace("recurrent", traced)
    assert [v.name for v in model.graph.outputs] == ["output_0", "output_1"]
    _, model = trace("tied", traced)
    assert [v.name for v in model.graph.outputs] == ["output"]


def test_batchnorm_stays_on_request() -> None:
    case = CASES["conv-norm"]
    model = gp.trace(*case, fold_batchnorm=False)
    ops = [n.op_type for n in edit.nodes(model)]
    assert ops.count("BatchNormalization") == 3
    assert not {"Shape", "Expand", "CastLike", "Constant", "Identity"} & set(ops)
    assert {"stem.1.weight", "stem.1.running_var"} <= set(model.graph.initializers)
    assert edit.find(model, "stem.1/BatchNormalization").metadata_props[SCOPE] == "stem.1"
    close(model, case)


@pytest.mark.slow
def test_other_opsets() -> None:
    case = CASES["transformer"]
    model = gp.trace(*case, opset=20)
    assert edit.opset(model) == 20
    close(model, case)


def test_module_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(ConvNorm(), nn.Dropout(0.5))
    module.train()
    module[0].stem.eval()
    modes = {n: m.training for n, m in module.named_modules()}
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    model = gp.trace(module, (x,))
    assert {n: m.training for n, m in module.named_modules()} == modes
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert "Dropout" not in {n.op_type for n in edit.nodes(model)}
    assert all(type(v.const_value) is ir.Tensor for v in model.graph.initializers.values())
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("form", ["program", "graph module", "module of a program"])
def test_other_forms_of_a_module(form: str) -> None:
    case = Case(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),))
    program = torch.export.export(case.module.eval(), case.args, dynamic_shapes=({0: torch.export.Dim("batch")},))
    if form == "program":
        model = gp.trace(program)
        assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["input_0", "4"]
    else:
        module: Any = torch.fx.symbolic_trace(case.module) if form == "graph module" else program.module()
        model = gp.trace(module, case.args)
    close(model, case)
    assert {"0.weight", "0.bias"} <= set(model.graph.initializers)
    assert edit.find(model, "0/Gemm").metadata_props[SCOPE] == "0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_type(dtype: torch.dtype) -> None:
    model = gp.trace(nn.Linear(3, 2).to(dtype), torch.zeros(1, 3, dtype=dtype))
    assert ir.DataType.from_numpy(edit.constant(model.graph.initializers["weight"]).dtype).name.lower() in {  # type: ignore[union-attr]
        torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "double",
    }[dtype]  # fmt: skip


def test_saved_file_names_no_path(tmp_path: Path, traced: dict[str, ir.Model]) -> None:
    _, model = trace("transformer", traced)
    traces = [n.metadata_props.get("pkg.torch.onnx.stack_trace", "") for n in edit.nodes(model)]
    assert any("torch_modules.py" in t for t in traces), "the graph at hand knows its lines"
    gp.save(model, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    here = Path(__file__).resolve().parents[2]
    for text in (str(here), str(Path.home()), str(tmp_path), "torch_modules", "site-packages", ".py", "stack_trace"):
        assert text.encode() not in data, text
    again = gp.load(tmp_path / "model.onnx")
    assert [n.metadata_props.get(SCOPE) for n in again.graph] == [n.metadata_props.get(SCOPE) for n in model.graph]


def test_same_module_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, ids = Language(), torch.randint(0, 13, (1, 5))
    for name in ("a", "b"):
        gp.save(gp.trace(module, ids), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_importing_the_frontend_imports_no_torch() -> None:
    code = "import sys, graphpress.frontends.torch_export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_come_to_the_cpu() -> None:
    case = CASES["conv-norm"]
    module = ConvNorm().cuda()
    model = gp.trace(module, tuple(a.cuda() for a in case.args))
    close(model, case._replace(module=module.cpu()))
