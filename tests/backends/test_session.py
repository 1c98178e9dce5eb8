"""Runners: any value of the main graph can be asked for, bad input is named, a refused model names its node."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import reference
from graphpress.backends.ort import lent, session
from graphpress.errors import BadRequest, Unsupported
from tests import kit
from tests.backends.given import codes, parse

CHAIN = """
g (float[n, 3] x, float[3] b) => (float[n, 3] y, float[n, 3] z) {
    a = Add(x, b)
    y = Mul(a, a)
    z = Neg(y)
}"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, 2, 3], np.float32)


@pytest.mark.parametrize("execute", [reference.execute, session.execute])
def test_any_value_of_the_main_graph(execute: object) -> None:
    model = parse(CHAIN, b=B)
    runner = execute(model)  # type: ignore[operator]
    assert runner.input_names == ("x",)
    assert runner.output_names == ("y", "z")
    np.testing.assert_array_equal(runner({"x": X})["z"], -((X + B) ** 2))
    wanted = execute(model, ["a", "x", "b", "y"])({"x": X})  # type: ignore[operator]
    assert list(wanted) == ["a", "x", "b", "y"]
    np.testing.assert_array_equal(wanted["a"], X + B)
    np.testing.assert_array_equal(wanted["x"], X)
    np.testing.assert_array_equal(wanted["b"], B)
    assert execute(model, [])({"x": X}) == {}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x': the input is missing. Given: none."),
        ({"X": X}, "input 'x': the input is missing. Given: X."),
        ({"x": X, "xx": X}, "input 'xx': the model has no such input. Did you mean 'x'?"),
        ({"x": X.astype(np.float64)}, "input 'x': is float64, the model wants float32"),
        ({"x": X[:, :2]}, "input 'x': has shape (2, 2), the model wants (n, 3)"),
        ({"x": X[0]}, "input 'x': has shape (3,), the model wants (n, 3)"),
    ],
)
def test_bad_feeds_name_the_input(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadRequest) as e:
        reference.execute(parse(CHAIN, b=B))(feeds)
    assert str(e.value) == message


def test_unknown_output_offers_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"output 'yy': the main graph has no such value\. Did you mean 'y'\?"):
        reference.execute(parse(CHAIN, b=B), ["yy"])


@pytest.mark.parametrize(
    "body",
    [
        "[guilty] y = other.Op(x)",
        "[guilty] y = Nonsense(x)",
        "[guilty] y = MatMul(x, x)",
        "[guilty] y = Relu<alpha=1>(x)",
    ],
)
def test_a_refused_model_names_the_node(body: str) -> None:
    head = '<ir_version: 10, opset_import: ["" : 21, "other" : 1]>'
    model = ir.from_proto(onnx.parser.parse_model(f"{head} g (float[2, 3] x) => (float[2, 3] y) {{ {body} }}"))
    with pytest.raises(Unsupported, match=r"node 'guilty': ONNX Runtime .* refuses the model"):
        reference.execute(model)


def test_a_failing_run_names_the_node_and_the_shapes() -> None:
    model = kit.parse("g (float[a, b] x, float[c, d] y) => (float[e, f] z) { [product] z = MatMul(x, y) }")
    with pytest.raises(BadRequest, match=r"node 'product': the model failed on x \(2, 3\), y \(2, 3\)"):
        reference.execute(model)({"x": X, "y": X})


