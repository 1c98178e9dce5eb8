"""Products of u8 and s8 saturate on x86 without VNNI: lowered models give exact integers on either machine."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphpress.backends.ort import audit, lower, moved_codes
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.ops import packing
from graphpress.ops.sparse_weight import OP as PACKED
from graphpress.target import Target
from tests import kit
from tests.backends.given import parse

PLAIN, VNNI, ARM = (Target.load("ort-cpu", isa) for isa in ("x86-64", "x86-64+vnni", "arm64"))
K, N = 96, 8
STATIC = """
g (uint8[3, 96] x, float w, float ws, float wz, float s, float z, float so, float zo) => (uint8[3, 8] q) {
    xd = DequantizeLinear(x, s, z)
    f = DequantizeLinear<axis = 1>(w, ws, wz)
    [op] y = MatMul(xd, f)
    q = QuantizeLinear(y, so, zo)
}"""
CONV = """
g (uint8[1, 96, 1, 3] x, float w, float ws, float wz, float s, float z, float so, float zo) => (uint8[1, 8, 1, 3] q) {
    xd = DequantizeLinear(x, s, z)
    f = DequantizeLinear<axis = 0>(w, ws, wz)
    [op] y = Conv(xd, f)
    q = QuantizeLinear(y, so, zo)
}"""


def extreme(largest: int, rows: int = K, columns: int = N) -> np.ndarray:
    """[K, N] codes: neighbours of one sign, so that every pair of products saturates in 16 bits."""
    w = np.full((rows, columns), largest, np.int8)
    w[:, ::2] = -largest
    return w


def static(w: np.ndarray, text: str = STATIC) -> ir.Model:
    return parse(
        text, w=w, ws=np.ones(N, np.float32), wz=np.zeros(N, np.int8), s=np.array(1, np.float32),
        z=np.array(3, np.uint8), so=np.array(2.0**14, np.float32), zo=np.array(128, np.uint8),
    )  # fmt: skip


def run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """As a stranger's stock session runs the saved file: no option of ours."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, {"x": x}), strict=True))


