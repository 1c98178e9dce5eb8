"""Semi-structured products: what is refused and why; on a GPU that they equal dense ones."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

import graphpress as gp
from graphpress.backends.fx import choice
from graphpress.backends.fx.kernels.sparse24 import Sparse24Linear, available
from graphpress.errors import Unsupported
from graphpress.passes.prune import masks
from graphpress.passes.prune.pack_sparse import PackSparse
from graphpress.passes.prune.prune import Prune
from tests import kit
from tests.passes.prune.test_prune_pass import layered

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def weight(out: int = 64, width: int = 128, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    w = np.random.default_rng(0).normal(size=(out, width)) / np.sqrt(width)
    return torch.from_numpy(np.where(masks.mask(np.abs(w), 2, 4), w, 0)).to(dtype)


def test_off_cuda_it_is_dense_and_says_so() -> None:
    assert available(weight(), "cpu") == "torch multiplies 2:4 weights sparse on CUDA, not on cpu"
    kernel = Sparse24Linear(weight(dtype=torch.float32), torch.ones(64))
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernel(x), x @ kernel.weight.t() + 1)
    assert kernel.verdict == "fallback"


@pytest.mark.parametrize(
    ("bad", "word"),
    [(torch.ones(64, 128), "not the pattern"), (torch.zeros(64, 6), "not the pattern"),
     (torch.zeros(2, 4, 4), "3 axes"), (torch.zeros(64, 128, dtype=torch.int32), "int32")],
)  # fmt: skip
def test_other_weights_are_refused(bad: torch.Tensor, word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        Sparse24Linear(bad)


def test_it_follows_half() -> None:
    assert Sparse24Linear(weight(dtype=torch.float32)).half().weight.dtype == torch.float16


@pytest.fixture(scope="module")
def pruned() -> ir.Model:
    return kit.apply(layered(8, 64, 64, 12), Prune(), PackSparse())[0]


def test_the_audit_of_a_cpu_says_size_only(pruned: ir.Model) -> None:
    rows = {r.node: r for r in gp.audit(pruned, "torch-cpu").sites}
    assert rows["MatMul_2"].verdict == "float"
    assert rows["MatMul_2"].reason == (
        "torch multiplies 2:4 weights sparse on CUDA, not on cpu; 2:4 for size only: torch multiplies dense"
    )
    assert rows["MatMul_4"].reason == ""


def test_a_convolution_stays_dense() -> None:
    model = kit.parse("g (float[1, 8, 4, 4] x) => (float y) { y = Conv (x, w) }")
    node = model.graph[0]
    node.metadata_props["graphpress.sparsity"] = "2:4"
    with pytest.raises(Unsupported, match="not Conv"):
        choice._sparse(node, "cuda")


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse_products_equal_dense_ones(rows: int, dtype: torch.dtype) -> None:
    kernel = Sparse24Linear(weight(dtype=dtype), torch.ones(64, dtype=dtype)).cuda()
    x = torch.randn(rows, 128, device="cuda", dtype=dtype)
    assert kernel.refusal("cuda") is None
    torch.testing.assert_close(kernel.sparse(x), kernel.reference(x), rtol=2**-6, atol=2**-6)


@pytest.mark.gpu
@NEEDS_GPU
def test_a_pruned_model_runs_sparse_in_half(pruned: ir.Model) -> None:
    model = gp.lower(pruned, "torch-cuda")
    x = torch.randn(32, 8, device="cuda")
    before = model(x)
    kernels = [m for m in model.modules() if isinstance(m, Sparse24Linear)]
    assert len(kernels) == 1
    half = model.half()
    assert kernels[0].verdict == "sparse"
    torch.testing.assert_close(half(x.half()).float(), before, rtol=2**-5, atol=0.5)
