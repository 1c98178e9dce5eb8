"""Tokens cut before they are quantized: the share that leaves the least error, and what is not cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.passes.quantize.clip_tokens import ClipTokens
from graphpress.passes.quantize.quantize import Quantize
from graphpress.pipeline import Pipeline
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal

TEXT = "agraph (float[N, 4, 256] x, float[256, 8] v) => (float[N, 4, 8] y) { y = MatMul(x, v) }"
FOUR = Quantize(
    mode="dynamic", weight="int8", activation="int4", activation_granularity="per_token", kernels="preferred"
)


def clipped(options: ClipTokens, x: np.ndarray, **four: Any) -> tuple[Any, Any, Any]:
    """Quantized, quantized and cut, and the report."""
    model = quantizing.model(TEXT, {"v": normal(256, 8)})
    plain = quantizing.quantize(model, replace(FOUR, **four), target=None)[0]
    after, (report,) = kit.apply(plain, options, ctx=quantizing.context({"x": x}))
    return plain, after, report


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_share_is_the_one_of_least_error(seed: int) -> None:
    x = normal(32, 4, 256, seed=seed)
    plain, after, report = clipped(ClipTokens(), x)
    (node,) = [n for n in after.graph if n.op_type == "ClipToken"]
    wide = x.astype(np.float64).reshape(-1, 256)

    def lost(share: float) -> float:
        s = np.abs(wide).max(1, keepdims=True) * share / 7.5
        return float(np.square(np.clip(np.rint(wide / s), -8, 7) * s - wide).sum())

    shares = [i / 20 for i in range(12, 21)]
    assert edit.attribute(node, "share") == pytest.approx(min(shares, key=lost)) and report.changed == 1
    fresh, v = {"x": normal(64, 4, 256, seed=seed + 10)}, normal(256, 8)
    wanted = fresh["x"] @ v
    before, cut = (float(np.square(kit.run(m, fresh)["y"] - wanted).sum()) for m in (plain, after))
    assert cut <= 0.9 * before


def test_a_share_of_ones_own_needs_no_data() -> None:
    plain = quantizing.quantize(quantizing.model(TEXT, {"v": normal(256, 8)}), FOUR, target=None)[0]
    after = Pipeline([ClipTokens(share=0.5)]).run(plain, Context())[0]
    x = np.zeros((1, 4, 256), np.float32)
    x[0, 0, :3] = 8.0, 1.0, -3.0
    wanted = np.array([7, 2, -6]) @ normal(256, 8)[:3] * (4 / 7.5)
    np.testing.assert_allclose(kit.run(after, {"x": x})["y"][0, 0], wanted, atol=0.1)  # of 8-bit weights
    assert not kit.run(after, {"x": np.zeros_like(x)})["y"].any()


def test_flat_rows_and_wide_codes_are_left() -> None:
    _, after, report = clipped(ClipTokens(), np.sign(normal(8, 4, 256)))
    assert "ClipToken" not in kit.ops(after) and not report.changed and report.metrics == {"cut at 1": 1.0}
    _, after, report = clipped(ClipTokens(), normal(8, 4, 256), activation="int8")
    assert "ClipToken" not in kit.ops(after) and [s.why for s in report.skips] == [
        "no token is quantized in fewer than 8 bits"
    ]


def test_bad_options() -> None:
    for options in ({"share": 0.0}, {"share": 1.5}, {"samples": 0}):
        with pytest.raises(BadRequest, match=r"\(0, 1\]|not positive"):
            ClipTokens(**options)
    with pytest.raises(BadRequest, match="searches on activations"):
        ClipTokens().check(Context())
