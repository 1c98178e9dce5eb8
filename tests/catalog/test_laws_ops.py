"""What every operator of the dialect keeps: the kernel is the body, misuse is refused, multiply-adds are a number."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.ops.base import DOMAIN
from tests import kit
from tests.catalog import op_samples

OPS = catalog.ops()


def test_every_operator_has_a_sample() -> None:
    assert set(op_samples.MODELS) == set(OPS), "put a use of the operator down in tests/catalog/op_samples.py"


def sample(name: str) -> tuple[ir.Model, ir.Node]:
    model = op_samples.MODELS[name]()
    verify.check(model)
    (node,) = [n for n in model.graph if n.domain == DOMAIN]
    assert node.op_type == name
    return model, node


def by_kernel(name: str, node: ir.Node, feeds: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """(inputs, outputs) of the torch kernel."""
    pytest.importorskip("torch")
    from graphpress.backends.fx import dtypes

    arrays = [edit.constant(v) if edit.is_constant(v) else feeds[v.name or ""] for v in node.inputs if v is not None]
    inputs = [dtypes.from_numpy(np.array(a), ir.DataType.from_numpy(a.dtype).name) for a in arrays]
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point() and tensor.element_size() > 1)
    attributes = {k: list(a.value) if isinstance(a.value, tuple) else a.value for k, a in node.attributes.items()}
    found = OPS[name].kernel()(*inputs, **attributes)
    return inputs, list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_gives_what_the_body_gives_in_onnx_runtime(name: str, seed: int) -> None:
    model, node = sample(name)
    feeds = op_samples.feeds(model, seed)
    _, found = by_kernel(name, node, feeds)
    for got, wanted in zip(found, kit.run(model, feeds).values(), strict=True):
        assert got.detach().numpy().dtype == wanted.dtype and tuple(got.shape) == wanted.shape
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", sorted(op_samples.SMOOTH))
def test_the_kernels_gradient_is_the_slope_of_the_body(name: str) -> None:
    """Along random directions: a central difference of the body in ONNX Runtime, against autograd."""
    model, node = sample(name)
    feeds = op_samples.feeds(model)
    inputs, (output, *_) = by_kernel(name, node, feeds)
    rng = np.random.default_rng(0)
    away = np.asarray(rng.normal(size=tuple(output.shape)), np.float32)
    (output * output.new_tensor(away)).sum().backward()
    value = node.inputs[0]
    assert value is not None and value.name is not None
    along = np.asarray(rng.normal(size=feeds[value.name].shape), np.float32)
    step = np.float32(1e-2)

    def at(moved: np.ndarray) -> np.ndarray:
        return next(iter(kit.run(model, feeds | {str(value.name): moved}).values())).astype(np.float64)

    here, by = feeds[value.name], step * along
    slope = float(((at(np.asarray(here + by)) - at(np.asarray(here - by))) * away).sum()) / (2 * float(step))
    assert float((inputs[0].grad.numpy() * along).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("name", sorted(OPS))
def test_misuse_is_refused(name: str) -> None:
    for damage in ("inputs", "outputs", "missing"):
        _, node = sample(name)
        if damage == "inputs":
            node.resize_inputs(len(node.inputs) + 1)
            node.replace_input_with(len(node.inputs) - 1, node.inputs[0])
        elif damage == "missing":
            node.replace_input_with(len(node.inputs) - 1, None)
        else:
            node.resize_outputs(len(node.outputs) + 1)
            node.outputs[-1].name = "more"
        with pytest.raises(VerifyError, match=f"graphpress::{name}"):
            OPS[name].verify(node)


@pytest.mark.parametrize("name", sorted(OPS))
def test_multiply_adds_are_a_number(name: str) -> None:
    model, node = sample(name)
    assert node.inputs[0] is not None
    x = op_samples.feeds(model).get(node.inputs[0].name or "", np.zeros(1)).shape
    macs, products = OPS[name].macs, {n.op_type for n in OPS[name].function().all_nodes()} & {"MatMul", "Einsum"}
    assert (macs is not None) == bool(products)
    if macs is not None:
        found = macs(node, x)
        assert isinstance(found, int) and found > 0
        assert macs(node, (2 * x[0], *x[1:])) == 2 * found


@pytest.mark.parametrize("name", sorted(OPS))
def test_the_body_is_made_of_standard_operators(name: str) -> None:
    function = OPS[name].function()
    assert set(function.opset_imports) <= {"", DOMAIN}
    assert {n.domain for n in function.all_nodes()} == {""}
    known = {s.name for s in onnx.defs.get_all_schemas()}
    assert {n.op_type for n in function.all_nodes()} <= known


def test_bodies_are_the_same_bytes_in_every_process() -> None:
    """onnxscript orders several results of a branch as a set of texts, by the seed of hashing."""
    code = (
        "import hashlib, onnx_ir as ir; from graphpress import catalog; "
        "bodies = (ir.to_proto(o.function()).SerializeToString() for o in catalog.ops().values()); "
        "print(*(hashlib.sha256(b).hexdigest() for b in bodies))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "5")  # these two gave different bodies of ACM
    }
    assert len(found) == 1
