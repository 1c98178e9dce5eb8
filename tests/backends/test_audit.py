"""The audit names the kernel, the work and the reason of every site, and the neighbours of every conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends.audited import AuditRow
from graphpress.backends.ort import audit, lower, probe
from graphpress.errors import BadRequest
from graphpress.ops.hadamard import sylvester
from graphpress.target import Target
from tests import kit
from tests.backends.given import codes, parse
from tests.core.ops.test_ops_hadamard import model as hadamard

TARGET = Target.load("ort-cpu", "x86-64+vnni")

NETWORK = """
g (float[1, 8, 8, 8] x, float w1, float w2, float s, float z, float ws, float wz)
        => (float[1, 16, 8, 8] y, float[1, 16, 1, 1] p) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    d1 = DequantizeLinear<axis = 0>(w1, ws, wz)
    d2 = DequantizeLinear<axis = 0>(w2, ws, wz)
    [conv1] a = Conv<pads = [1, 1, 1, 1]>(xd, d1)
    [relu] ar = Relu(a)
    aq = QuantizeLinear(ar, s, z)
    ad = DequantizeLinear(aq, s, z)
    [conv2] b = Conv<pads = [1, 1, 1, 1], group = 2>(ad, d2)
    bq = QuantizeLinear(b, s, z)
    bd = DequantizeLinear(bq, s, z)
    [add] c = Add(bd, ad)
    cq = QuantizeLinear(c, s, z)
    cd = DequantizeLinear(cq, s, z)
    [tanh] t = Tanh(cd)
    [pool] p = GlobalAveragePool(cd)
    tq = QuantizeLinear(t, s, z)
    td = DequantizeLinear(tq, s, z)
    [conv3] y = Conv<pads = [1, 1, 1, 1], group = 2>(td, d2)
}"""


@pytest.fixture(scope="module")
def network() -> ir.Model:
    rng = np.random.default_rng(0)
    return parse(
        NETWORK,
        w1=codes(rng, "int8", (16, 8, 3, 3)),
        w2=codes(rng, "int8", (16, 8, 3, 3)),
        s=np.array(0.1, np.float32),
        z=np.array(0, np.uint8),
        ws=rng.uniform(0.001, 0.01, 16).astype(np.float32),
        wz=np.zeros(16, np.int8),
    )


def _rows(model: ir.Model) -> dict[str, AuditRow]:
    return {r.node: r for r in audit(lower(model, TARGET), TARGET, kit.random_feeds(model)).sites}


def test_every_site_has_kernel_verdict_and_reason(network: ir.Model) -> None:
    rows = _rows(network)
    found = {n: (r.verdict, r.kernel, r.reason) for n, r in rows.items()}
    assert found == {
        "conv1": ("integer", "QLinearConv", ""),
        "relu": ("integer", "QLinearConv", ""),
        "conv2": ("integer", "QLinearConv", ""),
        "add": ("integer", "QLinearAdd", ""),
        "tanh": ("fallback", "Tanh", "no integer kernel for Tanh on CPUExecutionProvider"),
        "pool": ("fallback", "GlobalAveragePool", "its output is a graph output"),
        "conv3": ("fallback", "Conv", "its output is a graph output"),
    }


def test_work_is_counted_and_time_adds_up(network: ir.Model) -> None:
    result = audit(lower(network, TARGET), TARGET, kit.random_feeds(network))
    one = 16 * 8 * 8 * 8 * 3 * 3  # outputs times weights of one output
    assert {r.node: r.macs for r in result.sites if r.macs} == {"conv1": one, "conv2": one, "conv3": one}
    assert result.integer_mac_share == pytest.approx(2 / 3)
    spent = sum(r.microseconds for r in result.sites) + sum(c.microseconds for c in result.conversions)
    assert spent == pytest.approx(result.microseconds)
    assert all(0 <= r.share <= 1 for r in result.sites)


def test_conversions_name_their_neighbours(network: ir.Model) -> None:
    result = audit(lower(network, TARGET), TARGET, kit.random_feeds(network))
    pairs = {(c.op, c.source, c.sink) for c in result.conversions}
    assert {
        ("QuantizeLinear", "", "conv1"),
        ("DequantizeLinear", "add", "tanh"),
        ("DequantizeLinear", "add", "pool"),
        ("QuantizeLinear", "tanh", "conv3"),
        ("DequantizeLinear", "tanh", "conv3"),
    } <= pairs
    assert not any({c.source, c.sink} == {"conv1", "conv2"} for c in result.conversions)


def test_the_rule_of_two_readers_is_named() -> None:
    model = parse(
        """g (float[4, 8] x, float s, float z) => (float[4, 8] y, float[4, 8] f) {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            [op] a = Sigmoid(xd)
            aq = QuantizeLinear(a, s, z)
            y = DequantizeLinear(aq, s, z)
            [other] f = Exp(a)
        }""",
        s=np.array(0.1, np.float32), z=np.array(0, np.uint8),
    )  # fmt: skip
    row = _rows(model)["op"]
    assert (row.verdict, row.kernel) == ("fallback", "Sigmoid")
    assert row.reason == "its output has 2 readers, 1 of them no QuantizeLinear"


@pytest.mark.parametrize(
    ("op", "mode", "verdict", "kernel"),
    [
        ("MatMul", "dynamic", "integer", "DynamicQuantizeMatMul"),
        ("LSTM", "dynamic", "integer", "DynamicQuantizeLSTM"),
        ("MatMul", "weight", "weight-only", "MatMulNBits"),
        ("Gather", "weight", "weight-only", "GatherBlockQuantized"),
        ("ConvTranspose", "weight", "weight-only", "ConvTranspose"),
        ("GRU", "weight", "weight-only", "GRU"),
        ("Reshape", "static", "integer", "Reshape"),
    ],
)
def test_verdicts(op: str, mode: str, verdict: str, kernel: str) -> None:
    c = TARGET.find(op, mode)[0]
    if op == "Gather":  # made-up indices instead of constant ones, which would be folded
        model = parse(
            "g (int64[n] i, float w, float s, float z) => (float[n, 32] y) { "
            "f = DequantizeLinear<axis = 0>(w, s, z) [Gather] y = Gather(f, i) }",
            w=codes(np.random.default_rng(0), "int8", (9, 32)),
            s=np.ones(9, np.float32), z=np.zeros(9, np.int8),
        )  # fmt: skip
    else:
        model = probe.build(c, next(iter(probe.variants(c))))
    row = _rows(model)[op]
    assert (row.verdict, row.kernel) == (verdict, kernel)
    assert bool(row.macs) == (op not in ("Gather", "Reshape"))


@pytest.mark.parametrize(
    ("op", "mode", "macs"),
    [
        ("MatMul", "dynamic", 4 * 256 * 32),
        ("Gemm", "weight", 4 * 256 * 32),
        ("LSTM", "dynamic", 3 * 2 * 4 * 32 * (32 + 32)),
        ("GRU", "weight", 3 * 2 * 3 * 32 * (32 + 32)),
        ("ConvTranspose", "weight", 8 * 6 * 6 * 16 * 9),
    ],
)
def test_multiply_adds(op: str, mode: str, macs: int) -> None:
    c = TARGET.find(op, mode)[0]
    assert _rows(probe.build(c, next(iter(probe.variants(c)))))[op].macs == macs


BRANCHES = """
g (bool c, float[2, 32] x, float w, float s, float z) => (float[2, 8] y) {
    q, qs, qz = DynamicQuantizeLinear(x)
    d = DequantizeLinear(q, qs, qz)
    f = DequantizeLinear(w, s, z)
    y = If(c) <
        then_branch = t () => (float[2, 8] yt) { [inner] yt = MatMul(d, f) },
        else_branch = e () => (float[2, 8] ye) { [other] p = MatMul(x, f) [neg] ye = Neg(p) }
    >
}"""


def test_bodies_of_if_are_audited() -> None:
    w = codes(np.random.default_rng(0), "int8", (32, 8))
    model = parse(BRANCHES, w=w, s=np.array(0.1, np.float32), z=np.array(0, np.int8))
    feeds = {"c": np.array(True), "x": np.ones((2, 32), np.float32)}
    result = audit(lower(model, TARGET), TARGET, feeds)
    rows = {r.node: r for r in result.sites}
    assert (rows["inner"].verdict, rows["inner"].macs) == ("integer", 2 * 32 * 8)
    assert (rows["other"].verdict, rows["other"].macs, rows["other"].microseconds) == ("weight-only", 0, 0)
    assert result.integer_mac_share == 1


def test_made_up_inputs_and_json() -> None:
    model = kit.parse("g (float[n, 3] x, int64[n] i) => (float[n, 3] y) { [op] y = Gather(x, i) }")
    result = audit(model, TARGET)
    assert result.feeds == {"x": "float32[1, 3]", "i": "int64[1]"}
    data = json.loads(json.dumps(result.to_json()))
    assert data["target"] == "ort-cpu"
    assert data["integer_mac_share"] is None
    picky = parse("g (float[n] x, int64 k) => (float[2] y) { y = Reshape(x, k) }", k=np.array([2]))
    with pytest.raises(BadRequest, match="Give inputs to audit on"):
        audit(picky, TARGET)


def test_a_real_network(zoo: Path) -> None:
    model = ir.load(zoo / "cifar10" / "resnet20.onnx")
    result = audit(model, TARGET)
    convs = [r for r in result.sites if r.op == "Conv"]
    assert len(convs) == 19
    assert {r.verdict for r in convs} == {"float"}
    assert result.macs == 40_551_040  # the figure of the ResNet paper's table, 0.041 G
    assert sum(r.share for r in convs) > 0.5


def test_operators_of_the_dialect_count_their_own_products() -> None:
    fx = pytest.importorskip("graphpress.backends.fx")
    made = hadamard(sylvester(4), sylvester(2), "2, 5, 8", "float")
    target = Target.load("torch-cpu", "x86-64")
    (row,) = fx.audit(fx.lower(made, target), target, {"x": np.ones((2, 5, 8), np.float32)}).sites
    assert (row.op, row.macs) == ("Hadamard", 2 * 5 * 8 * (4 + 2))
