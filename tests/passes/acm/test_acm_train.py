"""The phases of ``train-acm``: each formula against numbers by hand, the whole on a small model."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from graphpress import keys
from graphpress.backends import ort, reference
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.observe.data import CalibrationData
from graphpress.passes.acm import site
from graphpress.passes.acm.acm import Acm
from graphpress.passes.acm.quantize_learners import QuantizeLearners
from graphpress.passes.acm.usage import Usage, exhibit
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.recover.train_acm import TrainAcm
from graphpress.report import page
from graphpress.report.report import Report
from tests import kit
from tests.passes.acm.test_acm_pass import at, encoder
from tests.passes.quantizing import normal

torch = pytest.importorskip("torch")
terms = pytest.importorskip("graphpress.passes.recover.acm_terms")

X = normal(96, 5, 8, seed=21)
SHORT = TrainAcm(
    learner_steps=30, gate_steps=30, steps=40, batch=16, budgets=(0.5, 1.0), losses={"mse": {}}, rate=1e-3, samples=16
)


def context(teacher: ir.Model | None, data: bool = True, **more) -> Context:
    from graphpress.backends import fx

    given = CalibrationData.from_arrays({"x": X}) if data else None
    return Context(data=given, run=partial(ort.execute, threads=1), differentiate=fx.build, teacher=teacher, **more)


@pytest.mark.parametrize(
    ("errors", "least", "want"),
    [
        ([8, 4, 3.9, 3.8, 3.7], 0, 1),  # the second learner is of no use: it stops before it, not behind it
        ([8, 7.9, 2, 1, 0.5], 0, 0),  # the first is of no use: not all N, as in the released code
        ([8, 7.9, 2, 1, 0.5], 1, 1),
        ([8, 4, 2, 1, 0.5], 0, 4),  # none is useless
        ([8, 4, 2, 1, 0], 0, 4),  # an error of 0 divides nothing
        ([0, 0, 0, 0, 0], 0, 4),
        ([6, 5, 4.1, 1, 0.9], 0, 3),  # 6 / 5 is 1.2: it pays
    ],
)
def test_labels_by_ratio(errors: list[float], least: int, want: int) -> None:
    assert int(terms.labels(torch.tensor(errors), 1.2, least)) == want


def layers(seed: int = 0):
    """Two layers of a small model with random gates."""
    model, _ = kit.apply(encoder(), Acm())
    rng = np.random.default_rng(seed)
    made = []
    for s in site.sites(model):
        s.set("gate", rng.normal(size=s.array("gate").shape))
        parameters = {n: torch.nn.Parameter(torch.from_numpy(s.array(n).copy())) for n in site.PARAMETERS}
        made.append(terms.Layer(s, parameters, "", ""))
    return made


def test_labels_by_worth_are_the_best_for_the_work() -> None:
    """Of all choices that cost no more, none leaves less squared error."""
    found = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).sort(-1, descending=True).values
    for price in (0.0, 0.01, 0.1, 1.0):
        chosen = terms.worth(found, price)
        cost = found.square() + price * torch.arange(5)
        assert (cost.gather(-1, chosen[:, None]) <= cost.min(-1, keepdim=True).values).all()
    assert int(terms.worth(found, 0.0).sum()) == 4 * 200
    assert int(terms.worth(found, 9.0, least=1).sum()) == 200
    made = layers()
    for share in (0.2, 0.5, 0.8):
        price = terms.price_of(share, [found, found / 2], made)
        means = [float(terms.worth(f, price).double().mean()) for f in (found, found / 2)]
        assert share - 0.02 < site.share([y.site for y in made], means) <= share


def test_a_layer_may_hold_the_parts_of_a_sample_on_its_leading_axis() -> None:
    """Frames or windows: the temporal layers of a video U-Net read [samples x positions, frames, C]."""
    made = layers()
    values = {y.site.input.name: torch.from_numpy(normal(4, 6, 8, seed=i)) for i, y in enumerate(made)}
    folded = {made[0].site.input.name: values[made[0].site.input.name].reshape(12, 2, 8)}
    wanted = terms.choice(made, values, torch.tensor(0.2))
    found = terms.choice(made, {**values, **folded}, torch.tensor(0.2))
    torch.testing.assert_close(found.by_sample, wanted.by_sample, rtol=1e-6, atol=1e-6)


def test_terms_of_the_last_phase() -> None:
    made = layers()
    values = {y.site.input.name: torch.from_numpy(normal(6, 5, 8, seed=i)) for i, y in enumerate(made)}
    chosen = terms.choice(made, values, torch.tensor(0.2))
    counts = [y.scores(values[y.site.input.name], 0.2).argmax(-1) for y in made]
    by_sample = sum(c.double().mean(-1) * y.site.learner_macs for c, y in zip(counts, made, strict=True))
    by_sample = by_sample / sum(y.site.learner_macs * 4 for y in made)
    torch.testing.assert_close(chosen.by_sample.detach().double(), by_sample, rtol=1e-6, atol=1e-6)
    assert float(chosen.share.detach()) == pytest.approx(float(by_sample.mean()), rel=1e-6)
    for mixture, c in zip(chosen.mixture, counts, strict=True):
        want = torch.bincount(c.reshape(-1), minlength=5) / c.numel()
        torch.testing.assert_close(mixture.detach(), want.float(), rtol=0, atol=1e-6)
    uniform, one = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert float(terms.entropy_loss([uniform])) == pytest.approx(-1.0)
    assert float(terms.entropy_loss([uniform, one])) == pytest.approx(-0.5)
    pairs = torch.tensor([0.0, 1.0, 4.0])
    assert float(terms.diversity_loss(pairs)) == pytest.approx(-2 * (1 + 4 + 3) / 3)
    assert float(terms.diversity_loss(pairs[:1])) == 0.0


def test_the_budget_moves_the_gates_though_choices_are_hard() -> None:
    made = layers()
    values = {y.site.input.name: torch.from_numpy(normal(6, 5, 8, seed=i)) for i, y in enumerate(made)}
    terms.choice(made, values, torch.tensor(0.0)).share.backward()
    for y in made:
        grads = y.parameters["gate_bias"].grad
        assert grads[-1] > 0 > grads[0]  # more of the last choice costs more


def test_training_helps_at_every_budget() -> None:
    before = encoder()
    untrained, _ = kit.apply(before, Acm(), ctx=context(before))
    trained, (report,) = kit.apply(untrained, SHORT, ctx=context(before))
    fresh = normal(32, 5, 8, seed=77)
    want = kit.run(before, {"x": fresh})["y"]

    def error(model: ir.Model, budget: float) -> float:
        return float(np.square(kit.run(model, at(budget, fresh))["y"] - want).mean())

    for budget, gain in ((0.5, 0.9), (0.7, 0.9)):
        assert error(trained, budget) < gain * error(untrained, budget)
    assert error(trained, 1.0) < 0.05 * error(untrained, 0.5)
    for text in (report.metrics["learners: loss"], report.metrics["gates: loss"]):
        first, last = (float(v) for v in str(text).split(" -> "))
        assert last < first
    assert report.metrics["budget 0.5: learners taken"] == pytest.approx(0.5, abs=0.03)
    (used,) = (p for p in report.exhibits[0].data["parts"] if p["name"].startswith("budget 0.5:"))
    assert sum(map(sum, used["counts"])) == 2 * 16 * 5
    assert max(len(set(row)) for row in used["counts"]) > 1


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("where", ["learners", "end to end"])
def test_an_interrupted_training_ends_the_same(tmp_path, where: str) -> None:
    before = encoder()
    untrained, _ = kit.apply(before, Acm(), ctx=context(before))
    options = {"learner_steps": 8, "gate_steps": 6, "steps": 8, "batch": 16, "budgets": (0.5,), "losses": {"mse": {}}}
    whole, _ = kit.apply(untrained, TrainAcm(**options, samples=8), ctx=context(before))

    def stopping(items, label, total=None):
        for i, item in enumerate(items):
            yield item
            if where in label and i == 4:
                raise Stop

    kept = TrainAcm(**options, samples=8, state=str(tmp_path / "state"))
    with pytest.raises(Stop):
        kit.apply(untrained, kept, ctx=context(before, progress=stopping))
    resumed, _ = kit.apply(untrained, kept, ctx=context(before))
    for a, b in zip(site.sites(whole), site.sites(resumed), strict=True):
        for name in site.PARAMETERS:
            np.testing.assert_array_equal(a.array(name), b.array(name))
    for i in (1, 2):
        table = [edit.constant(site.price_node(m).inputs[i]) for m in (whole, resumed)]
        np.testing.assert_array_equal(*table)


@pytest.mark.parametrize("budgets", [(0.0,), (0.5, 1.2), ()])
def test_budgets_outside_0_to_1_are_refused(budgets: tuple[float, ...]) -> None:
    with pytest.raises(BadRequest, match="budget"):
        TrainAcm(budgets=budgets)


def test_what_cannot_be_trained_says_why() -> None:
    before = encoder()
    _, (report,) = kit.apply(before, SHORT, ctx=context(before))
    assert [s.why for s in report.skips] == ["it has no ACM: nothing to train"]
    cut, _ = kit.apply(before, Acm())
    for ctx in (context(None), context(before, data=False)):
        with pytest.raises(BadRequest, match="needs calibration data and the model"):
            kit.apply(cut, SHORT, ctx=ctx)
    other = kit.parse("g (float[N,T,8] x) => (float[N,T,8] y) { y = Tanh(x) }")
    with pytest.raises(BadRequest, match="no layer in its place"):
        kit.apply(cut, SHORT, ctx=context(other))
    folded, _ = kit.apply(cut, QuantizeLearners(), FoldWeights())
    with pytest.raises(BadRequest, match="integers already"):
        kit.apply(folded, SHORT, ctx=context(before))


def test_the_schemes_of_eight_bit_learners_are_read_as_any_others() -> None:
    made, _ = kit.apply(encoder(), Acm(), QuantizeLearners())
    found = site.sites(made)
    assert found
    for s in found:
        widths = [s.array(w).shape[1] for w in ("w1", "w2")]  # [learners, in, out]
        assert {f"[{at.slot}] {at.role}": str(v) for at, v in keys.schemes(s.node).items()} == {
            "[0] activation": "int8 per_token sym dynamic",
            "[4] weight": f"int8 per_group:1:{widths[0]} sym mse",
            "[6] weight": f"int8 per_group:1:{widths[1]} sym mse",
        }


def test_eight_bit_learners_can_be_trained() -> None:
    """The last phase sees the rounding, straight through, where learners are quantized but not folded."""
    before = encoder()
    rough, _ = kit.apply(before, Acm(), QuantizeLearners(observer="minmax"), ctx=context(before))
    options = TrainAcm(learner_steps=0, gate_steps=0, steps=30, batch=16, budgets=(1.0,), losses={"mse": {}}, samples=8)
    trained, _ = kit.apply(rough, options, ctx=context(before))
    want = kit.run(before, {"x": X})["y"]
    errors = [np.square(reference.execute(m)(at(1.0, X))["y"] - want).mean() for m in (rough, trained)]
    assert errors[1] < errors[0]


def test_the_page_draws_learners_taken() -> None:
    used = Usage(("a<b", "c"), ((0, 3, 1), (4, 0, 0)), ((1.0, 2.0), (0.0, 0.0)), 0.3125)
    text = page.render(Report(passes=[PassReport(name="train-acm", exhibits=[exhibit({"budget 0.4": used})])]))
    assert "31.2 % of the learners" in text
    assert "a&lt;b" in text
    assert "1.25 of 2" in text
    assert text.count('fill-opacity="') == 4
    assert 'fill-opacity="0.50"' in text
    assert "Learners that tokens take" not in page.render(Report())
