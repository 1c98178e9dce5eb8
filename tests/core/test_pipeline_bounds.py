"""How far outputs may move, by figures written out here, and when they are looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphpress import pipeline
from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest, PassError, Unsupported
from graphpress.graph import edit
from graphpress.keys import STAGE
from graphpress.observe.data import CalibrationData
from graphpress.pipeline import Pipeline, deviation, stage_of
from graphpress.types import Numerics, Stage
from tests import kit

MODEL = "g (float[N, 4] x) => (float[N, 4] y) <float one = {1.0}> { y = Mul(x, one) }"
X = np.ones((8, 4), np.float32)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies by another factor than the model says."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        (node,) = model.graph
        assert isinstance(node.graph, ir.Graph)
        edit.set_input(node, 1, edit.add_const(node.graph, np.float32(self.factor), "factor"))


@dataclass(frozen=True)
class CloseScale(Scale):
    """The same, declared close."""

    name: ClassVar[str] = "close-scale"
    numerics: ClassVar[Numerics] = Numerics.CLOSE


@dataclass(frozen=True)
class LossyScale(Scale):
    """The same, declared lossy."""

    name: ClassVar[str] = "lossy-scale"
    numerics: ClassVar[Numerics] = Numerics.LOSSY


def context(**more: object) -> Context:
    return replace(
        Context(
            data=CalibrationData.from_arrays({"x": X}), oracle=lambda m, outputs=None: lambda feeds: kit.run(m, feeds)
        ),
        **more,
    )


@pytest.mark.parametrize(
    ("kind", "moved", "fine"),
    [
        (Scale, 0.8e-5, True), (Scale, 1.2e-5, False), (Scale, 1e-3, False), (Scale, -1.2e-5, False),
        (CloseScale, 0.9e-3, True), (CloseScale, 1.1e-3, False), (CloseScale, -1.1e-3, False),
        (LossyScale, 0.5, True),
    ],
)  # fmt: skip
def test_exact_is_a_hundred_thousandth_of_the_rms_and_close_a_thousandth(
    kind: type[Scale], moved: float, fine: bool
) -> None:
    step = kind(1 + moved)
    if fine:
        Pipeline([step]).run(kit.parse(MODEL), context())
    else:
        with pytest.raises(PassError, match=f"pass '{step.name}': declared {step.numerics}"):
            Pipeline([step]).run(kit.parse(MODEL), context())


def test_each_pass_is_held_to_the_model_before_it_and_not_to_the_first() -> None:
    steps = [Scale(1 + 0.8e-5 * k) for k in (1, 2, 3)]
    Pipeline(steps).run(kit.parse(MODEL), context())
    Pipeline([LossyScale(2.0), Scale(2.0)]).run(kit.parse(MODEL), context())
    with pytest.raises(PassError, match="pass 3 of 3") as e:
        Pipeline([Scale(1 + 0.8e-5), LossyScale(2.0), Scale(1.0)]).run(kit.parse(MODEL), context())
    assert any("in pass 3 of 3" in note for note in e.value.__notes__)


def test_the_report_says_how_numbers_were_checked_or_why_not() -> None:
    def said(ctx: Context, wanted: bool | None = None, step: Pass | None = None) -> str:
        return Pipeline([step or Scale(1.0)], check_numbers=wanted).run(kit.parse(MODEL), ctx)[1][0].checked

    assert said(context()).startswith("exact: 0")
    assert said(context(), False) == "not checked: not asked for"
    assert said(context(data=None)) == "not checked: no data"
    assert said(context(oracle=None)) == "not checked: no oracle"
    assert said(context(), None, LossyScale(3.0)) == "lossy: left to the gate"


@pytest.mark.parametrize(("seconds", "wanted", "seen"), [(1.9, None, True), (2.1, None, False), (2.1, True, True)])
def test_a_probe_may_take_two_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float, wanted: bool | None, seen: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: now[0])

    def slow(model: ir.Model, outputs: object = None):
        def run(feeds):
            now[0] += seconds
            return kit.run(model, feeds)

        return run

    _, (first, second) = Pipeline([Scale(1.0), Scale(1 + 1e-6)], check_numbers=wanted).run(
        kit.parse(MODEL), context(oracle=slow)
    )
    if seen:
        assert first.checked.startswith("exact") and second.checked.startswith("exact")
    else:
        assert first.checked == second.checked == "not checked: one probe run takes over 2 s"


def test_a_run_costs_one_probe_a_change_and_one_for_the_start() -> None:
    runs = []

    def counted(model: ir.Model, outputs: object = None):
        return lambda feeds: runs.append(1) or kit.run(model, feeds)

    Pipeline([Scale(1.0), Scale(1 + 1e-6), Scale(1.0)]).run(kit.parse(MODEL), context(oracle=counted))
    assert len(runs) == 4
    runs.clear()
    Pipeline([LossyScale(2.0), LossyScale(3.0)]).run(kit.parse(MODEL), context(oracle=counted))
    assert not runs


def test_deviation_is_the_worst_of_all_outputs() -> None:
    a = {"y": np.array([3.0, 4.0]), "z": np.array([1.0, 1.0])}
    assert deviation(a, {"y": np.array([3.0, 4.0]), "z": np.array([1.0, 0.9])}) == pytest.approx(0.1)
    assert deviation(a, {"y": np.array([3.5, 4.0]), "z": np.array([1.0, 1.0])}) == pytest.approx(0.5 / np.sqrt(12.5))
    assert deviation({}, {}) == 0
    for b in ({"y": a["y"]}, {"y": a["y"][:1], "z": a["z"]}, {"y": a["y"].astype(np.float32), "z": a["z"]}):
        assert deviation(a, b) == np.inf
    assert deviation({"y": a["y"][:1]}, {"y": a["y"]}) == np.inf


def test_differences_below_a_unit_in_the_last_place_of_one_are_none() -> None:
    zeros = {"y": np.zeros(4)}
    assert deviation(zeros, {"y": np.full(4, 2.0**-23)}) == 0
    assert deviation(zeros, {"y": np.full(4, 2.0**-22)}) > 1e4
    assert deviation({"y": np.full(4, 1e-6)}, {"y": np.full(4, 1.2e-6)}) == pytest.approx(0.2)


def test_infinities_and_nans_must_stay_where_they_are() -> None:
    a = {"y": np.array([1.0, np.inf, -np.inf, np.nan])}
    for i, x in ((1, -np.inf), (1, 5.0), (2, np.nan), (3, 0.0), (0, np.nan)):
        b = a["y"].copy()
        b[i] = x
        assert not deviation(a, {"y": b}) <= 1
    assert deviation(a, {"y": np.array([1.1, np.inf, -np.inf, np.nan])}) == pytest.approx(0.1)


def test_other_kinds_of_numbers() -> None:
    for kind in (np.float16, ml_dtypes.bfloat16):
        x = np.array([1.0, 2.0]).astype(kind)
        assert deviation({"y": x}, {"y": x}) == 0
        assert deviation({"y": x}, {"y": (x * kind(1.5)).astype(kind)}) == pytest.approx(1 / np.sqrt(2.5))
    for x, y in ((np.array([True]), np.array([False])), (np.array([3]), np.array([4]))):
        assert deviation({"y": x}, {"y": x}) == 0 and deviation({"y": x}, {"y": y}) == np.inf


def test_the_stage_is_what_the_model_says_or_shows() -> None:
    quantized = kit.parse(
        "g (float[4] x, float s) => (float[4] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"
    )
    foreign = kit.parse(
        '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> '
        "g (float[4] x, float s) => (int8[4] y) { y = com.microsoft.QuantizeLinear(x, s) }"
    )
    assert [stage_of(m) for m in (kit.parse(MODEL), quantized, foreign)] == [Stage.FLOAT, Stage.QDQ, Stage.FLOAT]
    quantized.metadata_props[STAGE] = "float"
    assert stage_of(quantized) is Stage.FLOAT


def test_the_order_is_followed_through_every_pass() -> None:
    @dataclass(frozen=True)
    class Gives(LossyScale):
        name: ClassVar[str] = "gives"
        needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
        gives: ClassVar[Stage | None] = Stage.QDQ

    @dataclass(frozen=True)
    class Wants(LossyScale):
        name: ClassVar[str] = "wants"
        needs: ClassVar[tuple[Stage, ...]] = (Stage.QDQ,)

    model, _ = Pipeline([Gives(), Scale(), Wants()]).run(kit.parse(MODEL))
    assert model.metadata_props[STAGE] == "qdq"
    with pytest.raises(BadRequest, match=r"'wants': needs a model at stage qdq, but here it is float.*after quantize"):
        Pipeline([Wants()]).run(kit.parse(MODEL))
    with pytest.raises(BadRequest, match=r"'gives': needs a model at stage float, but here it is qdq.*before quant"):
        Pipeline([Gives(), Gives()]).run(kit.parse(MODEL))


def test_a_watcher_sees_each_pass_and_time_is_taken() -> None:
    seen: list[tuple[int, str]] = []
    _, reports = Pipeline(
        [Scale(2.0), LossyScale(3.0)], watch=lambda m, r: seen.append((len(list(m.graph)), r.name))
    ).run(kit.parse(MODEL))
    assert seen == [(1, "scale"), (1, "lossy-scale")] and all(0 < r.seconds < 60 for r in reports)


def test_data_that_a_pass_makes_serve_the_passes_after_it() -> None:
    fresh = CalibrationData.from_arrays({"x": np.full((2, 4), 7, np.float32)})

    @dataclass(frozen=True)
    class Makes(Pass):
        name: ClassVar[str] = "makes"

        def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
            report.handed["data"] = fresh

    fed = []

    def oracle(model: ir.Model, outputs: object = None):
        return lambda feeds: fed.append(float(feeds["x"].max())) or kit.run(model, feeds)

    Pipeline([Scale(1.0), Makes(), Scale(1 + 1e-6)]).run(kit.parse(MODEL), context(oracle=oracle))
    assert fed == [1, 1, 7, 7]
    _, reports = Pipeline([Makes(), Scale(1.0)]).run(kit.parse(MODEL), context(data=None))
    assert reports[1].checked.startswith("exact")


def test_passes_of_onnx_ir_that_do_not_work_in_place_are_refused() -> None:
    class Copies(ir.passes.FunctionalPass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model.clone(), True)

    with pytest.raises(Unsupported, match="Copies"):
        Pipeline([Copies()]).run(kit.parse(MODEL))


def test_one_quantized_operator_makes_a_quantized_model() -> None:
    body = "q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = Neg(d)"
    assert stage_of(kit.parse(f"g (float[4] x, float s) => (float[4] y) {{ {body} }}")) is Stage.QDQ


def test_nodes_that_a_pass_leaves_without_a_name_or_with_a_taken_one_get_their_own() -> None:
    @dataclass(frozen=True)
    class Renames(Pass):
        name: ClassVar[str] = "renames"
        to: str | None = None

        def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
            for node in model.graph:
                node.name = self.to

    source = "g (float[4] x) => (float[4] y) { [one] h = Neg(x) [two] y = Abs(h) }"
    for to in (None, "same"):
        after, _ = Pipeline([Renames(to)]).run(kit.parse(source))
        names = [n.name for n in after.graph]
        assert all(names) and len(set(names)) == 2 and (to is None or names[0] == to)


def test_a_reproducer_goes_into_a_folder_that_need_not_be_there_and_the_note_says_where(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    with pytest.raises(PassError) as e:
        Pipeline([Scale(2.0)], dump=folder).run(kit.parse(MODEL), context())
    assert any(str(folder / "before.onnx") in note for note in e.value.__notes__)


def test_a_folder_of_reproducers_may_be_there_already(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PassError, match="declared exact"):
            Pipeline([Scale(2.0)], dump=tmp_path / "dump").run(kit.parse(MODEL), context())


@pytest.mark.parametrize("hands", [False, True])
def test_what_cannot_be_is_refused_ahead_but_for_what_follows_a_pass_that_hands_on(hands: bool) -> None:
    ran = []

    @dataclass(frozen=True)
    class First(LossyScale):
        name: ClassVar[str] = "first"

        def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
            ran.append(self.name)

    First.hands = hands  # type: ignore[misc]

    @dataclass(frozen=True)
    class Refuses(LossyScale):
        name: ClassVar[str] = "refuses"

        def check(self, ctx: Context) -> None:
            raise BadRequest("cannot be")

    for steps in ([Refuses(), First()], [Scale(), Refuses()]):
        with pytest.raises(BadRequest, match="cannot be"):
            Pipeline(steps).run(kit.parse(MODEL))
    if hands:
        Pipeline([First(), Refuses()]).run(kit.parse(MODEL))
    else:
        with pytest.raises(BadRequest, match="cannot be"):
            Pipeline([First(), Refuses()]).run(kit.parse(MODEL))
    assert ran == (["first"] if hands else [])


def test_the_probe_is_one_sample() -> None:
    fed = []

    def oracle(model: ir.Model, outputs: object = None):
        return lambda feeds: fed.append(len(feeds["x"])) or kit.run(model, feeds)

    Pipeline([Scale(1.0)]).run(kit.parse(MODEL), context(oracle=oracle))
    assert fed == [1, 1]


TIES = """g (float[N, 4] x) => (float[N, 4] y) <float one = {1.0}, int64[1] k = {4}> {
    a = Mul(x, one) v, i = TopK(a, k) c = Cast<to = 1>(i) y = Mul(c, one) }"""
WEIGHTS = """g (int64[N, 4] x) => (float[N, 4] y) <float[1, 4] w = {1, 1.00000012, 0.99999994, 1}, float one = {1.0},
    int64[1] k = {4}> { f = Cast<to = 1>(x) a = Mul(f, w) v, i = TopK(a, k) c = Cast<to = 1>(i) y = Mul(c, one) }"""
NEAR = np.float32([[1, 1 + 2**-23, 1 - 2**-24, 1]] * 8)  # TopK takes whichever rounding puts first


@dataclass(frozen=True)
class Round(Pass):
    """Moves each column by a unit in the last place, as another order of a sum does, and all of ``y`` by ``factor``."""

    name: ClassVar[str] = "round"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    factor: float = 1.0

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        first, last = (n for n in model.graph if n.op_type == "Mul")
        assert isinstance(first.graph, ir.Graph)
        assert first.inputs[1] is not None
        assert first.inputs[1].const_value is not None
        units = first.inputs[1].const_value.numpy() * np.float32([[1, 1 - 2**-23, 1 + 2**-22, 1]])
        edit.set_input(first, 1, edit.add_const(first.graph, units, "units"))
        edit.set_input(last, 1, edit.add_const(first.graph, np.float32(self.factor), "factor"))


@pytest.mark.parametrize(
    ("source", "x"), [(TIES, NEAR), (WEIGHTS, np.ones((8, 4), np.int64))], ids=["inputs", "weights"]
)
def test_outputs_that_near_ties_decide_are_no_evidence_against_a_pass(source: str, x: np.ndarray) -> None:
    """Of detectors that take the best of thousands of places: which one comes first is a matter of the last digit."""
    ctx = Context(oracle=reference.execute, data=CalibrationData.from_arrays({"x": x}))
    _, (report,) = Pipeline([Round()]).run(kit.parse(source), ctx)
    assert report.checked.startswith("not checked: outputs move by ")
    assert report.checked.endswith(" of their RMS where weights move by 1e-06 of theirs")


def test_what_moves_outputs_further_than_near_ties_do_is_caught_all_the_same() -> None:
    near = Context(oracle=reference.execute, data=CalibrationData.from_arrays({"x": NEAR}))
    with pytest.raises(PassError, match="pass 'round': declared close but the outputs moved"):
        Pipeline([Round(factor=9.0)]).run(kit.parse(TIES), near)
    apart = Context(oracle=reference.execute, data=CalibrationData.from_arrays({"x": NEAR + np.float32([0, 3, 1, 2])}))
    _, (report,) = Pipeline([Round()]).run(kit.parse(TIES), apart)
    assert report.checked == "close: 0.0e+00"
    with pytest.raises(PassError, match="pass 'round': declared close but the outputs moved"):
        Pipeline([Round(factor=1.01)]).run(kit.parse(TIES), apart)
