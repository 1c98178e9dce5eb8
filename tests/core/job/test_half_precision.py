"""Models in half precision through recipes: types at the ends, accuracy against float64, size, and what is said."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import BadRequest, CalibrationError
from graphpress.job import engine
from graphpress.target import Target
from tests import kit

D = ir.DataType
KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float": np.float32}


def network(kind: str) -> ir.Model:
    """Two layers of 64 and 32 on [N, 48] in one type; the weights are bfloat16's whatever the type."""
    rng = np.random.default_rng(8)
    model = kit.parse(f"""g ({kind}[N,48] x) => ({kind}[N,32] y) {{
        h = MatMul(x, W) a = Add(h, b) c = Relu(a) y = MatMul(c, V) }}""")
    arrays = {"W": rng.normal(size=(48, 64)) * 0.2, "b": rng.normal(size=64), "V": rng.normal(size=(64, 32)) * 0.2}
    for value in [v for n in model.graph for v in n.inputs if v is not None and v.name in arrays]:
        exact = arrays[value.name or ""].astype(ml_dtypes.bfloat16).astype(KINDS[kind])
        value.const_value = ir.tensor(exact, name=value.name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(exact.shape)
        model.graph.register_initializer(value)
    return model


def samples(kind: str, count: int = 40) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(count, 48)).astype(ml_dtypes.bfloat16).astype(KINDS[kind])


def exact(x: np.ndarray) -> np.ndarray:
    w, b, v = (network("float").graph.initializers[n].const_value.numpy().astype(np.float64) for n in "WbV")  # type: ignore[union-attr]
    return np.maximum(x.astype(np.float64) @ w + b, 0) @ v


def sqnr(model: ir.Model, kind: str, target: str) -> float:
    where = Target.load(target)
    given = engine.of(where).execute(model, target=where)({"x": samples(kind)})["y"]
    assert given.dtype == KINDS[kind]
    wanted = exact(samples(kind))
    return 10 * math.log10((wanted**2).sum() / ((wanted - given.astype(np.float64)) ** 2).sum())


@pytest.mark.parametrize(
    ("kind", "recipe", "target"),
    [
        ("float16", "w8a8", "ort-cpu"),
        ("bfloat16", "w8a8-dynamic", "ort-cpu"),
        ("bfloat16", "w8a8", "torch-cpu"),
        pytest.param("bfloat16", "w8a16", "ort-cpu", marks=pytest.mark.slow),
        pytest.param("float16", "w4a16-gptq", "torch-cpu", marks=pytest.mark.slow),
        pytest.param("float16", "w8a8-dynamic", "torch-cpu", marks=pytest.mark.slow),
    ],
)
def test_as_accurate_as_float32(kind: str, recipe: str, target: str, tmp_path: Path) -> None:
    if target == "torch-cpu":
        pytest.importorskip("torch")
    proven = target == "ort-cpu"
    low, report = gp.compile(network(kind), recipe, {"x": samples(kind)}, target, gate=False, prove=proven)
    base, _ = gp.compile(network("float"), recipe, {"x": samples("float")}, target, gate=False, prove=False)
    rounded = {"float16": 11, "bfloat16": 8}[kind]  # digits of the output: its rounding is noise as well
    noise = 10 ** (-sqnr(base, "float", target) / 10) + 4.0**-rounded / 3
    assert sqnr(low, kind, target) >= -10 * math.log10(noise) - 0.5
    gp.save(low, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    again = gp.load(tmp_path / "m.onnx")
    assert [v.dtype for v in (*again.graph.inputs, *again.graph.outputs)] == [D.from_numpy(np.dtype(KINDS[kind]))] * 2
    assert report.half.startswith(f"{kind} computed in float32: 3 weights, 4 values; inputs and outputs keep their")
    assert report.size["weights_after"] <= base_size(base)
    assert not proven or all(r.verdict in ("integer", "weight-only") for r in report.sites if r.op == "MatMul")


def base_size(model: ir.Model) -> int:
    from graphpress.report.report import stored_bytes

    return stored_bytes(model)


@pytest.mark.parametrize("target", ["ort-cpu", "torch-cpu"])
def test_what_stays_float_stays_half(target: str, tmp_path: Path) -> None:
    if target == "torch-cpu":
        pytest.importorskip("torch")
    model = network("float16")
    low, report = gp.compile(model, "clean", {"x": samples("float16")}, target, prove=target == "ort-cpu")
    assert report.size["weights_after"] == report.size["weights_before"]
    assert report.half.endswith("; 3 float weights stored as halves")
    assert {n: v.dtype for n, v in low.graph.initializers.items()} == dict.fromkeys("WbV", D.FLOAT16)
    assert [o.sqnr for o in report.gate.outputs] == [math.inf]
    gp.save(model, tmp_path / "a.onnx")
    gp.save(low, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").stat().st_size < 1.2 * (tmp_path / "a.onnx").stat().st_size  # a node for each weight
    assert sum(site.weights for site in gp.inspect(low).sites) == 48 * 64 + 64 * 32
    if target == "torch-cpu":  # any runtime takes it
        again = gp.lower(tmp_path / "b.onnx", "ort-cpu")({"x": samples("float16")})["y"]
        assert np.array_equal(again, gp.lower(network("float16"), "ort-cpu")({"x": samples("float16")})["y"])


def test_the_torch_module_keeps_names_and_types() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)).bfloat16().eval()
    x = torch.randn(8, 48).bfloat16()
    model, report = gp.compile(gp.trace(layer, (x,)), "clean", target="torch-cpu", prove=False)
    module = gp.lower(model, "torch-cpu")
    assert module(x).dtype == torch.bfloat16
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}
    module.load_state_dict(layer.state_dict())
    exact = layer.double()(x.double())
    torch.testing.assert_close(module(x).double(), exact, rtol=2.0**-8, atol=1e-6)
    assert "stored as halves" in report.half


