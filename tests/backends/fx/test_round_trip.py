"""torch -> graph -> torch -> graph gives the same graph; modules and their sources take each other's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import graphpress as gp
from graphpress.backends import fx as backend
from graphpress.passes.clean.fold_batchnorm import FoldBatchnorm
from tests import kit
from tests.backends.fx.traced import Case, cases, traced

CASES = cases()
STATIC = [name for name in CASES if "dynamic" not in name]
QUICK = ("functional", "tied", "containers", "conv-norm")
# Of these torch.export writes sizes down in another way when it sees them computed: the graphs are not equal.
RESIZED = ("shapes, dynamic", "prefill, dynamic", "decode, dynamic", "unet, dynamic", "lstm, dynamic")
SAME_STATE = [name for name in STATIC if name not in ("lstm", "moe, dense", "moe, gather", "moe, index", "conv-norm")]


def marked(names: list[str]) -> list[Any]:
    """The longer ones run by ``make slow``."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def tensors(module: nn.Module, case: Case) -> list[torch.Tensor]:
    with torch.no_grad():
        found = pytree.tree_leaves(module(*case.args, **case.kwargs))
    return [t for t in found if isinstance(t, torch.Tensor)]


def other_weights(module: nn.Module) -> nn.Module:
    """A copy with other parameters."""
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def close(given: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("name", marked([name for name in CASES if name not in RESIZED]))
def test_the_graph_of_the_module_of_a_graph_is_the_graph(name: str) -> None:
    case, model = CASES[name], traced(name)
    again = gp.trace(backend.build(model), case.args, case.kwargs, case.shapes)
    kit.assert_same_structure(again, model)
    assert [v.name for v in again.graph.inputs] == [v.name for v in model.graph.inputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", RESIZED)
def test_with_open_sizes_the_second_graph_computes_the_same(name: str) -> None:
    case, model = CASES[name], traced(name)
    module = backend.build(gp.trace(backend.build(model), case.args, case.kwargs, case.shapes))
    for args, kwargs in case.calls():
        close(*(tensors(m, case._replace(args=args, kwargs=kwargs)) for m in (module, case.module)))


def test_batchnorm_comes_round() -> None:
    case, model = CASES["conv-norm"], traced("conv-norm", fold_batchnorm=False)
    again = gp.trace(backend.build(model), case.args, fold_batchnorm=False)
    kit.assert_same_structure(again, model)


def test_an_exported_program_of_the_module_comes_round() -> None:
    case, model = CASES["nested, dynamic"], traced("nested, dynamic")
    program = torch.export.export(backend.build(model), case.args, dynamic_shapes=case.shapes)
    assert set(program.state_dict) == set(case.module.state_dict())
    close([program.module()(torch.ones(3, 4, 5))], [case.module(torch.ones(3, 4, 5))])
    again = gp.trace(program)
    assert kit.structure(again) == kit.structure(model)


@pytest.mark.parametrize("name", marked(list(CASES)))
def test_it_compiles_without_a_break(name: str) -> None:
    case, module = CASES[name], backend.build(traced(name))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=case.shapes is not None)
    for args, kwargs in case.calls():
        close(*(tensors(m, case._replace(args=args, kwargs=kwargs)) for m in (compiled, module)))


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(SAME_STATE))
def test_state_goes_both_ways(name: str) -> None:
    case = CASES[name]
    module, other = backend.build(traced(name)), other_weights(case.module)
    assert list(module.state_dict()) != [] or not case.module.state_dict()
    module.load_state_dict(other.state_dict())
    close(tensors(module, case), tensors(other, case))
    assert {n for n, _ in module.named_parameters()} == {n for n, _ in other.named_parameters()}
    fresh = copy.deepcopy(case.module)
    fresh.load_state_dict(module.state_dict())
    for key, tensor in other.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key
    close(tensors(backend.build(traced(name)), case), tensors(case.module, case))  # the graph has its own still


def test_norms_that_stay_come_with_all_their_state() -> None:
    case = CASES["conv-norm"]
    other = other_weights(case.module)
    for part in other.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.num_batches_tracked.fill_(7)
    module = backend.build(traced("conv-norm", fold_batchnorm=False))
    module.load_state_dict(other.state_dict())
    close(tensors(module, case), tensors(other, case))
    fresh = copy.deepcopy(case.module)
    fresh.load_state_dict(module.state_dict())
    assert fresh.stem[1].num_batches_tracked == 7


