"""The CUDA target on a GPU: kernels equal their references, modules equal those of the CPU. Skipped without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphpress as gp
from graphpress.backends.fx.kernels.base import Kernel
from graphpress.backends.fx.kernels.float8_linear import FLOAT8, Float8Linear
from graphpress.backends.fx.kernels.int8_linear import DynamicInt8Linear, StaticInt8Linear
from graphpress.backends.fx.kernels.weight_only import WeightOnlyLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
RNG = np.random.default_rng(0)


def tensor(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(size=shape).astype(np.float32))


def codes(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(low, high + 1, shape).astype(np.int8))


SCALE, BIAS = tensor(48).abs() * 0.01 + 0.001, tensor(48)
KERNELS: dict[str, Kernel] = {
    "dynamic": DynamicInt8Linear(codes(-127, 127, 48, 72), SCALE, BIAS),
    "token": DynamicInt8Linear(codes(-127, 127, 48, 72), SCALE, BIAS, per_token=True),
    "static": StaticInt8Linear(codes(-127, 127, 48, 72), SCALE, BIAS, input_scale=0.03, input_zero=4),
}


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("name", KERNELS)
def test_integer_products_equal_the_reference(name: str, rows: int) -> None:
    kernel, x = KERNELS[name].to("cuda"), tensor(rows, 72).cuda()
    assert kernel.refusal("cuda") is None
    torch.testing.assert_close(kernel(x), kernel.reference(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 16])
def test_four_bit_weights_equal_the_reference_in_bfloat16(rows: int) -> None:
    kernel = WeightOnlyLinear(codes(-8, 7, 64, 256), tensor(64, 4).abs() * 0.1, bits=4).to("cuda")
    x = tensor(rows, 256).cuda().bfloat16()
    torch.testing.assert_close(kernel(x).float(), kernel.reference(x).float(), rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize("scale", [torch.tensor(0.01), torch.full((32,), 0.01)], ids=["tensor-wise", "row-wise"])
def test_float8_products_equal_the_reference(scale: torch.Tensor) -> None:
    kernel = Float8Linear(tensor(32, 64).to(FLOAT8), scale, input_scale=0.02).to("cuda")
    if (why := kernel.refusal("cuda")) is not None:
        pytest.skip(why)
    x = tensor(32, 64).cuda()
    torch.testing.assert_close(kernel(x).float(), kernel.reference(x).float(), rtol=2**-7, atol=1e-3)


def test_a_lowered_model_equals_that_of_the_cpu() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32)).eval()
    x = tensor(40, 64)
    model, _ = gp.compile(gp.trace(layer, (x,)), "w8a8-dynamic", target="torch-cuda", gate=False, prove=False)
    with torch.no_grad():
        module = gp.lower(model, "torch-cuda")
        given = module(x.cuda())
        torch.testing.assert_close(given.cpu(), gp.lower(model, "torch-cpu")(x), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(torch.compile(module, mode="reduce-overhead")(x.cuda()), given, rtol=1e-5, atol=1e-4)
    assert {r.verdict for r in gp.audit(model, "torch-cuda").sites if r.macs} == {"integer"}
