"""A graph becomes a module: call signature, names, memory, refusals."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch

import graphpress as gp
from graphpress.backends import fx
from graphpress.backends.fx import shelf
from graphpress.errors import BadRequest, Unsupported
from tests import kit

NETWORK = """
g (float[N, 4] x, float[4, 3] y) => (float[N, 3] z)
<float[4, 3] "fc.weight" = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float half = {0.5}, int64[1] odd = {7}> {
    a = Relu(x)
    [first] b = MatMul(a, "fc.weight")
    [second] c = Mul(b, half)
    d = MatMul(x, y)
    z = Add(c, d)
}
"""


def network() -> ir.Model:
    return kit.parse(NETWORK.replace('"fc.weight"', "fc_weight"))


def named() -> ir.Model:
    """The network with a dotted name, which ONNX text cannot write."""
    model = network()
    model.graph.initializers["fc_weight"].name = "fc.weight"
    return model


def test_the_call_takes_inputs_by_order_and_by_name() -> None:
    module, feeds = fx.build(named()), kit.random_feeds(network())
    x, y = map(torch.from_numpy, feeds.values())
    expected = kit.run(network(), feeds)["z"]
    for given in (module(x, y), module(x, y=y), module(y=y, x=x)):
        np.testing.assert_allclose(given.detach().numpy(), expected, rtol=1e-6, atol=1e-6)


def test_several_outputs_are_a_tuple_and_inner_values_can_be_asked_for() -> None:
    module = fx.build(network(), outputs=["b", "c"])
    x = torch.ones(2, 4)
    b, c = module(x, torch.ones(4, 3))
    assert torch.equal(b / 2, c)


def test_calls_and_parameters_have_the_names_of_the_graph() -> None:
    module = fx.build(named())
    assert list(dict(module.named_parameters())) == ["fc.weight"]
    code = module.print_readable(print_output=False)
    for line in ("first = torch.matmul(", "second = ", "self.fc.weight", "0.5"):
        assert line in code
    assert not module.training


def test_weights_lie_in_the_graphs_memory_until_the_first_gradient() -> None:
    model = named()
    stored = np.arange(12, dtype=np.float32).reshape(4, 3)
    model.graph.initializers["fc.weight"].const_value = ir.Tensor(stored)
    module = fx.build(model)
    weight = module.get_parameter("fc.weight")
    assert weight.data_ptr() == stored.ctypes.data
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(2, 4), torch.ones(4, 3)).sum().backward()
    optimiser.step()
    assert module.get_parameter("fc.weight") is weight
    assert (weight.detach().numpy() != stored).all()
    np.testing.assert_array_equal(stored, np.arange(12).reshape(4, 3))


def test_load_state_dict_does_not_write_to_the_graph() -> None:
    model = named()
    stored = np.zeros((4, 3), np.float32)
    model.graph.initializers["fc.weight"].const_value = ir.Tensor(stored)
    module = fx.build(model)
    module.load_state_dict({"fc.weight": torch.ones(4, 3)})
    assert module.get_parameter("fc.weight").sum() == 12
    assert not stored.any()


def test_read_only_weights_can_be_trained(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mapped") / "model.onnx"
    gp.save(network(), path, external=True)
    module = gp.to_torch(path)
    module(torch.ones(2, 4), torch.ones(4, 3)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    shelf.disown(module)
    with torch.no_grad():
        module.get_parameter("fc_weight").zero_()


def test_a_copy_of_the_module_has_weights_of_its_own() -> None:
    module = fx.build(named())
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_parameter("fc.weight").zero_()
    assert module.get_parameter("fc.weight").abs().sum() > 0
    assert not other(torch.ones(2, 4), torch.zeros(4, 3)).any()


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((torch.ones(2, 4),), {}, "input 'y': the input is missing"),
        ((torch.ones(2, 4),), {"w": torch.ones(4, 3)}, "input 'w': the model has no such input"),
        ((torch.ones(2, 5), torch.ones(4, 3)), {}, r"input 'x': has shape \(2, 5\), the model wants \(\?, 4\)"),
        ((torch.ones(2, 4), torch.ones(4, 3), 1), {}, "3 arguments given, the model takes 2"),
        ((1.0, torch.ones(4, 3)), {}, "input 'x': is a float, not a tensor"),
        ((torch.ones(2, 4, dtype=torch.int64), torch.ones(4, 3)), {}, "input 'x': is torch.int64"),
    ],
)
def test_a_wrong_call_is_one_clear_error(args: tuple[object, ...], kwargs: dict[str, object], what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        fx.build(network())(*args, **kwargs)


def test_an_unknown_operator_names_itself_its_version_its_node_and_the_nearest() -> None:
    model = kit.parse("g (float[2] x) => (float[2] y) { [odd] y = Softsing(x) }")
    with pytest.raises(Unsupported, match=r"'odd': unsupported: ai.onnx::Softsing of version 21. .* Softsign"):
        fx.build(model)


def test_an_unknown_attribute_is_refused_with_its_node() -> None:
    model = kit.parse("g (float[2] x) => (float[2] y) { [odd] y = LeakyRelu<slope = 0.5>(x) }")
    with pytest.raises(Unsupported, match=r"node 'odd'.*'slope'"):
        fx.build(model)


def test_cuda_asked_for_and_absent() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(BadRequest, match="target 'torch-cuda': torch sees no CUDA device"):
        gp.lower(network(), "torch-cuda")


def test_the_module_runs_on_meta_tensors() -> None:
    module = fx.build(network()).to("meta")
    given = module(torch.empty(7, 4, device="meta"), torch.empty(4, 3, device="meta"))
    assert given.shape == (7, 3)
    assert given.is_meta


def test_the_module_compiles_without_a_break_for_any_batch() -> None:
    module = fx.build(network())
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for n in (2, 5):
        x, y = torch.randn(n, 4), torch.randn(4, 3)
        torch.testing.assert_close(compiled(x, y), module(x, y), rtol=0, atol=0)


def test_functions_of_the_model_are_inlined() -> None:
    model = kit.parse(
        """
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 21]> twice (a) => (b) { b = Add(a, a) }
        """
    )
    assert fx.build(model)(torch.ones(2)).tolist() == [2.0, 2.0]


def test_names_that_python_or_modules_cannot_have_are_changed() -> None:
    model = kit.parse(
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> { a = Add(x, w) y = Add(a, v) }"
    )
    model.graph.initializers["w"].name = "training"
    model.graph.initializers["v"].name = "a b/c:0"
    module = fx.build(model)
    assert module(torch.zeros(2)).tolist() == [4.0, 6.0]
    assert sorted(dict(module.named_parameters())) == ["a b/c:0", "training_1"]


def test_types_that_the_file_does_not_state_are_inferred() -> None:
    graph = kit.parse(
        """g (uint8[2] x) => (bool[2] y) {
            a = Cast<to = 12>(x)  nothing = Sub(a, a)  most = Sub(nothing, a)  y = Greater(most, a)
        }"""
    )  # uint32 in between, where less than nothing is a lot
    assert fx.build(graph)(torch.tensor([1, 2], dtype=torch.uint8)).tolist() == [True, True]


def test_backward_through_what_has_no_derivative_names_it() -> None:
    """torch's own error says only that something does not require grad."""
    source = (
        "g (float[2] x) => (float[2] y) { q = Relu(x) [largest] i = ArgMax<axis = 0>(q) [cast] y = Cast<to = 1>(i) }"
    )
    module = gp.to_torch(kit.parse(source.replace("float[2] y", "float[1] y")))
    x = torch.randn(2, requires_grad=True)
    for student in (module, copy.deepcopy(module)):
        with pytest.raises(Unsupported, match=r"node 'largest' \(ArgMax\): the operator has no derivative"):
            student(x).sum().backward()
    assert not module(x.detach()).requires_grad
    with torch.no_grad():
        assert not module(x).requires_grad


def test_backward_through_exact_quantizers_names_the_way_out() -> None:
    source = (
        "g (float[2] x, float s) => (float[2] y) { [quantize] q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"
    )
    x, s = torch.randn(2, requires_grad=True), torch.tensor(0.1)
    with pytest.raises(Unsupported, match=r"node 'quantize'.*straight-through"):
        gp.to_torch(kit.parse(source), quantizers="exact")(x, s).sum().backward()
    gp.to_torch(kit.parse(source))(x, s).sum().backward()
    assert x.grad is not None and x.grad.sum() > 0


@pytest.mark.parametrize("hostile", ['w"), exit(1), ("', "w\\", "w\n    raise SystemExit  # "])
def test_a_name_cannot_put_code_into_the_module(hostile: str) -> None:
    """fx writes names of attributes into Python source as they are."""
    model = kit.parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [n] y = Add(x, w) }")
    model.graph.initializers["w"].name = hostile
    model.graph.inputs[0].name = f"x{hostile}"
    model.graph.name = f"g{hostile}"
    model.graph.node("n").name = f"n{hostile}"
    assert fx.build(model)(torch.zeros(2)).tolist() == [1.0, 2.0]