def test_data_are_rounded_to_the_type_of_an_input_and_refused_beyond_it() -> None:
    model, data = network("float16"), samples("float") * np.float32(1.0001)
    rounded = gp.compile(model, "w8a8", {"x": data.astype(np.float16)}, gate=False, prove=False)[0]
    given = gp.compile(model, "w8a8", {"x": data.astype(np.float64)}, gate=False, prove=False)[0]
    assert kit.structure(given) == kit.structure(rounded)
    data[3, 5] = 7e4
    with pytest.raises(CalibrationError, match=r"input 'x': holds 70000, the input's type ends at 65504"):
        gp.compile(model, "w8a8", {"x": data})
    with pytest.raises(CalibrationError, match="is int64, the model takes float16"):
        gp.compile(model, "w8a8", {"x": data.astype(np.int64)})


def test_bfloat16_data_from_a_file_and_what_is_no_number_in_them(tmp_path: Path) -> None:
    data = samples("bfloat16")
    np.savez(tmp_path / "d.npz", x=data)
    kept = gp.compile(network("bfloat16"), "w8a8", tmp_path / "d.npz", gate=False, prove=False)[0]
    direct = gp.compile(network("bfloat16"), "w8a8", {"x": data}, gate=False, prove=False)[0]
    assert kit.structure(kept) == kit.structure(direct)
    data[2, 2] = np.nan
    with pytest.raises(CalibrationError, match="input 'x', sample 2: holds nan"):
        gp.compile(network("bfloat16"), "w8a8", {"x": data})


def test_the_gate_compares_before_outputs_are_rounded() -> None:
    _, report = gp.compile(network("bfloat16"), "w8a16", {"x": samples("bfloat16")}, prove=False)
    (output,) = report.gate.outputs
    base = gp.compile(network("float"), "w8a16", {"x": samples("float")}, prove=False)[1].gate.outputs[0]
    assert output.sqnr == pytest.approx(base.sqnr, abs=0.05)  # 0.4 dB with outputs of 8 digits; scales are halves too


def test_a_share_of_bytes_is_one_of_the_model_as_given() -> None:
    half, whole = (network(kind) for kind in ("float16", "float"))
    data = {"x": samples("float16")}
    _, asked = gp.compile(half, "mixed", data, max_size="0.55x", gate=False, prove=False)
    assert asked.size["weights_after"] <= 0.56 * asked.size["weights_before"]
    with pytest.raises(BadRequest, match="share must lie above 0 and at most at 1"):
        gp.compile(half, "mixed", data, max_size="1.5x")
    _, own = gp.compile(half, "mixed", data, gate=False, prove=False)  # the recipe's 0.3x is of float32
    _, base = gp.compile(whole, "mixed", {"x": samples("float")}, gate=False, prove=False)
    assert own.plan == base.plan


def test_a_float32_model_says_nothing_of_it() -> None:
    _, report = gp.compile(network("float"), "w8a16", prove=False)
    assert report.half == ""
    assert "widen-half" not in [p.name for p in report.passes]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["float16 traced", "bfloat16 traced", "float16 ONNX", "Cast ends", "weights behind Cast", "mixed"]
)
@pytest.mark.parametrize("target", ["ort-cpu", "torch-cpu"])
@pytest.mark.parametrize("which", ["vision", "block"])
def test_every_recipe_on_every_form(which: str, target: str, name: str) -> None:
    pytest.importorskip("torch")
    from graphpress import shipped
    from graphpress.tools.bench import half

    kind = "bfloat16" if name.startswith("bfloat16") else "float16"
    base = "float32 (bfloat16 weights)" if kind == "bfloat16" else "float32"
    for recipe in shipped.recipes():
        if recipe == "fold":  # needs Q/DQ
            continue
        entries = [half.entry(target, which, recipe, form) for form in (base, name)]
        if entries[0].error == entries[1].error == "-":
            continue
        assert [e.error for e in entries] == ["", ""], recipe
        noise = 10 ** (-entries[0].sqnr / 10) + 10 ** (-{"float16": 65, "bfloat16": 50}[kind] / 10)
        assert entries[1].sqnr >= -10 * math.log10(noise) - 1.0, recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "codelm"])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a16-gptq"])
def test_a_real_model(zoo: Path, name: str, recipe: str) -> None:
    pytest.importorskip("torch")
    from graphpress.tools.bench.half_models import to_half
    from graphpress.tools.bench.zoo import tasks

    (task,) = tasks(zoo, name)
    model = gp.load(task.file(zoo))
    data = {k: a[:64] if a.ndim else a for k, a in task.data().items()}
    halves = model.clone()
    to_half(halves, D.FLOAT16, ends=True)
    found = [gp.compile(m, recipe, data, gate=False, prove=False) for m in (model, halves)]
    (a, b) = (report.gate.outputs[0].sqnr for _, report in found)
    assert b >= a - 1.0
    (small, smaller) = (report.size["weights_after"] for _, report in found)
    assert smaller <= small
