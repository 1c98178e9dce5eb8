"""The pipeline keeps every promise for the passes: copy, order, structure, numbers, provenance."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as onnx_ir_passes
import pytest

from graphpress.backends import reference
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest, PassError, VerifyError
from graphpress.graph import edit, text
from graphpress.observe.data import CalibrationData
from graphpress.pipeline import Pipeline, deviation, stage_of
from graphpress.types import Numerics, Stage
from tests import kit
from tests.core.graph.test_edit import CHAIN


@dataclass(frozen=True)
class Rename(Pass):
    """Replaces Relu by another operator."""

    name: ClassVar[str] = "rename"
    to: str = "Abs"

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        for node in list(model.graph):
            if node.op_type == "Relu":
                new = edit.new_node(self.to, [node.inputs[0]], before=node, origin=node)
                edit.replace(node.outputs[0], new.outputs[0])
                edit.remove([node])


@dataclass(frozen=True)
class Sloppy(Pass):
    """Breaks the graph half way and raises."""

    name: ClassVar[str] = "sloppy"

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        next(iter(model.graph)).op_type = "Mul"
        raise KeyError("param 310")


@dataclass(frozen=True)
class Unwire(Pass):
    """Leaves an input undefined."""

    name: ClassVar[str] = "unwire"

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        next(n for n in model.graph if n.op_type == "Relu").replace_input_with(0, ir.Value(name="nowhere"))


@dataclass(frozen=True)
class Early(Pass):
    """Accepts float graphs only and gives Q/DQ."""

    name: ClassVar[str] = "early"
    needs: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT,)
    gives: ClassVar[Stage | None] = Stage.QDQ
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        report.skip("Relu_1", "nothing to do")


@dataclass(frozen=True)
class Drop(Pass):
    """Replaces Relu by Abs, which is lossy, and says whom it would have been trained towards."""

    name: ClassVar[str] = "drop"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        if ctx.teacher is not None:
            report.metrics["teacher"] = " ".join(n.op_type for n in ctx.teacher.graph)
        Rename().run(model, ctx, report)


def context() -> Context:
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    return Context(
        data=CalibrationData.from_arrays({"x": x}), oracle=lambda m, outputs=None: lambda feeds: kit.run(m, feeds)
    )


def test_the_input_model_is_never_touched() -> None:
    model = kit.parse(CHAIN)
    before = text.lines(model)
    for step in (Rename(), Sloppy(), Unwire()):
        with contextlib.suppress(PassError, VerifyError):
            Pipeline([step]).run(model)
        assert text.lines(model) == before


def test_new_nodes_say_which_pass_made_them() -> None:
    model, _ = Pipeline([Rename()]).run(kit.parse(CHAIN))
    assert kit.made_by(model) == [("rename", "Relu_1")]


def test_change_is_measured_not_believed() -> None:
    _, reports = Pipeline([Rename(), Rename()]).run(kit.parse(CHAIN))
    assert [r.changed for r in reports] == [1, 0]


def test_wrong_numbers_are_caught_and_the_pass_is_named() -> None:
    with pytest.raises(PassError, match="pass 'rename': declared exact but the outputs moved"):
        Pipeline([Rename("Neg")]).run(kit.parse(CHAIN), context())
    _, reports = Pipeline([Rename("Relu")]).run(kit.parse(CHAIN), context())
    assert reports[0].checked.startswith("exact: 0")


def test_a_model_that_fixes_its_batch_is_checked_in_batches_of_that_size() -> None:
    _, reports = Pipeline([Rename("Relu")]).run(kit.parse(CHAIN.replace("float[N,4]", "float[8,4]")), context())
    assert reports[0].checked.startswith("exact: 0")


def test_a_broken_graph_and_a_crash_name_the_pass_and_leave_a_reproducer(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"^pass 'unwire' left a broken graph: .* This is a bug of the pass.") as e:
        Pipeline([Rename("Relu"), Unwire()], dump=tmp_path / "dump").run(
            kit.parse(CHAIN.replace("y = Relu(h)", "y = Relu(h)"))
        )
    notes = "\n".join(e.value.__notes__)
    assert "pass 2 of 2" in notes and "before it: ['rename']" in notes
    assert (tmp_path / "dump" / "before.onnx").exists() and "Unwire" in (tmp_path / "dump" / "pipeline.txt").read_text()
    with pytest.raises(PassError, match="KeyError"):
        Pipeline([Sloppy()]).run(kit.parse(CHAIN))


def test_order_is_checked_before_anything_runs() -> None:
    with pytest.raises(BadRequest, match="pass 'early': needs a model at stage float, but here it is qdq"):
        Pipeline([Early(), Early()]).run(kit.parse(CHAIN))
    model, reports = Pipeline([Early()]).run(kit.parse(CHAIN))
    assert stage_of(model) is Stage.QDQ and reports[0].skips[0].why == "nothing to do"


def test_passes_of_onnx_ir_stand_in_a_pipeline() -> None:
    source = CHAIN.replace("y = Relu(h)", "i = Identity(h) y = Relu(i)")
    model, reports = Pipeline([onnx_ir_passes.IdentityEliminationPass(), Rename("Relu")]).run(
        kit.parse(source), context()
    )
    assert kit.ops(model) == ["Add", "Relu"] and reports[0].changed == 1


def test_deviation_sees_names_shapes_nans_and_integers() -> None:
    x = {"y": np.array([1.0, np.nan, -np.inf], np.float32)}
    assert deviation(x, {"y": x["y"].copy()}) == 0
    assert deviation(x, {"z": x["y"]}) == np.inf
    assert deviation(x, {"y": np.array([1.0, 0.0, -np.inf], np.float32)}) == np.inf
    assert deviation({"y": np.array([1, 2])}, {"y": np.array([1, 3])}) == np.inf
    assert deviation({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 4.5])}) == pytest.approx(0.5 / np.sqrt(12.5))


def test_passes_after_a_lossy_one_get_the_model_before_it_as_teacher() -> None:
    model = kit.parse(CHAIN)
    _, reports = Pipeline([onnx_ir_passes.RemoveUnusedNodesPass(), Drop(), Drop()]).run(model)
    before = " ".join(n.op_type for n in model.graph)
    assert "Relu" in before
    assert [r.metrics.get("teacher") for r in reports] == [None, None, before]
    _, reports = Pipeline([Drop(), Drop()]).run(model, Context(teacher=kit.parse(CHAIN.replace("Relu", "Neg"))))
    assert all("Neg" in str(r.metrics["teacher"]) for r in reports)


def test_a_model_that_draws_random_numbers_is_not_compared_with_itself() -> None:
    model = kit.parse("g (float[N, 4] x) => (float[N, 4] y) { r = RandomNormalLike(x) a = Relu(x) y = Add(a, r) }")
    ctx = Context(oracle=reference.execute, data=CalibrationData.from_arrays({"x": np.ones((4, 4), np.float32)}))

    @dataclass(frozen=True)
    class Other(Rename):
        numerics: ClassVar[Numerics] = Numerics.CLOSE

    _, (report,) = Pipeline([Other(to="Abs")]).run(model, ctx)
    assert report.checked == "not checked: it draws random numbers, and no two runs are alike"
