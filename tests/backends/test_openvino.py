"""ort-openvino: its table against what OpenVINO's oneDNN logs, exact integers, and what the audit says.

onnxruntime-openvino and onnxruntime bring one package, so it wants an environment of its own: ``python -m venv ENV``,
``ENV/bin/pip install -e '.[openvino,dev]'``, ``ENV/bin/pip uninstall onnxruntime``,
``ENV/bin/pip install --force-reinstall --no-deps onnxruntime-openvino``, then these tests there.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from graphpress.backends.ort import audit, lower, onednn, probe, session
from graphpress.capability import Capability
from graphpress.target import Target
from tests.backends.test_unsigned import CONV, STATIC, K, extreme, quantized, static

TARGET = Target.load("ort-openvino", "x86-64")
LOG = """onednn_verbose,v1,info,oneDNN v3.8.0 (commit a4ed4a7)
onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation,prop_kind,memory_descriptors,time
onednn_verbose,v1,primitive,exec,cpu,convolution,jit_uni_int8:avx2,forward_inference,src:u8::blocked:acdb::f0 \
wei:s8:a:blocked:ABcd2b8a4b::f0 bia:undef::undef::: dst:u8::blocked:acdb::f0,attr-scratchpad:user,\
alg:convolution_direct,mb2_g4ic32oc64_ih32oh16kh3sh2dh0ph1_iw32ow8kw3sw4dw0pw1,0.5
onednn_verbose,v1,primitive,exec,cpu,inner_product,brgemm:avx2,forward_inference,src:f32::blocked:ab::f0 \
wei:u8:ap:blocked:AB8b8a::f0 bia:f32::blocked:a::f0 dst:f32::blocked:ab::f0,attr-scratchpad:user,,mb3ic64oc10,0.0258789
onednn_verbose,v1,primitive,exec,cpu,matmul,brg:avx2,undef,src:f32::blocked:abc::f0 wei:f32::blocked:abc::f0 \
dst:f32::blocked:abc::f0,attr-scratchpad:user,,2x4x256:2x256x32,0.1
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:s8::blocked:abcd::f0 \
dst:s8::blocked:Acdb::f0,,,8x4x3x3,0.1
"""
installed = pytest.mark.skipif(
    TARGET.provider not in ort.get_available_providers(), reason="onnxruntime-openvino is not installed here"
)


def test_the_log_is_read() -> None:
    conv, linear, product, reorder = onednn.parse(LOG)
    assert (conv.kind, conv.implementation) == ("convolution", "jit_uni_int8:avx2")
    assert (conv.source, conv.weights) == ("u8", "s8")
    assert conv.work == (2 * 64 * 16 * 8, 2 * 64 * 16 * 8 * (32 // 4) * 3 * 3)
    assert conv.microseconds == 500
    assert linear.work == (30, 3 * 64 * 10)
    assert product.work == (2 * 4 * 32, 2 * 4 * 256 * 32)
    assert reorder.work is None
    assert [p.verdict for p in (conv, linear, product, reorder)] == ["integer", "weight-only", "float", "float"]
    assert onednn.parse("nothing\nonednn_verbose,v1\n") == ()


@installed
@pytest.mark.parametrize("c", TARGET.capabilities, ids=lambda c: f"{c.op}-{c.mode}")
def test_every_claim_is_kept(c: Capability) -> None:
    assert [v for v in probe.variants(c) if not probe.works(c, v, TARGET)] == []


@installed
def test_the_version_is_the_probed_one() -> None:
    assert TARGET.probed_with == ort.__version__


@installed
@pytest.mark.parametrize("largest", [64, 127])
@pytest.mark.parametrize("text", [STATIC, CONV])
def test_products_are_the_integers_that_they_mean(text: str, largest: int) -> None:
    """Wide codes too, which OpenVINO gets wrong without VNNI: they are narrowed, and all of one size here."""
    w, x = extreme(largest), np.random.default_rng(0).integers(200, 256, (3, K)).astype(np.uint8)
    want = quantized((x.astype(np.int64) - 3) @ w.astype(np.int64))
    conv = text is CONV
    model = static(np.ascontiguousarray(w.T)[..., None, None] if conv else w, text)
    feeds = {"x": np.ascontiguousarray(x.T)[None, :, None] if conv else x}
    lowered = lower(model, TARGET)
    made = session.execute(lowered, target=TARGET)(feeds)["q"]
    np.testing.assert_array_equal(made[0, :, 0].T if conv else made, want)
    (row,) = (r for r in audit(lowered, TARGET, feeds).sites if r.node == "op")
    assert row.verdict == "integer"
    assert row.kernel.startswith("onednn::") and ("stored in 7 bits" in row.reason) is (largest == 127)


@installed
def test_a_silent_provider_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "primitives", lambda *_: ())
    found = audit(lower(static(extreme(64)), TARGET), TARGET, {"x": np.zeros((3, K), np.uint8)})
    (row,) = (r for r in found.sites if r.node == "op")
    assert row.verdict == "untold" and "does not tell" in row.reason
    assert found.integer_mac_share is None
