"""Activations are quantized at run time only where the runtime then computes in integers, else the reason is said."""

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.passes.quantize.quantize import Quantize
from graphpress.types import Role
from tests.passes import quantizing

IMAGE, ROWS, BATCH = (20, 8, 6, 6), (20, 32), (20, 5, 4, 32)
# case -> (body, shape of x, shape of the weights, what the reason says; "" where there is an integer kernel)
CASES = {
    "conv": ("Conv(x, w)", IMAGE, (12, 8, 3, 3), "no dynamic kernel for Conv"),
    "grouped": ("Conv<group = 2>(x, w)", IMAGE, (12, 4, 3, 3), "no dynamic kernel for Conv"),
    "transposed": ("ConvTranspose(x, w)", IMAGE, (8, 12, 3, 3), "no dynamic kernel for ConvTranspose"),
    "gemm": ("Gemm(x, w)", ROWS, (32, 16), ""),
    "transB": ("Gemm<transB = 1>(x, w)", ROWS, (16, 32), ""),
    "computed": ("Gemm<transB = 1>(x, w, m)", ROWS, (16, 32), ""),
    "alpha": ("Gemm<transB = 1, alpha = 0.5>(x, w)", ROWS, (16, 32), "alpha is 0.5"),
    "beta": ("Gemm<transB = 1, beta = 0.5>(x, w, m)", ROWS, (16, 32), "beta is 0.5"),
    "first": ("Gemm<transB = 1>(w, x)", ROWS, (16, 32), "first operand"),
    "vector": ("MatMul(x, w)", ROWS, (32,), "by a vector"),
    "column": ("MatMul(x, w)", ROWS, (32, 1), ""),
    "batch": ("MatMul(x, w)", BATCH, (5, 32, 16), "by a batch of matrices"),
}


def model(case: str) -> ir.Model:
    body, shape, weights, _ = CASES[case]
    x, w = (", ".join(map(str, s)) for s in (shape, weights))
    text = f"g (float[{x}] x, float[{w}] w) => (float y) {{ m = ReduceMean<keepdims = 0>(x) [a] y = {body} }}"
    if " m)" not in body:
        text = text.replace("m = ReduceMean<keepdims = 0>(x) ", "")
    return quantizing.model(text, {"w": np.random.default_rng(0).normal(size=weights)})


@pytest.mark.parametrize("case", CASES)
def test_an_integer_kernel_follows_or_the_reason_is_said(case: str) -> None:
    _, shape, _, reason = CASES[case]
    data = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    _, report = gp.compile(model(case), "w8a8-dynamic", data, gate=False)
    at_run_time = Role.ACTIVATION in {s.role for s in report.plan.of("a")} if report.plan else False
    site = next(s for s in report.sites if s.node == "a")
    assert at_run_time is (site.verdict == "integer") is (not reason)
    said = [skip.why for p in report.passes for skip in p.skips if p.name == "quantize" and skip.where == "a"]
    assert any(reason in why for why in said) if reason else not said


def test_where_rules_of_several_kernels_are_broken_the_one_that_fits_best_is_named() -> None:
    """transB = 1 breaks a rule of the kernel for transB = 0, which is not what is the matter."""
    said = quantizing.reasons(model("alpha"), Quantize(mode="dynamic"))["a"]
    assert "alpha is 0.5, the kernel wants 1" in said and "transB" not in said


def test_a_bias_that_is_computed_has_no_integer_kernel_in_torch() -> None:
    assert "input 2 is computed" in quantizing.reasons(model("computed"), Quantize(mode="dynamic"), "torch-cpu")["a"]
    assert not quantizing.reasons(model("transB"), Quantize(mode="dynamic"), "torch-cpu")
