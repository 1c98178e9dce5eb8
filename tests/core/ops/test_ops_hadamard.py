"""The Hadamard operator: its body in stock ONNX Runtime, its torch kernel and the matrix it stands for are one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.hadamard import OP, is_sylvester, sylvester
from tests import kit

TYPES = {"float": np.float32, "double": np.float64, "float16": np.float16}


def model(left: np.ndarray, right: np.ndarray, dims: str, kind: str = "double", fast: bool = True) -> ir.Model:
    made = kit.parse(f"g ({kind}[{dims}] x) => ({kind}[{dims}] y) {{ y = Identity(x) }}")
    node = made.graph.node(0)
    constants = [edit.add_const(made.graph, f.astype(TYPES[kind]), "factor") for f in (left, right)]
    flags = {f"fast_{n}": int(fast and is_sylvester(f)) for n, f in zip(("left", "right"), (left, right), strict=True)}
    new = edit.new_node(OP.name, [node.inputs[0], *constants], flags, before=node, domain=DOMAIN)
    edit.like(new.outputs[0], node.outputs[0])
    edit.replace(node.outputs[0], new.outputs[0])
    edit.remove([node])
    attach(made, OP)
    verify.check(made)
    return made


def factor(order: int, power: bool, seed: int = 0) -> np.ndarray:
    """Orthogonal: Sylvester's, or a random one."""
    if power:
        return sylvester(order) / np.sqrt(order)
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(order, order)))[0]


CASES = [
    (4, 8, True, True),
    (3, 5, False, False),
    (8, 3, True, False),
    (1, 6, True, False),
    (2, 2, True, True),
    (5, 1, False, True),
]


@pytest.mark.parametrize(("a", "b", "left_fast", "right_fast"), CASES)
@pytest.mark.parametrize("runs", [1, 3])
def test_body_and_kernel_are_the_kronecker_product(
    a: int, b: int, left_fast: bool, right_fast: bool, runs: int
) -> None:
    torch = pytest.importorskip("torch")
    left, right = factor(a, left_fast), factor(b, right_fast, 1)
    x = np.random.default_rng(2).normal(size=(2, 5, runs * a * b))
    wanted = (x.reshape(2, 5, runs, -1) @ np.kron(left, right).T).reshape(x.shape)
    made = model(left, right, f"2, N, {x.shape[-1]}")
    np.testing.assert_allclose(kit.run(made, {"x": x})["y"], wanted, rtol=0, atol=1e-13)
    flags = {k: v.value for k, v in made.graph.node(0).attributes.items()}
    assert flags == {"fast_left": int(is_sylvester(left)), "fast_right": int(is_sylvester(right))}
    got = OP.kernel()(*(torch.from_numpy(t) for t in (x, left, right)), **flags)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-13)


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_transform_is_its_own_inverse_and_keeps_lengths(power: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    n = 2**power
    h = torch.from_numpy(sylvester(n) / np.sqrt(n))
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, n * n)))
    once = OP.kernel()(x, h, h, fast_left=1, fast_right=1)
    twice = OP.kernel()(once, h, h, fast_left=1, fast_right=1)
    torch.testing.assert_close(twice, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(once.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_kernel_and_body_agree_in_short_types(kind: str) -> None:
    torch = pytest.importorskip("torch")
    left, right = factor(4, True).astype(TYPES[kind]), factor(3, False).astype(TYPES[kind])
    x = np.random.default_rng(0).normal(size=(4, 24)).astype(TYPES[kind])
    body = kit.run(model(left, right, "4, 24", kind), {"x": x})["y"]
    kernel = OP.kernel()(*(torch.from_numpy(t) for t in (x, left, right)), fast_left=1, fast_right=0)
    assert kernel.numpy().dtype == x.dtype
    np.testing.assert_allclose(kernel.numpy(), body, rtol=0, atol=8 * np.finfo(TYPES[kind]).eps)


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(length: int) -> None:
    torch = pytest.importorskip("torch")
    h = factor(4, True)
    x = np.ones((2, length, 16))
    out = kit.run(model(h, h, "2, N, 16"), {"x": x})["y"]
    assert out.shape == x.shape
    kernel = OP.kernel()(*(torch.from_numpy(t) for t in (x, h, h)), fast_left=1, fast_right=1)
    np.testing.assert_allclose(out, kernel.numpy(), atol=1e-15)


def test_gradients_pass_the_transform() -> None:
    torch = pytest.importorskip("torch")
    h, q = torch.from_numpy(factor(4, True)), torch.from_numpy(factor(3, False))
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: OP.kernel()(v, h, q, fast_left=1, fast_right=0), (x,))


@given(st.integers(0, 5))
def test_sylvester_matrices_are_known_and_others_are_not(power: int) -> None:
    n = 2**power
    h = sylvester(n)
    np.testing.assert_array_equal(h @ h.T, n * np.eye(n))
    assert is_sylvester(h * 0.3) and not is_sylvester(-h) and not is_sylvester(h * -0.5) and not is_sylvester(h * 0)
    if n > 1:
        assert not is_sylvester(h[::-1]) and not is_sylvester(np.ones((n, n)))
    assert not is_sylvester(np.ones((3, 3)))


def test_multiply_adds_count_both_products() -> None:
    made = model(factor(4, True), factor(3, False), "N, 5, 24")
    assert OP.macs is not None and OP.macs(made.graph.node(0), (2, 5, 24)) == 2 * 5 * 24 * (4 + 3)


def test_a_factor_that_does_not_say_that_it_is_fast_is_a_matrix_like_any_other() -> None:
    torch = pytest.importorskip("torch")
    left, right = factor(4, False), factor(3, False, 1)
    made = model(left, right, "2, 24")
    node = made.graph.node(0)
    for name in list(node.attributes):
        del node.attributes[name]
    node.inputs[0].shape = None  # a size that is not known divides
    verify.check(made)
    x = np.random.default_rng(2).normal(size=(2, 24))
    got = OP.kernel()(*(torch.from_numpy(t) for t in (x, left, right)))
    wanted = (x.reshape(2, 2, 12) @ np.kron(left, right).T).reshape(x.shape)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-13)


