"""Training by one's own loop and back: what the student is, that plain Adam trains it, what comes back."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import BadRequest, Unsupported, VerifyError
from tests import kit

torch = pytest.importorskip("torch")
DEMO = files("graphpress.tools.demo")


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    with np.load(DEMO / "digits.npz") as data:
        return torch.from_numpy(data["image"]), torch.from_numpy(data["labels"])


@pytest.fixture(scope="module")
def quantized() -> ir.Model:
    options = {"gate": False, "prove": False, "portable": True}
    return gp.compile(DEMO / "digits.onnx", "w8a8", DEMO / "digits.npz", **options)[0]


def steps(student: Any, x: Any, y: Any, parameters: Any, count: int = 8, lr: float = 1e-4) -> list[float]:
    optimizer, losses = torch.optim.Adam(parameters, lr), []
    for _ in range(count):
        loss = torch.nn.functional.cross_entropy(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("quantizers", ["straight-through", "learnable"])
def test_a_student_gives_what_the_folded_model_gives(quantizers: str, quantized: ir.Model, digits: Any) -> None:
    x = digits[0][:64]
    student = gp.to_torch(quantized, quantizers=quantizers)
    expected = gp.to_torch(quantized, quantizers="exact")(x)
    torch.testing.assert_close(student(x), expected, rtol=0, atol=1e-5)
    kinds = {group["name"]: len(group["params"]) for group in gp.parameter_groups(student)}
    assert kinds["weights"] == kinds["vectors"] == 7  # six convolutions and a linear layer, each with a bias
    assert ("scales" in kinds) == (quantizers == "learnable")


@pytest.mark.parametrize("grouped", [False, True])
def test_adam_at_1e_4_trains_scales_and_weights(quantized: ir.Model, digits: Any, grouped: bool) -> None:
    student = gp.to_torch(quantized, quantizers="learnable")
    losses = steps(
        student, digits[0][:64], digits[1][:64], gp.parameter_groups(student) if grouped else student.parameters()
    )
    assert max(losses) < 1.5 * losses[0]
    assert losses[-1] < losses[0]


def test_a_trained_student_comes_back_and_folds(quantized: ir.Model, digits: Any, tmp_path: Path) -> None:
    x, y = digits[0][:64], digits[1][:64]
    before = {n: v.const_value.numpy().copy() for n, v in quantized.graph.initializers.items() if v.const_value}
    student = gp.to_torch(quantized, quantizers="learnable")
    steps(student, x, y, gp.parameter_groups(student, lr=1e-3))
    back = gp.from_torch(student, like=quantized)
    for name, array in before.items():
        np.testing.assert_array_equal(quantized.graph.initializers[name].const_value.numpy(), array)  # type: ignore[union-attr]
    gp.save(back, tmp_path / "student.onnx")
    onnx.checker.check_model(str(tmp_path / "student.onnx"), full_check=True)
    (given,) = kit.run(back, {"image": x.numpy()}).values()
    wanted = student(x).detach().numpy()
    close = np.abs(given - wanted).max(1) < 1e-4  # but where a runtime's sum falls on the other side of a half
    assert close.mean() > 0.9
    (old,) = kit.run(quantized, {"image": x.numpy()}).values()
    assert np.abs(old - wanted).max() > 0.05  # it is the trained one
    folded, report = gp.compile(back, "fold", {"image": x.numpy()}, prove=False)
    assert report.gate.passed
    assert gp.inspect(folded).ops["QuantizeLinear"] < gp.inspect(back).ops["QuantizeLinear"]
    again = gp.from_torch(gp.to_torch(back, quantizers="learnable"), like=back)
    kit.assert_same_structure(again, back)
    for way in (gp.from_torch(student), gp.trace(student), gp.from_torch(copy.deepcopy(student))):
        kit.assert_same_structure(way, back)
    gp.save(student, tmp_path / "saved.onnx")
    assert (tmp_path / "saved.onnx").read_bytes() == (tmp_path / "student.onnx").read_bytes()


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(copy.deepcopy, id="copy"),
        pytest.param(torch.compile, id="compile", marks=pytest.mark.slow),
        pytest.param(torch.optim.swa_utils.AveragedModel, id="average"),
    ],
)
def test_copies_and_wrappers_come_back(wrap: Any, quantized: ir.Model) -> None:
    student = gp.to_torch(quantized, quantizers="learnable")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.data = parameter + 0.01
    expected = gp.from_torch(student, like=quantized)
    kit.assert_same_structure(gp.from_torch(wrap(student), like=quantized), expected)


def test_a_state_dict_goes_into_a_fresh_student(quantized: ir.Model, digits: Any) -> None:
    student = gp.to_torch(quantized, quantizers="learnable")
    steps(student, digits[0][:16], digits[1][:16], student.parameters(), 2, 1e-2)
    fresh = gp.to_torch(quantized, quantizers="learnable")
    fresh.load_state_dict(student.state_dict())
    assert torch.equal(fresh(digits[0][:16]), student(digits[0][:16]))


def test_zero_points_are_rounded_into_their_type() -> None:
    source = """g (float[N, 2] x) => (float[N, 2] y) <float s = {0.1}, uint8 z = {100}> {
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z) }"""
    model = kit.parse(source)
    for moved, expected in ((100.4, 100), (101.6, 102), (300.0, 255), (-7.0, 0)):
        student = gp.to_torch(model, quantizers="learnable")
        with torch.no_grad():
            student.get_parameter("z").data = torch.tensor(moved)
        zero = gp.from_torch(student, like=model).graph.initializers["z"].const_value
        assert zero is not None
        assert zero.dtype == ir.DataType.UINT8
        assert zero.numpy() == expected


def test_weights_of_fewer_bits_than_their_type_stay_within_them() -> None:
    options = {"gate": False, "prove": False, "portable": True}
    passes = [{"quantize": {"mode": "weight", "weight": "int3"}}, {"recipe": "fold"}]
    model, _ = gp.compile(DEMO / "digits.onnx", {"name": "w3", "summary": "three bits", "passes": passes}, **options)
    student = gp.to_torch(model)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter * 10
    back = gp.from_torch(student, like=model)
    folded, _ = gp.compile(back, "fold", **options)
    codes = [
        v.const_value.numpy().astype(int) for v in folded.graph.initializers.values() if v.dtype == ir.DataType.INT4
    ]  # type: ignore[union-attr]
    assert len(codes) > 5
    assert min(c.min() for c in codes) >= -4
    assert max(c.max() for c in codes) == 3


def test_what_was_unfolded_is_not_taken_for_the_sources_parameter() -> None:
    """A square weight lies as the graph has it: under its name the module would take it the wrong way round."""
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)).eval()
    graph = gp.trace(module, (torch.zeros(2, 3, 16),))
    model, _ = gp.compile(graph, "w8a16", gate=False, prove=False, portable=True)
    state = gp.to_torch(model).state_dict()
    assert not {"0.weight", "2.weight"} & set(state)
    assert {"0.weight_folded", "2.weight_folded"} <= set(state)
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        module.load_state_dict(state)


def test_a_float_model_comes_back_too(digits: Any) -> None:
    model = gp.load(DEMO / "digits.onnx")
    student = gp.to_torch(model)
    steps(student, digits[0][:16], digits[1][:16], student.parameters(), 2, 1e-3)
    back = gp.from_torch(student, like=DEMO / "digits.onnx")
    (given,) = kit.run(back, {"image": digits[0][:16].numpy()}).values()
    np.testing.assert_allclose(given, student(digits[0][:16]).detach().numpy(), atol=1e-5)


def test_what_cannot_come_back_says_so(quantized: ir.Model) -> None:
    student = gp.to_torch(quantized, quantizers="learnable")
    with pytest.raises(BadRequest, match=r"a Linear is no module of a graph.*to_torch"):
        gp.from_torch(torch.nn.Linear(2, 2), like=quantized)
    with pytest.raises(BadRequest, match=r"no module of a graph"):
        gp.parameter_groups(torch.nn.Linear(2, 2))
    with pytest.raises(BadRequest, match=r"no such initializer.*like"):
        gp.from_torch(student, like=DEMO / "digits.onnx")
    with pytest.raises(BadRequest, match="nan is no rate"):
        gp.parameter_groups(student, lr=float("nan"))
    name, parameter = next((n, p) for n, p in student.named_parameters() if p.dim() > 1)
    parameter.data = torch.full_like(parameter, torch.nan)
    with pytest.raises(BadRequest, match=f"{name}.*NaN or infinity"):
        gp.from_torch(student, like=quantized)


@pytest.mark.parametrize("recipe", ["w8a16", "w4a16"])
def test_a_lowered_model_says_how_to_get_one_that_trains(recipe: str) -> None:
    model, _ = gp.compile(DEMO / "digits.onnx", recipe, gate=False, prove=False)
    with pytest.raises(Unsupported, match="portable=True"):
        gp.to_torch(model)


def test_a_layer_that_lost_its_zeros_is_refused() -> None:
    source = """g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 1, 1, 1, 0, 0, 0, 0}> {
        y = MatMul(x, w) }"""
    model = kit.parse(source)
    next(iter(model.graph)).metadata_props["graphpress.sparsity"] = "2:4"
    student = gp.to_torch(model)
    student.get_parameter("w").data += 1
    with pytest.raises(VerifyError, match="2:4"):
        gp.from_torch(student, like=model)


def test_a_body_that_was_trained_is_refused() -> None:
    source = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) <float[2] w = {1, 2}> { a = Mul(x, w) },
                    else_branch = e () => (float[2] b) <float[2] v = {3, 4}> { b = Mul(x, v) }> }"""
    student = gp.to_torch(model := kit.parse(source))
    kit.assert_same_structure(gp.from_torch(student, like=model), model)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    student(torch.tensor(True), torch.ones(2)).sum().backward()
    with pytest.raises(Unsupported, match="within the body"):
        gp.from_torch(student, like=model)
    optimizer.step()
    optimizer.zero_grad()  # no gradient is left to tell of it
    with pytest.raises(Unsupported, match="within the body"):
        gp.from_torch(student, like=model)
