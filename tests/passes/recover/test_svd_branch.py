"""SVDQuant's branch: the sum is exact, 4 bits lose less with it, the branch reads floats, and its size is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import reference
from graphpress.errors import BadRequest
from graphpress.keys import HALF
from graphpress.passes.equalize.smooth import Smooth
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.adapters.base import attached, kind
from graphpress.passes.recover.svd_branch import SvdBranch
from graphpress.recipe import Recipe
from tests import kit
from tests.passes.quantizing import context, model, normal

TEXT = """
g (float[N, 256] x, float[256, 256] f, float[256, 96] w, float[96, 8] l) => (float[N, 8] y) {
    h = MatMul(x, f)
    r = MatMul(h, w)
    y = MatMul(r, l)
}
"""
FOUR = Quantize(
    mode="dynamic", weight="int4", weight_granularity="per_group", group_size=32, activation="int4",
    activation_granularity="per_token", kernels="preferred", op_types=("MatMul",), ignore=("MatMul_0", "MatMul_2"),
)  # fmt: skip
SMOOTH = Smooth(activation="int4", activation_granularity="per_token", weight="int4", group_size=32)
BRANCH = SvdBranch(rank=16, share=0.2, group_size=32)


def fixture(seed: int, rows: int = 256) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Two of 256 channels are 60 times as loud; the layers at the ends change nothing."""
    x = normal(rows, 256, seed=seed)
    x[:, [17, 100]] *= 60
    made = model(TEXT, {"f": np.eye(256), "w": normal(256, 96, seed=seed + 5), "l": np.eye(96, 8)})
    ShapeInferencePass()(made)
    return made, {"x": x}


def error(made: ir.Model, x: dict[str, np.ndarray], *passes: Any) -> float:
    after, _ = kit.apply(made, *passes, ctx=context(x, None))
    wanted, got = (reference.execute(m, ["r"])(x)["r"].astype(np.float64) for m in (made, _named(after)))
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


def _named(after: ir.Model) -> ir.Model:
    """``r`` is what the last layer reads."""
    (last,) = [n for n in after.graph if n.name == "MatMul_2"]
    value = last.inputs[0]
    assert value is not None and value.name == "r"
    return after


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_naive_loses_more_than_smooth_and_smooth_more_than_smooth_with_a_branch(seed: int) -> None:
    """F14: strict, with a tenth to spare."""
    made, x = fixture(seed)
    errors = [error(made, x, *before, FOUR) for before in ((), (SMOOTH,), (SMOOTH, BRANCH))]
    assert errors[0] * 0.9 > errors[1] and errors[1] * 0.9 > errors[2] > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_unquantized_sum_is_exact(seed: int) -> None:
    made, x = fixture(seed)
    after, (report,) = kit.apply(made, BRANCH, ctx=context(x, None))
    assert report.changed == 1 and len(attached(after)) == 1
    wanted, got = (kit.run(m, x)["y"] for m in (made, after))
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_branch_reads_what_is_not_rounded_and_is_not_quantized_itself() -> None:
    made, x = fixture(0)
    options = Quantize(**{**_asked(), "ignore": ()})
    after, (_, report) = kit.apply(made, BRANCH, options, ctx=context(x, None))
    (branch,) = attached(after)
    first = branch.node(after, "first")
    assert first.inputs[0] is not None and first.inputs[0].name == "h"
    assert {branch.node(after, p).inputs[1].producer() for p in ("first", "second")} == {None}  # type: ignore[union-attr]
    assert sum("branch beside a layer" in s.why for s in report.skips) == 2


def _asked() -> dict[str, Any]:
    return {n: getattr(FOUR, n) for n in ("mode", "weight", "weight_granularity", "group_size", "activation",
                                          "activation_granularity", "kernels", "op_types")}  # fmt: skip


def test_its_size_is_r_times_in_and_out_in_halves() -> None:
    made, x = fixture(0)
    after, _ = kit.apply(made, BRANCH, ctx=context(x, None))
    (branch,) = attached(after)
    held = [branch.value(after, part) for part in branch.constants]
    assert sum(v.const_value.size for v in held if v.const_value) == 16 * (256 + 96)
    assert {HALF.get(v) for v in held} == {ir.DataType.FLOAT16}
    for value in held:
        array = value.const_value.numpy()  # type: ignore[union-attr]
        np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))


def test_more_rounds_of_the_search_never_leave_more() -> None:
    made, x = fixture(1)
    errors = [error(made, x, SvdBranch(rank=16, share=0.2, group_size=32, rounds=n), FOUR) for n in (1, 8)]
    assert errors[1] <= errors[0] * 1.0001


def test_what_gains_too_little_and_what_stands_at_the_ends_gets_none() -> None:
    made, x = fixture(0)
    plain = kit.apply(made, SvdBranch(weight="int8", activation="int4", group_size=0), ctx=context(x, None))[1][0]
    assert "it is at the end of the model" in [s.why for s in plain.skips]
    thin = kit.apply(made, SvdBranch(rank=4, share=0.001), ctx=context(x, None))[1][0]
    assert thin.changed == 0 and "its matrix is too thin for a branch" in [s.why for s in thin.skips]


def test_behind_quantization_it_stays() -> None:
    made, x = fixture(0)
    after, _ = kit.apply(made, BRANCH, FOUR, ctx=context(x, None))
    (branch,) = attached(after)
    with pytest.raises(BadRequest, match="has no room for what the branch holds"):
        kind("svd").fold(after, branch, context(x, None))


@pytest.mark.parametrize("options", [{"rank": 0}, {"rounds": 0}, {"share": 0.0}, {"share": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    made, x = fixture(0, 16)
    with pytest.raises(BadRequest, match="svd-branch"):
        kit.apply(made, SvdBranch(**options), ctx=context(x, None))


def test_the_recipe_scales_before_it_splits() -> None:
    names = [p.name for p in Recipe.load("w4a4-svdquant").passes]
    assert names.index("smooth") < names.index("svd-branch") < names.index("quantize") < names.index("gptq")
