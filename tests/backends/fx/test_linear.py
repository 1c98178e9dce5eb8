"""Gemm, MatMul, Einsum, Det: old opsets, integers, half precision, gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import products
from tests.backends.fx.single import doubles, in_onnx, in_torch, module, normal, same

RANKS = [((4,), (4,)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (2, 4, 5)), ((6, 1, 3, 4), (2, 4, 5))]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, -2.0), (0.25, 0.5)])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
def test_gemm(trans_a: int, trans_b: int, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    a, b = normal(3, 4), normal(4, 5, seed=1)
    c = None if bias is None else normal(*bias, seed=2)
    given = (a.T.copy() if trans_a else a, b.T.copy() if trans_b else b, *(() if c is None else (c,)))
    expected = alpha * a @ b + (0 if c is None else beta * c)
    attributes = {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b}
    for constants in ([], [1, 2] if bias is not None else [1]):
        same(in_torch("Gemm", *given, constants=constants, **attributes), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("bias", [(1,), (5,), (3, 5), (3, 1)])
def test_gemm_of_old_opsets(opset: int, bias: tuple[int, ...]) -> None:
    a, b, c = normal(3, 4), normal(4, 5, seed=1), normal(*bias, seed=2)
    wide = {} if bias == (3, 5) else {"broadcast": 1}
    same(in_torch("Gemm", a, b, c, opset=opset, alpha=2.0, **wide), 2 * a @ b + c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_products_of_integers_wrap(dtype: Any) -> None:
    info, rng = np.iinfo(dtype), np.random.default_rng(0)
    a, b = (rng.integers(info.min, info.max, s, dtype=dtype, endpoint=True) for s in ((2, 3, 4), (4, 5)))
    with np.errstate(over="ignore"):
        same(in_torch("MatMul", a, b), np.matmul(a, b))
        same(in_torch("Gemm", a[0], b), np.matmul(a[0], b))
        same(in_torch("Gemm", a[0], b, b[:1, :3].T.copy()[:, :1]), np.matmul(a[0], b) + b[:1, :3].T)
        same(in_torch("Einsum", a, b, equation="abc,cd->bd"), np.einsum("abc,cd->bd", a, b))


def test_gemm_of_integers_with_factors() -> None:
    a, b, c = (np.array(v, np.int32) for v in ([[1, 2], [3, 4]], [[5, 6], [7, 8]], [3, 5]))
    given = in_torch("Gemm", a, b, c, alpha=2.0, beta=3.0)
    same(given, 2 * a @ b + 3 * c)


@pytest.mark.parametrize(("left", "right"), [*RANKS, ((2, 3, 4), (4,))])
def test_matmul_of_all_ranks(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = normal(*left), normal(*right, seed=1)
    same(np.asarray(in_torch("MatMul", a, b)), np.asarray(np.matmul(a, b)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("left", "right"), RANKS)
def test_products_of_integers_without_a_kernel(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")  # where torch has no integer products; the numbers stay here

    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-9, 9, s)) for s in (left, right))
    given = products.integer_matmul(a.as_subclass(Elsewhere), b.as_subclass(Elsewhere)).as_subclass(torch.Tensor)
    assert torch.equal(given, torch.matmul(a, b))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]), ("ij,jk", [(2, 3), (3, 4)]), ("bij,bjk->bik", [(5, 2, 3), (5, 3, 4)]),
        ("i->", [(4,)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]), ("i,j->ij", [(2,), (3,)]),
        ("...ij,...jk->...ik", [(5, 2, 3), (5, 3, 4)]), ("Ab, bA -> A", [(2, 3), (3, 2)]),
        ("aB,Bc", [(2, 3), (3, 4)]), ("ba", [(2, 3)]), ("...a->...", [(2, 3, 4)]), ("i,i,ij->j", [(3,), (3,), (3, 4)]),
        ("b...,b->...", [(2, 3, 4), (2,)]), (",ij->ji", [(), (2, 3)]),
    ],
)  # fmt: skip
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    xs = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    expected = np.asarray(np.einsum(equation.replace(" ", ""), *xs))
    same(np.asarray(in_torch("Einsum", *xs, equation=equation)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_determinant(dtype: Any) -> None:
    x = normal(2, 3, 4, 4, dtype=dtype)
    exact = np.linalg.det(x.astype(np.float64))
    np.testing.assert_allclose(
        in_torch("Det", x, opset=22),
        exact,
        rtol=2e-3 if dtype == np.float16 else 1e-4,
        atol=1e-3 if dtype == np.float16 else 1e-5,
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_sums_in_float(dtype: Any) -> None:
    a, b = normal(3, 300).astype(dtype), normal(300, 5, seed=1).astype(dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    for given in (in_torch("MatMul", a, b), in_torch("Gemm", a, b)):
        assert given.dtype == dtype
        np.testing.assert_allclose(
            given.astype(np.float64), exact, rtol=2 * float(ml_dtypes.finfo(dtype).eps), atol=2e-2
        )


def test_gradients() -> None:
    a, b, c = doubles(3, 4), doubles(5, 4, seed=1), doubles(5, seed=2)
    arrays = [t.detach().numpy() for t in (a, b, c)]
    assert torch.autograd.gradcheck(module("Gemm", *arrays, transB=1), (a, b, c))
    assert torch.autograd.gradcheck(module("Gemm", *arrays, transB=1, alpha=0.5, beta=2.0), (a, b, c))
    assert torch.autograd.gradcheck(module("Einsum", *arrays[:2], equation="ij,kj->ik"), (a, b))
    assert torch.autograd.gradcheck(module("Det", normal(2, 3, 3)), (doubles(2, 3, 3),))


def test_linear_layers_read_as_torch() -> None:
    assert "torch.matmul(x0, x1)" in module("MatMul", normal(2, 3), normal(3, 4)).code
    assert in_onnx("Gemm", normal(2, 3), normal(4, 3), transB=1).shape == (2, 4)
