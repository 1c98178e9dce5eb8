"""Attention against ONNX's reference and ONNX Runtime; rotary embedding; linear attention token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from graphpress.backends import fx as backend
from graphpress.backends.fx.ops import attention
from graphpress.backends.fx.ops.linear_attention import linear_attention
from graphpress.errors import Unsupported
from tests import kit
from tests.backends.fx.single import doubles, in_onnx, in_ort, in_torch, module, normal, same

CLOSE = {"rtol": 1e-5, "atol": 2e-6}
N, HEADS, L, S, D = 2, 4, 3, 5, 8


def qkv(*, kv_heads: int = HEADS, keys: int = S, packed: bool = False, dtype: Any = np.float32) -> list[Any]:
    found = [normal(N, HEADS, L, D), normal(N, kv_heads, keys, D, seed=1), normal(N, kv_heads, keys, D + 2, seed=2)]
    if packed:
        found = [x.swapaxes(1, 2).reshape(N, x.shape[2], -1) for x in found]
    return [x.astype(dtype) for x in found]


def masks(keys: int = S) -> dict[str, Any]:
    some = np.random.default_rng(3).random((N, 1, L, keys)) > 0.4
    some[0, 0, 1] = False  # a query that may see nothing
    return {
        "none": None, "bool": some, "float": np.where(some, normal(N, 1, L, keys, seed=4), -np.inf).astype(np.float32),
        "bool2": some[0, 0], "float3": normal(HEADS, L, keys, seed=5), "short": normal(L, keys - 2, seed=6),
    }  # fmt: skip


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", [{}, {"scale": 0.3}, {"softcap": 1.5}])
def test_fused_and_plain(mask: str, causal: int, kv_heads: int, packed: bool, more: dict[str, Any]) -> None:
    heads = {"q_num_heads": HEADS, "kv_num_heads": kv_heads} if packed else {}
    options: dict[str, Any] = {"opset": 24, "is_causal": causal, **heads, **more}
    given = [*qkv(kv_heads=kv_heads, packed=packed), *((m,) if (m := masks()[mask]) is not None else ())]
    expected = in_onnx("Attention", *given, **options)
    same(in_torch("Attention", *given, **options), expected, **CLOSE)
    same(
        in_torch("Attention", *given, outputs=4, **options)[0], expected, **CLOSE
    )  # not fused: the scores are asked for


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("softcap", [0.0, 0.7])
@pytest.mark.parametrize("causal", [0, 1])
def test_scores(mode: int, mask: str, softcap: float, causal: int) -> None:
    given = [*qkv(kv_heads=2), *((m,) if (m := masks()[mask]) is not None else ())]
    options: dict[str, Any] = {"qk_matmul_output_mode": mode, "softcap": softcap, "is_causal": causal, "outputs": 4}
    expected = in_onnx("Attention", *given, opset=24, **options)
    if mode == 0:  # where onnx's reference gives the capped scores, ONNX Runtime the raw ones, as the standard says
        expected[3] = in_onnx("Attention", *given, opset=24, **{**options, "softcap": 0.0})[3]
    for a, b in zip(in_torch("Attention", *given, opset=24, **options), expected, strict=True):
        same(a, b, **CLOSE)


@pytest.mark.parametrize("queries", [1, L])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_cache(queries: int, causal: int, mask: str) -> None:
    q, k, v = qkv(kv_heads=2, keys=queries)
    past = normal(N, 2, 4, D, seed=7), normal(N, 2, 4, D + 2, seed=8)
    given = [q[:, :, :queries], k, v, masks(queries + 4)[mask], *past]
    if given[3] is not None:
        given[3] = given[3][:, :, :queries]
    for opset in (23, 24):
        options: dict[str, Any] = {"opset": opset, "is_causal": causal, "outputs": 3}
        for a, b in zip(in_torch("Attention", *given, **options), in_onnx("Attention", *given, **options), strict=True):
            same(a, b, **CLOSE)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("window", [(-1, -1), (1, -1), (-1, 1), (2, 0)])
def test_cache_outside_and_windows(causal: int, mask: str, window: tuple[int, int]) -> None:
    left, right = window
    options: dict[str, Any] = {"is_causal": causal, "opset": 24}
    if window != (-1, -1):
        options |= {"left_window_size": left, "right_window_size": right, "opset": 25}
    for lengths in ([5, 3], [1, 4]):
        given = [*qkv(), masks()[mask], None, None, np.array(lengths)]
        same(in_torch("Attention", *given, **options), in_onnx("Attention", *given, **options), **CLOSE)
    given = [*qkv(), *((m,) if (m := masks()[mask]) is not None else ())]
    same(in_torch("Attention", *given, **options), in_onnx("Attention", *given, **options), **CLOSE)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("causal", [0, 1])
def test_as_onnx_runtime(kv_heads: int, causal: int) -> None:
    given = qkv(kv_heads=kv_heads, keys=L)
    options: dict[str, Any] = {"opset": 23, "is_causal": causal}
    same(in_torch("Attention", *given, **options), in_ort("Attention", *given, **options), **CLOSE)


@pytest.mark.parametrize(("dtype", "precision", "fused"), [
    (np.float32, 1, True), (np.float32, 11, False), (np.float32, 10, False), (np.float64, 1, False),
    (np.float64, 11, True), (np.float16, 1, True), (np.float16, 10, True), (np.float16, 11, False),
])  # fmt: skip
def test_precision_of_the_softmax(dtype: Any, precision: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    given = qkv(dtype=dtype)
    options: dict[str, Any] = {"opset": 23, "softmax_precision": precision}
    found, expected = in_torch("Attention", *given, **options), in_onnx("Attention", *given, **options)
    assert bool(calls) == fused
    half = dtype == np.float16 or precision == 10
    same(found, expected, rtol=2e-3 if half else 1e-6, atol=1e-3 if half else 1e-6)


def test_mask_of_integers_is_added() -> None:
    given = [*qkv(), np.arange(L * S, dtype=np.int32).reshape(L, S) % 3]
    q, k, v = (torch.from_numpy(x) for x in given[:3])
    expected = torch.softmax(q @ k.mT * D**-0.5 + torch.from_numpy(given[3]), -1) @ v
    same(in_torch("Attention", *given, opset=23), expected.numpy(), **CLOSE)


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_gradients(more: dict[str, Any], mask: str) -> None:
    arrays = qkv(kv_heads=2)
    given = [*arrays, *((m,) if (m := masks()[mask]) is not None else ())]
    built = module("Attention", *given, opset=24, **more)
    rest = [torch.from_numpy(m) for m in given[3:]]
    rest = [m.double() if m.is_floating_point() else m for m in rest]
    tensors = [doubles(*x.shape, seed=i) for i, x in enumerate(arrays)]
    assert torch.autograd.gradcheck(lambda *xs: built(*xs, *rest), tensors, fast_mode=True)


@pytest.mark.slow
def test_open_shapes() -> None:
    source = """<ir_version: 10, opset_import: ["" : 23]>
        g (float[n, t, 32] q, float[n, t, 16] k, float[n, t, 16] v, float[n, 2, p, 8] pk, float[n, 2, p, 8] pv)
            => (float[n, t, 32] y, float[n, 2, s, 8] nk, float[n, 2, s, 8] nv) {
            y, nk, nv = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v, "", pk, pv)
        }"""
    built = backend.build(kit.parse(source))

    def given(n: int, t: int, p: int) -> tuple[torch.Tensor, ...]:
        sizes = ((n, t, 32), (n, t, 16), (n, t, 16), (n, 2, p, 8), (n, 2, p, 8))
        return tuple(torch.from_numpy(normal(*s, seed=i)) for i, s in enumerate(sizes))

    small, large = given(2, 3, 4), given(3, 5, 6)
    torch.testing.assert_close(
        torch.compile(built, fullgraph=True, backend="eager", dynamic=True)(*small), built(*small)
    )
    every = torch.export.Dim.DYNAMIC
    dynamic = ({0: every, 1: every},) * 3 + ({0: every, 2: every},) * 2
    torch.testing.assert_close(
        torch.export.export(built, small, dynamic_shapes=dynamic).module()(*large), built(*large)
    )


# -- rotary embedding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_rotary_embedding(interleaved: int, size: int, packed: bool, positions: bool) -> None:
    x = normal(N, L, HEADS * D) if packed else normal(N, HEADS, L, D)
    half = (size or D) // 2
    angles = normal(9, half, seed=1) if positions else normal(N, L, half, seed=1)
    given = [x, np.cos(angles), np.sin(angles)]
    given += [np.random.default_rng(2).integers(0, 9, (N, L))] if positions else []
    options: dict[str, Any] = {"opset": 23, "interleaved": interleaved, "rotary_embedding_dim": size}
    options |= {"num_heads": HEADS} if packed else {}
    same(in_torch("RotaryEmbedding", *given, **options), in_onnx("RotaryEmbedding", *given, **options), **CLOSE)


def test_rotary_embedding_has_gradients() -> None:
    x, cos, sin = normal(N, HEADS, L, D), normal(N, L, D // 2), normal(N, L, D // 2)
    tensors = (doubles(*x.shape), doubles(*cos.shape, seed=1), doubles(*sin.shape, seed=2))
    assert torch.autograd.gradcheck(module("RotaryEmbedding", x, cos, sin, opset=23), tensors, fast_mode=True)


# -- linear attention --------------------------------------------------------------------------------------------------

RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}


def tokens(rule: str, *, time: int = 9, by_key: bool = True, shared: bool = False, state: bool = True) -> list[Any]:
    heads, size = 2, 4
    gated, delta = RULES[rule]
    key = normal(N, time, heads, size, seed=1)
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    found = [normal(N, time, 2 * heads * size), key.reshape(N, time, -1), normal(N, time, heads * 3, seed=2)]
    found += [normal(N, heads, size, 3, seed=3) if state else None]
    found += [-abs(normal(N, time, heads * (size if by_key else 1), seed=4)) if gated else None]
    found += [1 / (1 + np.exp(-normal(N, time, 1 if shared else heads, seed=5)))] if delta else []
    while found[-1] is None:
        found.pop()
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize(("by_key", "shared", "state"), [(True, False, True), (False, True, False)])
def test_linear_attention(rule: str, chunk: int, by_key: bool, shared: bool, state: bool) -> None:
    given = tokens(rule, by_key=by_key, shared=shared, state=state)
    options: dict[str, Any] = {
        "opset": 27,
        "q_num_heads": 4,
        "kv_num_heads": 2,
        "update_rule": rule,
        "chunk_size": chunk,
    }
    for scale in ({}, {"scale": 0.7}):
        both = (f("LinearAttention", *given, outputs=2, **options, **scale) for f in (in_torch, in_onnx))
        for a, b in zip(*both, strict=True):
            same(a, b, rtol=1e-4, atol=1e-5)


def test_strong_decay_neither_overflows_nor_vanishes() -> None:
    given = [torch.from_numpy(x) if x is not None else None for x in tokens("gated_delta")]
    given[4] = given[4] * 400  # exp of it underflows after one token
    options: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2}
    whole, steps = (linear_attention(*given, chunk_size=c, **options) for c in (64, 1))
    for a, b in zip(whole, steps, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_linear_attention_has_gradients(rule: str) -> None:
    arrays = tokens(rule, time=5)
    given = [None if x is None else torch.from_numpy(np.asarray(x, np.float64)).requires_grad_() for x in arrays]

    def run(*xs: torch.Tensor) -> Any:
        rest = iter(xs)
        inputs = [None if x is None else next(rest) for x in given]
        return linear_attention(*inputs, q_num_heads=4, kv_num_heads=2, update_rule=rule, chunk_size=3)

    assert torch.autograd.gradcheck(run, [x for x in given if x is not None], fast_mode=True)


def test_unknown_update_rule_is_refused() -> None:
    with pytest.raises(Unsupported, match="no update rule 'cubic'"):
        linear_attention(*(torch.zeros(1, 1, 1),) * 3, q_num_heads=1, kv_num_heads=1, update_rule="cubic")


# -- attention with graphs ---------------------------------------------------------------------------------------------


def test_flex_attention() -> None:
    source = """<ir_version: 10, opset_import: ["" : 23, "ai.onnx.preview" : 1]>
        g (float[2, 4, 3, 8] q, float[2, 2, 5, 8] k, float[2, 2, 5, 6] v, float[3, 5] bias) => (float[2, 4, 3, 6] y) {
            y = ai.onnx.preview.FlexAttention <
                score_mod = s (float[2, 4, 3, 5] a) => (float[2, 4, 3, 5] b) { b = Add (a, bias) },
                prob_mod = p (float[2, 4, 3, 5] c) => (float[2, 4, 3, 5] d) { d = Mul (c, c) }
            > (q, k, v)
        }"""
    sizes = ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6), (3, 5))
    q, k, v, bias = (torch.from_numpy(normal(*s, seed=i)) for i, s in enumerate(sizes))
    found = backend.build(kit.parse(source))(q, k, v, bias)
    wide = [x.repeat_interleave(2, 1) for x in (k, v)]
    weights = torch.softmax(q @ wide[0].mT * 8**-0.5 + bias, -1)
    torch.testing.assert_close(found, weights**2 @ wide[1])
    torch.testing.assert_close(attention.flex_attention(q.half(), k.half(), v.half()).float(),
                               attention.flex_attention(q, k, v), rtol=2e-3, atol=2e-3)  # fmt: skip
