"""A model that draws random numbers: nothing compares two runs of it, and what cannot do without says so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import ort
from graphpress.context import Context
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.acm.acm import Acm
from graphpress.passes.allocate.allocate import Allocate
from graphpress.passes.equalize.rehearsal import rehearsable
from graphpress.passes.recover.recover import Recover
from graphpress.passes.recover.train_acm import TrainAcm
from graphpress.report.next_step import next_steps
from graphpress.types import Scheme
from tests import kit
from tests.passes.quantizing import model, normal

X = {"x": normal(24, 5, 8, seed=3)}
WAY = "Make what is drawn an input of the model, or trace the model with its noise turned off"


def noisy() -> ir.Model:
    """Noise beside a block of two layers, as loud as its input."""
    weights = {"w1": normal(8, 12), "w2": normal(12, 8, seed=1), "gain": np.linspace(1, 9, 8, dtype=np.float32)}
    return model(
        """g (float[N,5,8] x, float[8,12] w1, float[12,8] w2, float[8] gain) => (float[N,5,8] y) {
        r = RandomNormalLike(x) s = Add(x, r) l = Mul(s, gain) h = MatMul(l, w1) a = Relu(h) b = MatMul(a, w2)
        y = Add(s, b) }""",
        weights,
    )


def context() -> Context:
    from graphpress.backends import fx

    data = CalibrationData.from_arrays(X)
    return Context(data=data, run=partial(ort.execute, threads=1), differentiate=fx.build, teacher=noisy())


def test_the_gate_says_that_it_cannot_judge_and_refuses_nothing() -> None:
    """At 8 bits the outputs of two runs differ by as much as they are; no site is to blame for it."""
    _, report = gp.compile(noisy(), "w8a8", X, target="ort-cpu")
    assert not report.gate.outputs and report.gate.passed
    assert report.gate.left_out == (
        "nothing of the model can be compared: it draws random numbers, and no two runs are alike"
    )
    assert {s.unmeasured for s in report.sites} == {"it draws random numbers, and no two runs are alike"}
    assert next_steps(report)[0] == f"{WAY}: then the gate can judge it."


@pytest.mark.parametrize(
    ("passes", "where"),
    [
        ((Recover(steps=1),), "recover"),
        ((Acm(learners=2), TrainAcm(steps=1)), "train-acm"),
        ((Allocate(max_size="0.5x"),), "allocate: sensitivity"),
    ],
    ids=["recover", "train-acm", "allocate"],
)
def test_what_compares_two_runs_says_why_it_cannot(passes, where: str) -> None:
    with pytest.raises(BadRequest) as refused:
        kit.apply(noisy(), *passes, ctx=context())
    said = str(refused.value)
    assert said.startswith(f"{where}: the outputs of two models cannot be compared: the graph draws random numbers")
    assert WAY in said


def test_training_by_labels_alone_compares_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 8, (24, 5))
    ctx = replace(context(), data=CalibrationData.from_arrays(X | {"labels": labels}), teacher=None)
    _, (report,) = kit.apply(noisy(), Recover(steps=1, batch_size=8, losses={"labels": {}}), ctx=ctx)
    assert report.metrics["steps"] == 1


def test_smoothing_rehearses_no_model_that_draws() -> None:
    """It would compare noise with noise, and drop all factors or keep them by luck."""
    scheme, quiet = Scheme("uint8", symmetric=False), noisy()
    assert not rehearsable(quiet, scheme)
    drawn = next(n for n in quiet.graph if n.op_type == "RandomNormalLike")
    edit.replace(drawn.outputs[0], by=drawn.inputs[0])
    edit.remove([drawn])
    assert rehearsable(quiet, scheme)