def test_weights_on_disk_and_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    source = """g (float[n, 64] x, float w, float s) => (float[n, 64] y) {
        f = DequantizeLinear(w, s)
        y = MatMul(x, f)
    }"""
    model = parse(source, w=codes(rng, "int4", (64, 64)), s=np.array(0.5, np.float32))
    feeds = {"x": rng.normal(size=(2, 64)).astype(np.float32)}
    want = reference.execute(model)(feeds)["y"]
    ir.save(model, tmp_path / "m.onnx", external_data="m.bin", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(reference.execute(loaded)(feeds)["y"], want)
    monkeypatch.setattr(session, "INLINE_LIMIT", 100)
    np.testing.assert_array_equal(reference.execute(loaded)(feeds)["y"], want)
    np.testing.assert_array_equal(reference.execute(loaded, ["f", "y"])(feeds)["y"], want)


@pytest.mark.parametrize("optimise", [False, True])
def test_large_weights_are_read_where_they_lie(optimise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every type, unaligned in a file too, and none of them in the bytes; what is no plain weight stays there."""
    monkeypatch.setattr(lent, "WORTH", 0)
    rng, n = np.random.default_rng(0), 128
    source = """
    g (float[n, 128] x, float w, float h, float i, float s, float z, float q, float t)
        => (float[n, 128] y, float[128, 128] t) {
        f = Cast<to = 1>(h)
        a = MatMul(x, w)
        b = MatMul(a, f)
        d = DequantizeLinear(i, s)
        e = MatMul(b, d)
        p = DequantizeLinear(q, s)
        c = MatMul(e, p)
        k = Gather<axis = 1>(c, z)
        y = Add(k, x)
    }"""
    weights = {
        "w": rng.normal(size=(n, n)).astype(np.float32) / 8, "h": rng.normal(size=(n, n)).astype(np.float16) / 8,
        "i": rng.integers(-9, 9, (n, n)).astype(np.int8), "s": np.array(0.01, np.float32),
        "z": rng.permutation(n).astype(np.int64), "q": codes(rng, "int4", (n, n)),
        "t": rng.normal(size=(n, n)).astype(np.float32),
    }  # fmt: skip
    model = parse(source, **weights)
    x = rng.normal(size=(3, n)).astype(np.float32)
    q = np.asarray(weights["q"]).astype(np.float64)
    wide = {k: np.asarray(v).astype(np.float64) for k, v in weights.items() if k != "q"}
    c = x.astype(np.float64) @ wide["w"] @ wide["h"] @ (wide["i"] * 0.01) @ (q * 0.01)
    want = c[:, weights["z"]] + x
    (tmp_path / "m.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    bare, held = lent.lend(model)
    assert sorted(held) == ["h", "i", "w"]
    assert ir.to_proto(bare).ByteSize() < ir.to_proto(model).ByteSize() - sum(weights[k].nbytes for k in held) + 500
    for one in (model, gp.load(tmp_path / "m.onnx")):
        run = session.open_session(one, None, session.SessionOptions(optimise=optimise))
        found = run({"x": x})
        np.testing.assert_allclose(found["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())
        np.testing.assert_array_equal(found["t"], weights["t"])
        del one
        gc.collect()
        np.testing.assert_array_equal(run({"x": x})["y"], found["y"])  # the session keeps what it reads


@pytest.mark.parametrize("saturates", [False, True])
def test_signed_weights_are_moved_only_where_sums_saturate(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime does it on every x86, and small networks pay 40 % of their time for it."""
    monkeypatch.setattr(session, "_saturates", lambda: saturates)
    options = session.execute(parse(CHAIN, b=B)).session.get_session_options()
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


def test_values_in_a_dialect_free_function_run() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2, 3] x) => (float[2, 3] y) { y = own.Twice(x) }
    <domain: "own", opset_import: ["" : 21]> Twice (a) => (b) { b = Add(a, a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    np.testing.assert_array_equal(session.execute(model)({"x": X})["y"], 2 * X)


def test_a_run_repeats_bit_for_bit(zoo: Path) -> None:
    model = ir.load(zoo / "cifar10" / "resnet20.onnx")
    feeds = kit.random_feeds(model, dims={"batch": 4})
    runs = [session.execute(model)(feeds)["logits"] for _ in range(2)]
    np.testing.assert_array_equal(*runs)
    plain = reference.execute(model)(feeds)["logits"]
    np.testing.assert_allclose(runs[0], plain, rtol=0, atol=np.abs(plain).max() * 1e-5)


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_activations_before_a_weight_behind_dq_stay_float(bits: str) -> None:
    """ONNX Runtime's own default rounds them to 8 bits, a hundred times more than float32's rounding."""
    from graphpress.passes.quantize.quantize import Quantize
    from tests.passes.quantizing import context, model, normal

    made = model("g (float[N, 64] x, float[64, 8] w) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": normal(64, 8)})
    options = Quantize(mode="weight", weight=bits, weight_granularity="per_group", group_size=32)
    after, _ = kit.apply(made, options, ctx=context(None, None))
    x = {"x": normal(16, 64, seed=1)}
    np.testing.assert_allclose(session.execute(after)(x)["y"], kit.run(after, x)["y"], atol=2e-5)


@pytest.mark.parametrize("kind", ["int2", "uint2"])
def test_a_constant_in_front_of_two_bit_quantization_runs(kind: str) -> None:
    """ONNX Runtime 1.32 fails when it folds such a Q."""
    rng = np.random.default_rng(0)
    model = parse(
        """<ir_version: 11, opset_import: ["" : 25]> g (float[4, 8] x, float w, float s, float z) => (float[4, 6] y) {
            c = QuantizeLinear<axis = 1>(w, s, z)
            f = DequantizeLinear<axis = 1>(c, s, z)
            y = MatMul(x, f)
        }""",
        w=rng.normal(size=(8, 6)).astype(np.float32),
        s=rng.uniform(0.5, 1, 6).astype(np.float32),
        z=codes(rng, kind, (6,)),
    )
    feeds = kit.random_feeds(model, 0)
    want, got = reference.execute(model)(feeds)["y"], session.execute(model)(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