def test_the_torch_backend_reads_three_tensors_and_two_keywords() -> None:
    pytest.importorskip("torch")
    from graphpress.backends.fx.operands import signature

    read = signature(OP.kernel())
    assert (read.inputs, read.names) == (("Tensor",) * 3, ("x", "left", "right"))
    assert read.keywords == {"fast_left", "fast_right"} and not read.many


def test_the_body_is_written_in_the_opset_that_it_asks_for() -> None:
    assert OP.function().opset_imports[""] == OP.opset


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda n: n.replace_input_with(1, None), "takes x, left and right"),
        (lambda n: n.resize_inputs(2), "takes x, left and right"),
        (lambda n: n.resize_outputs(2), "gives one output"),
        (lambda n: setattr(n.inputs[0], "type", ir.TensorType(ir.DataType.INT64)), "turns floats, not INT64"),
        (lambda n: edit.overwrite(n.inputs[1], np.ones((0, 0))), "left is a square matrix"),
        (lambda n: n.attributes.add(ir.AttrInt64("fast_right", 1)), "right is no Sylvester matrix"),
        (lambda n: setattr(n.inputs[0], "shape", ir.Shape([2, 25])), "12 divides the last axis"),
        (lambda n: setattr(n.inputs[0], "type", ir.TensorType(ir.DataType.FLOAT)), "left has the type of x"),
        (lambda n: edit.overwrite(n.inputs[1], np.ones((4, 2))), "left is a square matrix"),
        (lambda n: n.replace_input_with(2, n.inputs[0]), "right is a constant"),
    ],
)
def test_misuse_is_refused(spoil, rule: str) -> None:
    made = model(factor(4, True), factor(3, False), "2, 24")
    spoil(made.graph.node(0))
    with pytest.raises(VerifyError, match=rule):
        verify.check(made)
