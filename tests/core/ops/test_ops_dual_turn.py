"""The dual turn: its body in stock ONNX Runtime and its torch kernel are one matrix, and misuse is refused."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.dual_turn import OP
from tests import kit

ORDER = np.random.default_rng(5).permutation(12)


def turns(seed: int) -> np.ndarray:
    """Three orthogonal matrices of order 4."""
    return np.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 4, 4)))[0])


def model(change: Mapping[str, np.ndarray] = {}, dims: str = "2, N, 12") -> ir.Model:
    made = kit.parse(f"g (double[{dims}] x) => (double[{dims}] y) {{ y = Identity(x) }}")
    node = made.graph.node(0)
    arrays = {"first": turns(1), "order": ORDER, "second": turns(2)} | dict(change)
    held = [edit.add_const(made.graph, a, n) for n, a in arrays.items()]
    new = edit.new_node(OP.name, [node.inputs[0], *held], {}, before=node, domain=DOMAIN)
    edit.like(new.outputs[0], node.outputs[0])
    edit.replace(node.outputs[0], new.outputs[0])
    edit.remove([node])
    attach(made, OP)
    return made


def test_body_and_kernel_are_the_product_of_three_matrices() -> None:
    torch = pytest.importorskip("torch")
    first, second = np.zeros((12, 12)), np.zeros((12, 12))
    for i in range(3):
        first[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] = turns(1)[i]
        second[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] = turns(2)[i]
    x = np.random.default_rng(0).normal(size=(2, 5, 12))
    wanted = x @ first @ np.eye(12)[:, ORDER] @ second
    made = model()
    verify.check(made)
    np.testing.assert_allclose(kit.run(made, {"x": x})["y"], wanted, rtol=0, atol=1e-13)
    assert kit.run(made, {"x": x[:, :0]})["y"].shape == (2, 0, 12)
    got = OP.kernel()(*(torch.from_numpy(a) for a in (x, turns(1), ORDER, turns(2))))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"second": turns(1)[:2]}, "first and second have one shape"),
        ({"first": turns(1)[:, :3]}, "first holds square matrices"),
        ({"first": turns(1).astype(np.float32)}, "first has the type of x"),
        ({"order": np.zeros(12, np.int64)}, "order is a constant, int64, and holds each of 12 channels once"),
        ({"order": ORDER.astype(np.int32)}, "order is a constant, int64"),
    ],
)
def test_misuse_is_refused(change: dict[str, np.ndarray], why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        verify.check(model(change))


def test_other_widths_are_refused() -> None:
    with pytest.raises(VerifyError, match=r"the last axis \(24\) has 12 channels"):
        verify.check(model(dims="2, N, 24"))