def quantized(sums: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(sums / 2.0**14) + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("largest", [64, 127])
@pytest.mark.parametrize("text", [STATIC, CONV])
def test_static_products_are_the_integers_that_they_mean(text: str, largest: int) -> None:
    w, x = extreme(largest), np.random.default_rng(0).integers(200, 256, (3, K)).astype(np.uint8)
    want = quantized((x.astype(np.int64) - 3) @ w.astype(np.int64))
    conv = text is CONV
    model = static(np.ascontiguousarray(w.T)[..., None, None] if conv else w, text)
    feed = np.ascontiguousarray(x.T)[None, :, None] if conv else x
    made = run(lower(model, PLAIN), feed)["q"]
    np.testing.assert_array_equal(made[0, :, 0].T if conv else made, want)


def test_dynamic_products_are_the_integers_that_they_mean() -> None:
    w = extreme(127)
    model = parse(
        """g (float[3, 96] x, float w, float ws) => (float[3, 8] y) {
            c, s, z = DynamicQuantizeLinear(x)
            xd = DequantizeLinear(c, s, z)
            f = DequantizeLinear<axis = 1>(w, ws)
            [op] y = MatMul(xd, f)
        }""",
        w=w, ws=np.ones(N, np.float32),
    )  # fmt: skip
    x = np.random.default_rng(0).integers(200, 256, (3, K)).astype(np.float32)
    x[0, 0], x[0, 1] = 255, 0  # a scale of 1 and a zero point of 0: codes are the numbers
    made = run(lower(model, PLAIN), x)["y"]
    np.testing.assert_array_equal(made.astype(np.int64), x.astype(np.int64) @ w.astype(np.int64))


DYNAMIC = """g (float[3, 96] x, float w, float ws) => (float[3, N] y) {
    c, s, z = DynamicQuantizeLinear(x)
    xd = DequantizeLinear(c, s, z)
    f = DequantizeLinear<axis = AXIS>(w, ws)
    [op] y = OP(xd, f)
}"""


def sparse(rows: int, columns: int, seed: int) -> np.ndarray:
    """[K, N] codes of the outermost values, 2 of 4 of them zero along K, where their places differ by column."""
    rng = np.random.default_rng(seed)
    kept = np.argsort(rng.random((rows // 4, 4, columns)), axis=1) < 2
    signs = rng.choice(np.array([-127, 127], np.int8), (rows, columns))
    return np.where(kept.reshape(rows, columns), signs, 0).astype(np.int8)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm<transB = 1>"])
def test_packed_weights_are_moved_at_load_and_their_products_are_exact(op: str) -> None:
    """The file keeps half of the codes and their places; sums of the moved ones are those of plain integers."""
    columns, turned = 64, "trans" in op
    w = sparse(K, columns, seed=1)
    text = DYNAMIC.replace("N]", f"{columns}]").replace("AXIS", "0" if turned else "1").replace("OP", op)
    model = parse(text, w=np.ascontiguousarray(w.T) if turned else w, ws=np.ones(columns, np.float32))
    edit.find(model, "op").metadata_props[SPARSITY] = "2:4"
    assert packing.pack(model, model.graph.initializers["w"], 1 if turned else 0, 2) == w.size * 5 // 8
    lowered = lower(model, PLAIN)
    assert kit.ops(lowered).count("MatMulIntegerToFloat") == kit.ops(lowered).count(PACKED.name) == 1
    largest = max(v.const_value.nbytes for v in lowered.graph.initializers.values() if v.const_value is not None)
    assert largest == w.size // 2  # no dense copy stands beside the packed codes
    x = np.random.default_rng(0).integers(200, 256, (3, K)).astype(np.float32)
    x[0, 0], x[0, 1] = 255, 0  # a scale of 1 and a zero point of 0: codes are the numbers
    want = x.astype(np.int64) @ w.astype(np.int64)
    assert np.abs(want).max() > 2**15  # sums that saturate in 16 bits
    np.testing.assert_array_equal(run(lowered, x)["y"].astype(np.int64), want)


@pytest.mark.parametrize(
    ("target", "largest", "stored"),
    [(PLAIN, 127, np.uint8), (PLAIN, 64, np.int8), (VNNI, 127, np.int8), (ARM, 127, np.int8)],
)
def test_weights_move_only_where_they_must(target: Target, largest: int, stored: type) -> None:
    lowered = lower(static(extreme(largest)), target)
    codes = edit.find(lowered, "op").inputs[1].producer().inputs[0]  # type: ignore[union-attr]
    assert edit.constant(codes).dtype == stored  # type: ignore[union-attr]


def test_depthwise_weights_stay() -> None:
    """ONNX Runtime adds those products in 32 bits, and reads signed weights faster."""
    text = CONV.replace("Conv(xd", "Conv<group = 96>(xd").replace("8, 1, 3]", "96, 1, 3]")
    w = extreme(127, K, 1).reshape(K, 1, 1, 1)
    model = parse(
        text, w=w, ws=np.ones(K, np.float32), wz=np.zeros(K, np.int8), s=np.array(1, np.float32),
        z=np.array(0, np.uint8), so=np.array(256, np.float32), zo=np.array(128, np.uint8),
    )  # fmt: skip
    lowered = lower(model, PLAIN)
    codes = edit.find(lowered, "op").inputs[1].producer().inputs[0]  # type: ignore[union-attr]
    assert edit.constant(codes).dtype == np.int8  # type: ignore[union-attr]
    x = np.full((1, K, 1, 3), 255, np.uint8)
    want = np.clip(np.rint(255 * w.astype(np.int64) / 256) + 128, 0, 255)[:, 0, 0]
    np.testing.assert_array_equal(run(lowered, x)["q"][0, :, 0], np.broadcast_to(want, (K, 3)))


def test_the_audit_says_that_weights_were_moved() -> None:
    feeds = {"x": np.full((3, K), 255, np.uint8)}
    for largest, said in ((127, True), (64, False)):
        (row,) = (r for r in audit(lower(static(extreme(largest)), PLAIN), PLAIN, feeds).sites if r.node == "op")
        assert row.verdict == "integer" and ("stored unsigned" in row.reason) is said


def test_narrowed_codes_mean_nearly_the_same() -> None:
    """Half of the new step at most: of the largest code, 64 steps."""
    rng = np.random.default_rng(0)
    codes, zero = rng.integers(-128, 128, (5, 7)).astype(np.int8), np.zeros(7, np.int16)
    scale = rng.uniform(0.1, 1, 7).astype(np.float32)
    narrow, wider = moved_codes.narrowed(codes, zero, scale, 1)
    assert narrow.dtype == np.int8 and np.abs(narrow.astype(int)).max() <= 64
    apart = np.abs(narrow.astype(np.float64) * wider - codes.astype(np.float64) * scale)
    assert (apart <= 0.5 * 128 / 64 * scale * (1 + 1e-6)).all()
