"""Masks of an Attention that came with the file: whatever broadcasts is what the standard says, also lowered."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.graph import edit
from graphpress.target import Target
from tests import kit

TARGET = Target.load("ort-cpu", "x86-64")
B, H, Q, K, E = 2, 4, 5, 6, 8


def _model(mask: str, q: str = f"[{B}, {H}, {Q}, {E}]", k: str = f"[{B}, {H}, {K}, {E}]", opset: int = 23) -> ir.Model:
    return kit.parse(
        f"""<ir_version: 11, opset_import: ["" : {opset}]>
        g (float{q} q, float{k} k, float{k} v, {mask} m) => (float y, float z) {{
            y = Attention(q, k, v, m)
            z = Attention<scale=0.5>(q, k, v, m)
        }}"""
    )


def _feeds(mask: np.ndarray, queries: int = Q) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {n: rng.normal(size=(B, H, s, E)).astype(np.float32) for n, s in (("q", queries), ("k", K), ("v", K))}
    return found | {"m": mask}


def _exact(feeds: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """Attention in float64, by its definition; missing columns of the mask are masked, a blind query gives 0."""
    q, k, v = (feeds[n].astype(np.float64) for n in "qkv")
    mask = feeds["m"]
    mask = np.where(mask, 0, -np.inf) if mask.dtype == np.bool_ else mask.astype(np.float64)
    missing = [(0, 0)] * (mask.ndim - 1) + [(0, k.shape[2] - mask.shape[-1])]
    scores = scale * q @ k.swapaxes(-1, -2) + np.pad(mask, missing, constant_values=-np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1, total) @ v)


def _check(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    lowered = lower(model, TARGET)
    for run in (reference.execute(model), session.execute(model), session.execute(lowered)):
        got = run(feeds)
        for name, scale in (("y", E**-0.5), ("z", 0.5)):
            np.testing.assert_allclose(got[name], _exact(feeds, scale), rtol=1e-5, atol=1e-6)
    return lowered


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize(
    "shape", [(Q, K), (1, K), (K,), (1, 1, K), (H, 1, K), (B, 1, 1, K), (B, H, 1, K), (B, 1, Q, K)]
)
def test_any_mask(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(1)
    mask = rng.random(shape) > 0.4
    mask[(0,) * (mask.ndim - 1)] = False  # one row
    given = mask if kind == "bool" else np.where(mask, rng.normal(size=shape), -np.inf).astype(np.float32)
    lowered = _check(_model(f"{kind}{list(shape)}"), _feeds(given))
    wide = [n for n in edit.nodes(lowered) if n.op_type == "Expand"]
    assert len(wide) == (0 if shape[-2:] == (Q, K) else 1)  # one for both readers


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("rows", [1, Q])
def test_mask_that_ends_early(rows: int, kind: str) -> None:
    mask = np.ones((rows, K - 2), bool) if kind == "bool" else np.zeros((rows, K - 2), np.float32)
    _check(_model(f"{kind}[{rows}, {K - 2}]", opset=24), _feeds(mask))


@pytest.mark.parametrize("queries", [1, 3, 7])
@pytest.mark.parametrize("rows", ["1", "s"])
def test_queries_of_any_number(rows: str, queries: int) -> None:
    mask = np.random.default_rng(1).random((B, 1, 1 if rows == "1" else queries, K)) > 0.4
    mask[..., 0] = True
    lowered = _check(_model(f"bool[b, 1, {rows}, t]", "[b, h, s, 8]", "[b, h, t, 8]"), _feeds(mask, queries))
    assert ("Expand" in kit.ops(lowered)) == (rows == "1")