def test_a_folded_norm_is_not_taken_for_the_layer_it_is_in() -> None:
    case = CASES["conv-norm"]
    module, before = backend.build(traced("conv-norm")), tensors(case.module, case)
    assert "stem.0.weight" in dict(module.named_parameters())
    with pytest.raises(RuntimeError, match=r"Missing key.*stem\.0\.weight"):
        module.load_state_dict(case.module.state_dict())
    given = module.load_state_dict(case.module.state_dict(), strict=False)
    assert set(given.missing_keys) == {"stem.0.weight", "stem.0.bias", "deep.0.weight", "deep.0.bias"}
    assert {"stem.0.weight", "stem.1.running_mean"} <= set(given.unexpected_keys)
    assert "head.weight" not in given.unexpected_keys
    close(tensors(module, case), before)
    source = copy.deepcopy(case.module)
    given = source.load_state_dict(module.state_dict(), strict=False)
    assert "stem.0.weight_folded" in given.unexpected_keys
    close(tensors(source, case), before)


def test_a_module_takes_its_own_state_with_folded_norms() -> None:
    case = CASES["conv-norm"]
    module = backend.build(traced("conv-norm"))
    state = {k: v + 1 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    holder = nn.Sequential(module)
    holder.load_state_dict({f"0.{k}": v for k, v in state.items()})
    torch.testing.assert_close(module.get_parameter("stem.0.weight"), state["stem.0.weight_folded"])
    assert set(holder.state_dict()) == {f"0.{k}" for k in state}
    assert tensors(copy.deepcopy(module), case)[0].shape == (2, 5)


def test_a_norm_folded_by_a_pass_is_marked_too() -> None:
    case = CASES["conv-norm"]
    model, _ = kit.apply(traced("conv-norm", fold_batchnorm=False), FoldBatchnorm())
    module = backend.build(model)
    assert "stem.0.weight_folded" in module.state_dict()
    assert "stem.0.weight" in module.load_state_dict(case.module.state_dict(), strict=False).missing_keys
    close(tensors(module, case), tensors(case.module, case))


def test_recurrent_weights_in_another_order_keep_apart() -> None:
    case = CASES["lstm"]
    module = backend.build(traced("lstm"))
    given = module.load_state_dict(case.module.state_dict(), strict=False)
    assert "lstm.weight_ih_l0" in given.missing_keys
    assert not {"head.weight", "head.bias"} & {*given.missing_keys, *given.unexpected_keys}
    close(tensors(module, case), tensors(case.module, case))


def test_tied_weights_are_one_parameter_under_both_names() -> None:
    module = backend.build(traced("tied"))
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")
    copied = copy.deepcopy(module)
    assert copied.get_parameter("embed.weight") is copied.get_parameter("head.weight")
    assert copied.get_parameter("embed.weight") is not module.get_parameter("embed.weight")
    module(torch.tensor([[1, 2, 3]])).sum().backward()
    assert module.get_parameter("first.weight").grad is not None


def test_layers_are_linear_calls_under_the_nodes_names_with_weights_as_torch_has_them() -> None:
    module = backend.build(traced("nested"))
    calls = {n.name: n.target for n in module.graph.nodes if n.op == "call_function"}
    linear = torch.nn.functional.linear
    assert calls["parts_a_0_Add"] is linear  # with a bias
    assert calls["parts_a_1_1_MatMul"] is linear  # without one
    assert "parts_a_0_MatMul" not in calls
    assert module.get_parameter("parts.a.0.weight").shape == (7, 5)
    middle = backend.build(traced("nested"), outputs=["val_1"])
    assert middle(*CASES["nested"].args)[0].shape == (2, 3, 7)


def test_buffers_that_are_not_saved_are_not_in_the_state() -> None:
    module = backend.build(traced("buffers"))
    for one in (module, copy.deepcopy(module)):
        assert set(one.state_dict()) == {"offset", "table"}
        assert {"steps", "plain"} <= {n for n, _ in one.named_buffers()}
