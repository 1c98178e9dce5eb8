"""The face end to end: what goes in is not changed, what comes out runs and repeats, what is held out is never seen."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import graphpress as gp
from graphpress.errors import BadRequest, GateError
from graphpress.graph import text
from graphpress.job.job import Clock, Compiled, Job
from graphpress.job.metric import Top1
from graphpress.job.models import as_target
from graphpress.keys import SCHEME
from graphpress.observe.sources.taken import calibration_data
from graphpress.recipe import Recipe
from tests import kit

DEMO = Path(str(files("graphpress.tools.demo")))


def fixed(batch: int | str, samples: int) -> tuple:
    model = kit.parse(
        f"g (float[{batch},4] x) => (float[{batch},4] y) "
        "<float[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,9}> { y = MatMul(x, w) }"
    )
    return model, {"x": np.random.default_rng(0).normal(size=(samples, 4)).astype(np.float32)}


def job(model, data) -> Job:
    made = Job(model, Recipe.load("w8a8"), as_target("ort-cpu"), 0, lambda items, label, total=None: items, Clock())
    made.take(calibration_data(data, model), None)
    return made


@pytest.mark.parametrize(
    ("batch", "samples", "kept", "held"), [(1, 20, 16, 4), (8, 40, 32, 8), (8, 16, 8, 8), (8, 8, 8, 8), (1, 3, 3, 3)]
)
def test_parts_fill_the_batch_that_a_model_fixes(batch: int, samples: int, kept: int, held: int) -> None:
    made = job(*fixed(batch, samples))
    assert (len(made.data), len(made.held_out)) == (kept, held)
    assert list(made.held_out.batches(batch))


def test_held_out_samples_are_not_calibrated_on() -> None:
    made = job(*fixed(1, 50))
    rows = [{tuple(r) for f in part.batches(1) for r in f["x"]} for part in (made.data, made.held_out)]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 50


def test_labels_are_counted_in_the_runs_of_the_gate() -> None:
    model, arrays = fixed("N", 60)
    made = job(model, arrays | {"labels": np.arange(60) % 4})
    run, seen = made.original(), []
    made.float_runner = lambda feeds: seen.append(len(feeds["x"])) or run(feeds)
    metric = made.once(made.recipe).report.metric
    assert sum(seen) == metric["samples"] == len(made.held_out) == 12
    assert metric["before"] == Top1(made.held_out)(run)


def test_the_demo_from_file_to_runner() -> None:
    model = gp.load(DEMO / "digits.onnx")
    before = text.lines(model)
    compiled, report = gp.compile(model, "w8a8", DEMO / "digits.npz")
    assert text.lines(model) == before
    assert report.gate.passed and report.coverage().weights == 1.0 and report.coverage().macs == 1.0
    assert {s.kernel for s in report.sites if s.op == "Conv"} == {"QLinearConv"}
    assert abs(report.metric["after"] - report.metric["before"]) <= 0.5
    images = np.load(DEMO / "digits.npz")["image"][:7]
    scores = next(iter(gp.lower(compiled)({"image": images}).values()))
    exact = next(iter(gp.lower(model)({"image": images}).values()))
    assert (scores.argmax(1) == exact.argmax(1)).all()
    assert sum(SCHEME in n.metadata_props for n in compiled.graph) >= 7


def test_the_same_twice_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model, _ = gp.compile(DEMO / "digits.onnx", "w8a8", DEMO / "digits.npz", prove=False)
        gp.save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.npz"
    seen: list[str] = []

    def stop(items, label, total=None):
        for i, item in enumerate(items):
            seen.append(label)
            if label == "calibrate" and i == 3:
                raise KeyboardInterrupt
            yield item

    recipe = Recipe.load("w8a8").set(["quantize.batch_size=64"])
    monkeypatch.setattr("graphpress.observe.checkpoint._INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", prove=False, state=state, progress=stop)
    assert state.exists()
    seen.clear()
    on, _ = gp.compile(
        DEMO / "digits.onnx", recipe, DEMO / "digits.npz", prove=False, state=state, progress=count(seen)
    )
    once, _ = gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", prove=False, progress=count([]))
    assert 0 < seen.count("calibrate") < 9
    kit.assert_same_structure(on, once)


@pytest.mark.parametrize("label", ["gptq", pytest.param("recover", marks=pytest.mark.slow)])
def test_one_state_serves_calibration_and_what_comes_after(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if label == "recover":
        pytest.importorskip("torch")
    state, seen = tmp_path / "state", list[str]()

    def stop(items, name, total=None):
        for i, item in enumerate(items):
            if name.startswith(label) and i == 3:
                raise KeyboardInterrupt
            seen.append(name)
            yield item

    step = {"gptq": "gptq", "recover": {"recover": {"steps": 6, "select": "last", "samples": 64}}}[label]
    quantize = {"quantize": {"mode": "static", "weight": "int4", "batch_size": 64}}
    recipe = {"name": "two", "passes": [{"recipe": "clean"}, quantize, step, {"recipe": "fold"}]}
    for module in ("observe.checkpoint", "passes.recover.rounding.gptq_state", "passes.recover.engine.state"):
        monkeypatch.setattr(f"graphpress.{module}._INTERVAL", 0.0)
    options = {"prove": False, "gate": False}
    with pytest.raises(KeyboardInterrupt):
        gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", state=state, progress=stop, **options)
    done = sum(name.startswith(label) for name in seen)
    assert len(list(tmp_path.iterdir())) == 2  # calibration's, and the later pass's beside it
    again: list[str] = []
    on, _ = gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", state=state, progress=count(again), **options)
    whole: list[str] = []
    once, _ = gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", progress=count(whole), **options)
    assert done == 3
    assert again.count("calibrate") < whole.count("calibrate")
    kit.assert_same_structure(on, once)


def count(seen: list[str]):
    def show(items, label, total=None):
        for item in items:
            seen.append(label)
            yield item

    return show


def test_below_the_gate_is_an_error_that_carries_what_was_made() -> None:
    recipe = Recipe.load("w8a8").set(["gate.min_sqnr=90"])
    with pytest.raises(GateError, match=r"SQNR .* asked 90\.0\. Sites most to blame: ") as e:
        gp.compile(DEMO / "digits.onnx", recipe, DEMO / "digits.npz", prove=False)
    assert e.value.report.gate.blame and e.value.model is not None


def test_labels_give_accuracy_in_percent() -> None:
    data = gp.CalibrationData.from_arrays({"x": np.eye(4, dtype=np.float32)}, np.array([0, 1, 2, 0]))
    assert Top1(data)(lambda feeds: {"y": feeds["x"]}) == 75.0


def test_a_torch_module_is_sent_to_trace() -> None:
    with pytest.raises(BadRequest, match=r"not a dict\. Bring a torch module in with graphpress\.trace"):
        gp.compile({}, "w8a8")


def test_a_tidied_graph_serves_every_trial() -> None:
    made = job(*fixed(1, 20))
    first, second = made.once(made.recipe), made.once(made.recipe)
    assert isinstance(first, Compiled) and first.clean is second.clean
