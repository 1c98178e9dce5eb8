"""``qvgen``: the branch starts where the paper says, fades rank by rank without a jump, and leaves nothing at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.errors import BadRequest, PassError
from graphpress.graph import edit
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.adapters import gone
from graphpress.passes.recover.adapters.base import Attached
from graphpress.passes.recover.adapters.low_rank import LowRank
from graphpress.passes.recover.engine.samples import Samples
from graphpress.passes.recover.engine.schedule import Settings
from graphpress.passes.recover.engine.scope import Scope
from graphpress.passes.recover.engine.trainer import Trainer
from graphpress.passes.recover.losses.base import make
from graphpress.passes.recover.methods import qvgen
from graphpress.passes.recover.methods.qvgen import Qvgen
from graphpress.passes.recover.recover import Recover
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal
from tests.passes.recovering import X, arrays, chain, context, error, int4, recover

torch = pytest.importorskip("torch")
SHORT = Recover(method={"qvgen": {"rank": 8}}, steps=40, lr=5e-3, batch_size=16)
FRESH = {"x": normal(128, 8, seed=77)}


def w4a4(model: ir.Model) -> ir.Model:
    asked = Quantize(mode="dynamic", weight="int4", activation="int4", activation_granularity="per_token",
                     kernels="preferred")  # fmt: skip
    return quantizing.quantize(model, asked)[0]


class Training:
    """One whose steps can be taken one at a time."""

    def __init__(self, steps: int, rank: int = 8, share: float = 1.0) -> None:
        self.teacher = chain()
        self.model = int4(self.teacher)
        ctx = context(self.teacher)
        self.scope = Scope(
            model=self.model, before=self.teacher, ctx=ctx, outputs=("y",), names=["w1", "b1", "w2", "w3"],
            loss=make({"mse": {}}), settings=Settings(steps=steps, lr=2e-3),
        )  # fmt: skip
        self.method = Qvgen(rank=rank, share=share)
        self.roles = self.method.setup(self.scope)
        assert ctx.data is not None
        self.trainer = Trainer(self.method, self.roles, Samples(ctx.data.bind(self.model), 16), self.scope.settings)

    @property
    def branch(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(R as [in, rank], L as [rank, out]) of each branch, in float64."""
        parameters = list(self.roles["branch"].parameters.values())
        found = [p.detach().numpy().astype(np.float64) for p in parameters]
        return list(zip(found[::2], found[1::2], strict=True))

    def gammas(self) -> list[np.ndarray]:
        return [g.detach().numpy().copy() for g in self.method.gammas]


# -- the start ---------------------------------------------------------------------------------------------------------


def test_the_branch_starts_with_less_than_all_of_what_rounding_loses_left_over() -> None:
    """||W - Q(W) - L R||^2 < ||W - Q(W)||^2, by the singular values that the rank leaves out."""
    training = Training(steps=40, rank=4)
    plain = _rounded(training.model)
    for (down, up), name in zip(training.branch, ("w1", "w2", "w3"), strict=True):
        lost = np.asarray(edit.constant(training.model.graph.initializers[name]), np.float64) - plain[name]
        s = np.linalg.svd(lost, compute_uv=False)
        left = float(np.sum((lost - down @ up) ** 2))
        assert left == pytest.approx(float(np.sum(s[4:] ** 2)), rel=1e-4, abs=1e-9) and left < np.sum(lost**2)


def _rounded(model: ir.Model) -> dict[str, np.ndarray]:
    """What Q -> DQ makes of each weight, by ONNX Runtime."""
    found = {n.inputs[0].name: n.outputs[0] for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[0]}
    ends = {name: next(iter(q.uses())).node.outputs[0].name for name, q in found.items()}
    given = reference.execute(model, [e for e in ends.values() if e])({"x": X})
    return {name: given[end] for name, end in ends.items() if name and end}


# -- the decay ---------------------------------------------------------------------------------------------------------


def test_the_ranks_are_halved_down_to_none() -> None:
    assert qvgen.ranks(32) == [32, 16, 8, 4, 2, 1]  # and then 0: 6 phases
    assert qvgen.ranks(12) == [12, 6, 3, 1] and qvgen.ranks(1) == [1]


