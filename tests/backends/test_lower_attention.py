"""Causal Attention, lowered: the same numbers whatever the scores are, and left alone where it is something else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpress.backends import reference
from graphpress.backends.ort import lower, session
from graphpress.graph import edit
from graphpress.keys import ORIGIN
from graphpress.target import Target
from tests import kit
from tests.backends.given import parse

TARGET = Target.load("ort-cpu", "x86-64")
HEAD = '<ir_version: 11, opset_import: ["" : 23]>\n'
EPS = float(np.finfo(np.float32).eps)


def _four(attributes: str = "is_causal=1", *, heads: int = 2, kv_heads: int = 2, tokens: str = "s") -> ir.Model:
    return kit.parse(
        f"""{HEAD}g (float[b, {heads}, {tokens}, 8] q, float[b, {kv_heads}, {tokens}, 8] k,
                     float[b, {kv_heads}, {tokens}, 4] v) => (float[b, {heads}, {tokens}, 4] y) {{
            [op] y = Attention<{attributes}>(q, k, v)
        }}"""
    )


def _feeds(tokens: int, *, batch: int = 1, heads: int = 2, kv_heads: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"q": (heads, 8), "k": (kv_heads, 8), "v": (kv_heads, 4)}
    return {n: rng.normal(size=(batch, h, tokens, d)).astype(np.float32) for n, (h, d) in shapes.items()}


def _exact(feeds: dict[str, np.ndarray], scale: float = 8**-0.5) -> np.ndarray:
    """Causal attention in float64, by its definition."""
    q, k, v = (feeds[n].astype(np.float64) for n in "qkv")
    k, v = (np.repeat(a, q.shape[1] // a.shape[1], axis=1) for a in (k, v))
    scores = scale * q @ k.swapaxes(-1, -2)
    scores[..., ~np.tril(np.ones(scores.shape[-2:], bool))] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def _check(model: ir.Model, feeds: dict[str, np.ndarray], want: np.ndarray) -> ir.Model:
    """The root mean square of the error is at most 1e-6 of that of the numbers."""
    lowered = lower(model, TARGET)
    assert "Attention" not in kit.ops(lowered)
    for execute in (reference.execute, session.execute):
        got = execute(lowered)(feeds)["y"]
        error = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
        assert error < 1e-6, error
    return lowered


@pytest.mark.parametrize(("tokens", "batch"), [(1, 1), (2, 3), (33, 2), (257, 1)])
def test_any_length(tokens: int, batch: int) -> None:
    feeds = _feeds(tokens, batch=batch)
    _check(_four(), feeds, _exact(feeds))


@pytest.mark.parametrize("size", [1.0, 16.0, 64.0])
@pytest.mark.parametrize("seed", range(3))
def test_large_scores_are_exact(size: float, seed: int) -> None:
    """Whole numbers up to 1e4: no rounding in the scores, so none may show in what comes of them."""
    feeds = _feeds(48, seed=seed)
    feeds |= {n: np.round(feeds[n] * size) for n in "qk"}
    _check(_four("is_causal=1, scale=0.25"), feeds, _exact(feeds, 0.25))


@pytest.mark.parametrize("gap", [10, 45, 90, 1000, 30000])
@pytest.mark.parametrize("sign", [1, -1])
def test_masked_scores_far_from_the_seen_ones(gap: int, sign: int) -> None:
    """Every later token scores ``gap`` more (or less) than the one before it."""
    feeds = _feeds(40)
    feeds["q"][..., :] = 0
    feeds["q"][..., 0] = 1
    feeds["k"] = np.round(feeds["k"])
    feeds["k"][..., 0] += sign * gap * np.arange(40)
    _check(_four("is_causal=1, scale=1.0"), feeds, _exact(feeds, 1.0))


@settings(max_examples=25, deadline=None)
@given(size=st.floats(0.01, 30), seed=st.integers(0, 2**16), tokens=st.integers(1, 70))
def test_error_is_that_of_rounded_scores(size: float, seed: int, tokens: int) -> None:
    feeds = _feeds(tokens, seed=seed)
    feeds |= {n: (feeds[n] * size).astype(np.float32) for n in "qk"}
    scores = 8**-0.5 * np.einsum("bhid,bhjd->bhij", *(np.abs(feeds[n]).astype(np.float64) for n in "qk"))
    got = LOWERED_FOUR(feeds)["y"]
    bound = 8 * EPS * (28 + scores.max()) * np.abs(feeds["v"]).max()
    np.testing.assert_allclose(got, _exact(feeds), rtol=0, atol=bound)


LOWERED_FOUR = reference.execute(lower(_four(), TARGET))


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_queries_that_share_keys(kv_heads: int) -> None:
    feeds = _feeds(35, batch=2, heads=6, kv_heads=kv_heads)
    lowered = _check(_four(heads=6, kv_heads=kv_heads), feeds, _exact(feeds))
    assert edit.find(lowered, "op").op_type == "Reshape"


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_hidden_layout(kv_heads: int) -> None:
    model = kit.parse(
        f"""{HEAD}g (float[b, s, 32] q, float[b, s, {8 * kv_heads}] k, float[b, s, {4 * kv_heads}] v)
            => (float[b, s, 16] y) {{
            [op] y = Attention<is_causal=1, q_num_heads=4, kv_num_heads={kv_heads}>(q, k, v)
        }}"""
    )
    feeds = _feeds(34, batch=2, heads=4, kv_heads=kv_heads)
    flat = {n: a.swapaxes(1, 2).reshape(2, 34, -1) for n, a in feeds.items()}
    _check(model, flat, _exact(feeds).swapaxes(1, 2).reshape(2, 34, -1))


@pytest.mark.parametrize("scale", [-0.5, 1e-6, 3.0])
def test_scale(scale: float) -> None:
    feeds = _feeds(40)
    _check(_four(f"is_causal=1, scale={scale:f}"), feeds, _exact(feeds, scale))


def _masked(mask: np.ndarray, kind: str) -> ir.Model:
    return parse(
        f"""{HEAD}g (float[b, 2, 40, 8] q, float[b, 2, 40, 8] k, float[b, 2, 40, 4] v, {kind} m)
            => (float[b, 2, 40, 4] y) {{ [op] y = Attention(q, k, v, m) }}""",
        m=mask,
    )


SEEN = np.tril(np.ones((40, 40), bool))


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (SEEN, "bool"),
        (SEEN[None, None], "bool"),
        (np.where(SEEN, 0, -np.inf).astype(np.float32), "float"),
        (np.where(SEEN, 0, np.finfo(np.float32).min).astype(np.float32), "float"),
    ],
)
def test_causal_mask_given_as_a_constant(mask: np.ndarray, kind: str) -> None:
    feeds = _feeds(40)
    _check(_masked(mask, kind), feeds, _exact(feeds))


def test_helpers_know_their_site_and_scores_their_shape() -> None:
    lowered = lower(_four(), TARGET)
    assert edit.find(lowered, "op").op_type == "MatMul"
    made = [n for n in edit.nodes(lowered) if n.name != "op"]
    assert {n.metadata_props[ORIGIN] for n in made} == {"op"}
    # ONNX Runtime reuses the buffer of the scores only if it knows that the shapes agree.
    shapes = {n.op_type: n.outputs[0].shape for n in made if n.op_type in ("FusedMatMul", "Trilu", "Softmax")}
    assert {str(s) for s in shapes.values()} == {"[b,2,s,s]"}


def test_constants_are_shared_by_all_layers() -> None:
    model = kit.parse(
        f"""{HEAD}g (float[b, 2, s, 8] q, float[b, 2, s, 8] k) => (float[b, 2, s, 8] y) {{
            x = Attention<is_causal=1>(q, k, q)
            y = Attention<is_causal=1>(x, k, q)
        }}"""
    )
    lowered = lower(model, TARGET)
    assert len(lowered.graph.initializers) == 4  # the floor, one, two lists of axes or paddings


def test_halves_are_computed_in_float32() -> None:
    text = """g (float16[b, 2, s, 8] q) => (float16[b, 2, s, 8] y) { y = Attention<is_causal=1>(q, q, q) }"""
    q = np.random.default_rng(0).normal(size=(1, 2, 40, 8)).astype(np.float16)
    wide = q.astype(np.float64)
    scores = np.where(np.tri(40, dtype=bool), wide @ wide.swapaxes(-1, -2) / np.sqrt(8), -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = shares / shares.sum(-1, keepdims=True) @ wide
    found = session.execute(lower(kit.parse(HEAD + text), TARGET))({"q": q})["y"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-12)  # one rounding at the end


@pytest.mark.parametrize(
    "model",
    [
        _four("is_causal=0"),
        _four("is_causal=1, softcap=5.0"),
        _four("is_causal=1, scale=0.0"),
        _four(tokens="16"),
        _masked(SEEN.T, "bool"),
        _masked(SEEN & (np.arange(40) != 7), "bool"),  # row 7 is not even seen by itself
        _masked(np.zeros((40, 40), bool), "bool"),
        _masked(np.where(SEEN, 0, -50).astype(np.float32), "float"),
        kit.parse(
            f"""{HEAD}g (float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 4] v) => (float[b, 2, s, 4] y) {{
                y = Attention<is_causal=1>(q, k, v) }}"""
        ),
        kit.parse(
            f"""{HEAD}g (float[b, 2, s, 8] q, float[b, 2, s, 8] k, float[b, 2, s, 4] v, float[b, 2, p, 8] pk,
                         float[b, 2, p, 4] pv) => (float[b, 2, s, 4] y) {{
                y, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv) }}"""
        ),
    ],
    ids=["open", "softcap", "scale-0", "short", "upper", "hole", "nothing-seen", "soft", "cross", "cache"],
)
def test_everything_else_stays(model: ir.Model) -> None:
    assert kit.ops(lower(model, TARGET)) == ["Attention"]


def test_other_processors_keep_it() -> None:
    assert kit.ops(lower(_four(), Target.load("ort-cpu", "arm64"))) == ["Attention"]