def test_gamma_keeps_the_first_half_and_lets_the_second_fall_as_a_cosine_to_zero_without_a_jump() -> None:
    phases, period = [8, 4, 2, 1], 50
    curve = np.array([qvgen.fading(phases, period, t) for t in range(4 * period + 10)])
    for phase, rank in enumerate(phases):
        part = curve[phase * period : (phase + 1) * period]
        assert (part[:, : rank // 2] == 1).all() and not part[:, rank:].any()
        falls = 0.5 * (1 + np.cos(np.pi * np.arange(period) / period))
        np.testing.assert_allclose(part[:, rank // 2 : rank], falls[:, None].repeat(rank - rank // 2, 1), atol=1e-12)
    assert not curve[4 * period :].any()
    assert np.abs(np.diff(curve, axis=0)).max() <= math.pi / (2 * period)  # the steepest slope of that cosine
    assert (np.diff(curve, axis=0) <= 1e-12).all()


def test_the_rank_of_each_branch_follows_through_the_whole_training() -> None:
    training = Training(steps=21, rank=16)  # 5 phases of 4 steps, one step without branches
    seen = []
    for _ in range(21):
        training.trainer.step()
        seen.append([int(np.linalg.matrix_rank(down @ up, tol=1e-7)) for down, up in training.branch])
    wanted = [16] * 3 + [8] * 4 + [4] * 4 + [2] * 4 + [1] * 4 + [0] * 2
    limits = (8, 16, 4)  # what the matrices themselves can have
    assert [tuple(s) for s in seen] == [tuple(min(w, m) for m in limits) for w in wanted]


def test_the_branches_may_fade_in_a_share_of_the_steps_and_the_rest_trains_without() -> None:
    training = Training(steps=20, rank=2, share=0.5)  # 2 phases of 5 steps
    for number in range(20):
        training.trainer.step()
        assert [bool(g.any()) for g in training.gammas()] == [number < 10] * 3


def test_the_end_of_a_phase_cuts_first_and_then_splits_the_product_that_is_left_anew() -> None:
    training = Training(steps=16, rank=8)  # 4 phases of 4 steps
    for _ in range(3):
        training.trainer.step()
    whole = training.method._halve

    def noted(branch: Attached, keep: int) -> None:
        assert keep == 4
        parts = (training.roles["branch"].parameters[branch.constants[part]] for part in ("down", "up"))
        notes.append(tuple(p.detach().numpy().astype(np.float64) for p in parts))
        whole(branch, keep)

    notes: list[tuple[np.ndarray, ...]] = []
    training.method._halve = noted  # type: ignore[method-assign]
    training.trainer.step()
    assert len(notes) == 3
    for (down, up), (old_down, old_up) in zip(training.branch, notes, strict=True):
        wanted = old_down[:, :4] @ old_up[:4]
        np.testing.assert_allclose(down @ up, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        s = np.linalg.svd(wanted, compute_uv=False)[:4]
        np.testing.assert_allclose((down**2).sum(0)[:4], s, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose((up**2).sum(1)[:4], s, rtol=1e-4, atol=1e-6)
        assert not down[:, 4:].any() and not up[4:].any()


def test_what_the_optimizer_remembers_of_columns_that_are_others_now_is_forgotten() -> None:
    training = Training(steps=16, rank=8)
    branch, student = (training.trainer.updaters[r].optimizer.state for r in ("branch", "student"))
    for number in range(1, 6):
        training.trainer.step()
        assert bool(branch) == (number != 4) and student
    assert all(int(s["step"]) == 1 for s in branch.values()) and all(int(s["step"]) == 5 for s in student.values())


def test_full_strength_at_the_first_step_and_none_when_something_is_measured() -> None:
    training = Training(steps=40, rank=8)
    training.trainer.step()
    assert all((g == 1).all() for g in training.gammas())
    batch = {"x": torch.from_numpy(X), "teacher: y": torch.from_numpy(kit.run(training.teacher, {"x": X})["y"])}
    with torch.no_grad():
        measured = training.method.measure(batch, training.trainer._update(1))
    assert all((g == 0).all() for g in training.gammas())
    training.method.write(training.model, training.roles)
    assert measured is not None
    assert float(measured) == pytest.approx(error(training.model, training.teacher, {"x": X}), rel=1e-4)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [int4, w4a4])
def test_nothing_is_left_and_the_branch_adds_nothing_to_the_bit(quantized: Any) -> None:
    teacher = chain()
    before = quantized(teacher)
    after, report = recover(before, replace(SHORT, select="last"), context(teacher))
    assert gone.Skeleton.of(before).differences(after) == []
    assert kit.ops(after) == kit.ops(before) and report.changed == 4
    assert error(after, teacher, FRESH) < error(before, teacher, FRESH)


def test_after_the_last_phase_the_student_is_the_plain_quantized_model_to_the_bit() -> None:
    training = Training(steps=17, rank=8)
    for _ in range(17):
        training.trainer.step()
    assert all((g == 0).all() for g in training.gammas()) and not any(d.any() or u.any() for d, u in training.branch)
    training.method.finalize(training.model, training.roles)
    plain = training.scope.build(training.model)
    batch = {"x": torch.from_numpy(FRESH["x"])}
    assert torch.equal(training.method.student(batch)["y"], plain(batch)["y"])


def test_a_leftover_of_a_branch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LowRank, "fold", classmethod(lambda cls, model, attached, ctx: None))
    teacher = chain()
    with pytest.raises(PassError, match=r"the folded model is not the one before: left: .*low_rank"):
        recover(int4(teacher), SHORT, context(teacher))


def test_what_is_kept_is_never_worse_than_before_and_the_reported_loss_is_that_of_the_graph() -> None:
    teacher = chain()
    data = {"x": X[:2]}
    before = int4(teacher)
    after, report = recover(before, replace(SHORT, held_back=0.9), context(teacher, data))
    assert report.metrics["loss before"] == pytest.approx(error(before, teacher, data), rel=1e-4)
    assert report.metrics["loss after"] == pytest.approx(error(after, teacher, data), rel=1e-4)
    assert report.metrics["loss after"] <= report.metrics["loss before"]  # type: ignore[operator]


class _Stop:
    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        for i, item in enumerate(items, 1):
            if i == self.after:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("after", [5, 10, 27])  # in the first phase, just at the end of one, in the third
def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    teacher = chain()
    options = replace(SHORT, select="last", train="all")
    expected = arrays(recover(int4(teacher), options, context(teacher))[0])
    kept = replace(options, state=str(tmp_path / "state"))
    with pytest.raises(KeyboardInterrupt):
        recover(int4(teacher), kept, context(teacher, progress=_Stop(after)))
    found = arrays(recover(int4(teacher), kept, context(teacher))[0])
    assert all(expected[n].tobytes() == found[n].tobytes() for n in expected)


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "model", "what"),
    [
        (
            {"seconds": 5.0},
            int4,
            "branches of rank 8 fade in 4 phases of equal steps. Set steps, to 4 at least, and leave out seconds",
        ),
        ({"steps": 3}, int4, "branches of rank 8 fade in 4 phases"),
        (
            {"train": "scales"},
            int4,
            "no linear layer whose weight is trained has a quantized one, .* Put quantize before recover, or",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], model: Any, what: str) -> None:
    teacher = chain()
    with pytest.raises(BadRequest, match=f"recover: method 'qvgen': {what}"):  # some of it as the pass is made
        recover(model(teacher), replace(SHORT, **changes), context(teacher))


def test_a_model_that_is_its_own_teacher_is_left_alone() -> None:
    teacher = chain()
    after, report = recover(teacher, SHORT, context(teacher))
    assert not report.changed and "no pass has changed it" in report.skips[0].why
    assert {n: v.tobytes() for n, v in arrays(after).items()} == {n: v.tobytes() for n, v in arrays(teacher).items()}


@pytest.mark.parametrize("options", [{"rank": 0}, {"rate": 0.0}, {"rank": "many"}, {"share": 1.5}, {"ranks": 8}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="qvgen"):
        Recover(method={"qvgen": options})


def test_block_by_block_is_refused() -> None:
    with pytest.raises(BadRequest, match="trains the whole model at once"):
        replace(SHORT, mode="blocks")
