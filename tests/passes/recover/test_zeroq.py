"""Inputs made from BatchNormalization: the pairing, the loss, what is refused, and what compile does with them."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

import graphpress as gp
from graphpress.backends import reference
from graphpress.backends.fx.build import build
from graphpress.context import Context
from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.statistics import write_statistics
from graphpress.observe.data import CalibrationData
from graphpress.passes.clean.fold_batchnorm import FoldBatchnorm
from graphpress.passes.prune.prune import Prune
from graphpress.passes.recover.inputs.learned import learned
from graphpress.passes.recover.inputs.zeroq import ZeroQ
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from tests import kit
from tests.passes.quantizing import model as with_constants

CTX = Context(run=reference.execute, oracle=reference.execute, differentiate=build)
WIDTHS = (3, 8, 8, 16, 16)
EPSILON = 1e-5


def images(count: int, size: int = 16) -> np.ndarray:
    """Gratings with noise, mean 0 and standard deviation 1 in each channel over all."""
    rng = np.random.default_rng(1)
    place = np.arange(size) / size
    waves = rng.uniform(1, 4, (2, count, 3, 1, 1)) * np.stack(np.meshgrid(place, place))[:, None, None]
    x = np.sin(2 * np.pi * (waves.sum(0) + rng.uniform(size=(count, 3, 1, 1)))) + 0.2 * rng.normal(
        size=(count, 3, size, size)
    )
    x -= x.mean((0, 2, 3), keepdims=True)
    return (x / x.std((0, 2, 3), keepdims=True)).astype(np.float32)


def net(batch: str = "N", size: str = "16") -> ir.Model:
    """Conv -> BatchNormalization -> Relu, some times, with the statistics of 256 images; then a linear layer."""
    rng, x = np.random.default_rng(0), torch.from_numpy(images(256))
    constants: dict[str, np.ndarray] = {}
    text, last = [], "x"
    for i, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        weight = rng.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        x = F.conv2d(x, torch.from_numpy(weight.astype(np.float32)), padding=1)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        gamma, beta = rng.uniform(0.5, 1.5, outputs), rng.normal(size=outputs) / 2
        x = F.relu(F.batch_norm(x, mean, var, torch.tensor(gamma).float(), torch.tensor(beta).float(), eps=EPSILON))
        named = {"w": weight, "gamma": gamma, "beta": beta, "mean": mean.numpy(), "var": var.numpy()}
        constants |= {f"{k}{i}": v.astype(np.float32) for k, v in named.items()}
        text.append(
            f"c{i} = Conv<pads=[1,1,1,1]>({last}, w{i}) "
            f"b{i} = BatchNormalization(c{i}, gamma{i}, beta{i}, mean{i}, var{i}) r{i} = Relu(b{i})"
        )
        last = f"r{i}"
    constants["head"] = rng.normal(size=(WIDTHS[-1], 5)).astype(np.float32)
    text.append(f"g = GlobalAveragePool({last}) f = Flatten(g) y = MatMul(f, head)")
    given = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in constants.items())
    head = f"g (float[{batch},3,{size},{size}] x, {given}) => (float[{batch},5] y)"
    return with_constants(f"{head} {{ {' '.join(text)} }}", constants)


def run(model: ir.Model, ctx: Context = CTX, **options: Any) -> PassReport:
    return kit.apply(model, ZeroQ(**options), ctx=ctx)[1][0]


def made(report: PassReport) -> np.ndarray:
    return np.concatenate([f["x"] for f in report.handed["data"].batches(64)])


@pytest.mark.parametrize(("statistics", "folded"), [("batch", False), ("image", True)])
def test_the_loss_falls_to_a_fifth(statistics: str, folded: bool) -> None:
    model = net()
    if folded:
        model, _ = kit.apply(model, FoldBatchnorm())
        assert "BatchNormalization" not in kit.ops(model)
    report = run(model, samples=4, iterations=200, statistics=statistics)
    first, last = report.metrics["loss of noise"], report.metrics["loss"]
    assert isinstance(first, float) and isinstance(last, float)
    assert last <= 0.2 * first
    assert report.metrics["values with statistics"] == 4 and report.metrics["iterations"] == 200
    assert made(report).shape == (4, 3, 16, 16) and made(report).dtype == np.float32


@pytest.mark.parametrize("statistics", ["batch", "image"])
def test_the_loss_is_the_papers(statistics: str) -> None:
    model = net()
    report = run(model, samples=4, iterations=1, rate=1e-12, statistics=statistics)
    x = made(report)
    values = kit.run(_with_outputs(model), {"x": x})
    axes = (0, 2, 3) if statistics == "batch" else (2, 3)
    want = _distance(x.astype(np.float64), np.zeros(3), np.ones(3), axes)
    for known in learned(model, PassReport()):
        want += _distance(values[known.value].astype(np.float64), known.mean, known.std, axes)
    assert report.metrics["loss of noise"] == pytest.approx(want, rel=1e-4)
    assert report.metrics["loss"] == pytest.approx(want, rel=1e-4)


def _distance(x: np.ndarray, mean: np.ndarray, std: np.ndarray, axes: tuple[int, ...]) -> float:
    apart = (x.mean(axes) - mean) ** 2 + (np.sqrt(x.var(axes) + 1e-6) - np.sqrt(std**2 + 1e-6)) ** 2
    return float(apart.sum(-1).mean())


def _with_outputs(model: ir.Model) -> ir.Model:
    clone = model.clone()
    clone.graph.outputs.extend(n.outputs[0] for n in clone.graph if n.op_type == "Conv")
    return clone


def test_real_inputs_have_what_was_learned() -> None:
    """The statistics are of the values they are paired with: their own images leave almost no distance."""
    model, x = net(), images(256)
    folded, _ = kit.apply(model, FoldBatchnorm())
    for graph in (model, folded):
        values = kit.run(_with_outputs(graph), {"x": x})
        for known in learned(graph, PassReport()):
            np.testing.assert_allclose(values[known.value].mean((0, 2, 3)), known.mean, atol=1e-4)
            np.testing.assert_allclose(values[known.value].std((0, 2, 3)), known.std, rtol=1e-4)


TWISTED = """
g (float[N,3,8,8] x, float[3,3,1,1] w, float[3] gamma, float[3] beta, float[3] mean1, float[3] var1, float[3] mean2,
   float[3] var2) => (float[N,3,8,8] y) {
  plain = Conv(x, w)
  first = Conv(plain, w)
  second = Conv(plain, w)
  turned = Relu(second)
  b2 = BatchNormalization(turned, gamma, beta, mean2, var2)
  b1 = BatchNormalization(first, gamma, beta, mean1, var1)
  y = Add(b1, b2)
}
"""


def _twisted() -> ir.Model:
    ones = np.ones(3, np.float32)
    given = {"mean1": ones, "mean2": 2 * ones, "var1": 4 * ones, "var2": 9 * ones, "gamma": ones, "beta": ones}
    return with_constants(TWISTED, given | {"w": np.eye(3, dtype=np.float32)[..., None, None]})


def test_statistics_are_paired_by_data_flow() -> None:
    """A Conv without BatchNormalization, norms in another order than their layers, an activation between."""
    found = {k.value: (k.mean[0], k.std[0]) for k in learned(_twisted(), PassReport())}
    assert found == {"turned": (2.0, 3.0), "first": (1.0, 2.0)}


def test_a_folded_norm_speaks_of_the_output_of_its_layer() -> None:
    after, _ = kit.apply(_twisted(), FoldBatchnorm())
    found = {k.value: (k.mean[0], k.std[0]) for k in learned(after, PassReport())}
    assert found == {"turned": (2.0, 3.0), "first": (1.0, pytest.approx(1, abs=1e-5))}  # beta and |gamma|


def test_statistics_that_cannot_be_used_are_skips() -> None:
    model = kit.parse(
        """g (float[N,3,8,8] x, float[3] s, bool c) => (float[N,3,8,8] y) {
          a = BatchNormalization(x, s, s, s, s)
          y = If <then_branch = t () => (float[N,3,8,8] u) { u = Relu(a) },
                  else_branch = e () => (float[N,3,8,8] v) { v = Neg(a) }> (c)
        }"""
    )
    relu = next(n for n in edit.nodes(model) if n.op_type == "Relu")
    write_statistics(relu, np.ones(3), np.ones(3))
    report = PassReport()
    assert learned(model, report) == []
    assert {s.where: s.why for s in report.skips} == {
        "BatchNormalization_0": "its statistics are not constant",
        relu.name: "its statistics are of a value inside a branch, a loop or a function",
    }
    broken = _twisted()
    edit.overwrite(broken.graph.initializers["var1"], np.full(3, -1, np.float32))
    assert [k.value for k in learned(broken, report)] == ["turned"]
    assert report.skips[-1].why == "its statistics are not finite"


def test_same_seed_same_inputs() -> None:
    seeds = [run(net(), ctx, samples=4, iterations=5) for ctx in (CTX, CTX, Context(seed=1, differentiate=build))]
    assert made(seeds[0]).tobytes() == made(seeds[1]).tobytes() != made(seeds[2]).tobytes()


def test_a_fixed_batch_is_filled_and_each_batch_is_its_own() -> None:
    report = run(net(batch="3"), samples=4, iterations=3)
    assert len(made(report)) == 6 and report.metrics["iterations"] == 6
    assert not np.array_equal(made(report)[:3], made(report)[3:])


def test_inputs_keep_the_range_that_is_given() -> None:
    x = made(run(net(), samples=4, iterations=20, range=(0, 255)))
    assert x.min() == 0 and x.max() <= 255  # it is pushed against the border: the net wants inputs around 0
    x = made(run(net(), samples=8, iterations=1, rate=1e-9, range=(0, 255)))
    assert abs(x.mean() - 127.5) < 5 and 55 < x.std() < 70 and x.min() == 0 and x.max() == 255
    assert abs(made(run(net(), samples=8, iterations=20, reach=1.5))).max() == 1.5
    x = made(run(net(), samples=8, iterations=1, rate=1e-9, mean=(1, 2, 3), std=(0.1,)))
    np.testing.assert_allclose(x.mean((0, 2, 3)), [1, 2, 3], atol=0.02)
    np.testing.assert_allclose(x.std((0, 2, 3)), 0.1, rtol=0.1)


def test_an_open_size_is_an_option() -> None:
    open_ = net(size="S")
    with pytest.raises(BadRequest, match=r"input 'x': the model leaves its shape open. Set option shape"):
        run(open_)
    assert made(run(open_, samples=2, iterations=1, shape=(3, 12, 10))).shape == (2, 3, 12, 10)
    with pytest.raises(BadRequest, match=r"a sample has shape \[3, 16, 16\], not \[3, 8, 8\]"):
        run(net(), shape=(3, 8, 8))


def test_the_time_limit_is_told() -> None:
    report = run(net(), samples=4, batch=2, iterations=100_000, seconds=0.2)
    steps = report.metrics["iterations"]
    assert isinstance(steps, int) and 2 <= steps < 200_000
    assert report.metrics["stopped"] == f"after {steps} of 200000 iterations: 0.2 s were over"
    assert "stopped" not in run(net(), samples=4, iterations=2).metrics


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, str, int | None]] = []

    def show(items: Any, label: str, total: int | None = None) -> Any:
        items = list(items)
        seen.append((len(items), label, total))
        return items

    run(net(), Context(differentiate=build, progress=show), samples=4, batch=2, iterations=3)
    assert (6, "distilling inputs", 6) in seen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 0}, "option 'samples': must be at least 1"),
        ({"iterations": 0}, "option 'iterations': must be at least 1"),
        ({"rate": 0.0}, "option 'rate': must be above 0"),
        ({"reach": 0.0}, "option 'reach': must be above 0"),
        ({"seconds": -1.0}, "option 'seconds': must be above 0"),
        ({"std": (1.0, 0.0, 1.0)}, "option 'std': must be above 0"),
        ({"range": (1.0, 1.0)}, "option 'range': the smallest value must be below the largest"),
        ({"mean": (1.0, 2.0)}, "option 'mean': has 2 numbers, the input 3 channels"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        run(net(), **options)


def test_a_model_without_statistics_is_refused() -> None:
    model = with_constants("g (float[N,4] x, float[4,4] w) => (float[N,4] y) { y = MatMul(x, w) }", {"w": np.eye(4)})
    with pytest.raises(BadRequest, match=r"holds no statistics of BatchNormalization .* Give calibration data\."):
        run(model)


def test_inputs_that_are_no_float32_are_refused() -> None:
    model = net()
    extra = ir.Value(name="ids", shape=ir.Shape(["N", 4]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(extra)
    with pytest.raises(BadRequest, match="input 'ids': it holds INT64, no floats"):
        run(model)


def test_a_loss_that_is_no_number_names_the_node() -> None:
    model = net()
    edit.overwrite(model.graph.initializers["w2"], np.full((16, 8, 3, 3), np.inf, np.float32))
    with pytest.raises(BadRequest, match=r"parameter or input 'w2': .* is nan at iteration 0"):
        run(model, samples=2)


def test_it_comes_before_what_changes_the_function() -> None:
    with pytest.raises(BadRequest, match="Put it before the first lossy pass"):
        gp.compile(net(), [Prune(method="magnitude"), ZeroQ()], gate=False, prove=False)
    with pytest.raises(BadRequest, match="needs a model at stage float"):
        gp.compile(net(), [*Recipe.load("w8a8").passes, ZeroQ()], gate=False)


SHORT = ("zeroq.samples=20", "zeroq.iterations=30", "zeroq.patience=10")


def test_compile_without_data() -> None:
    quantized, report = gp.compile(net(), Recipe.load("zeroq").set(SHORT), prove=False)
    assert report.gate.passed and report.gate.samples == 4
    assert report.gate.left_out == "no data was given: the gate saw samples that zeroq made"
    assert (report.data["made_by"], report.data["calibration"], report.data["held_out"]) == ("zeroq", 16, 4)
    assert report.coverage().sites == 1.0
    json.dumps(report.to_json())
    x = images(64)
    before, after = kit.run(net(), {"x": x})["y"], kit.run(quantized, {"x": x}, optimize=True)["y"]
    assert np.square(before - after).sum() < 0.01 * np.square(before).sum()  # 20 dB, on inputs it has never seen


def test_given_data_are_used_unless_the_option_says_otherwise() -> None:
    given = {"x": images(20)}
    recipe = Recipe.load("zeroq").set(SHORT)
    _, used = gp.compile(net(), recipe, given, prove=False)
    _, w8a8 = gp.compile(net(), "w8a8", given, prove=False)
    assert used.data == w8a8.data and used.gate == w8a8.gate
    assert "data was given and is used" in next(p for p in used.passes if p.name == "zeroq").skips[0].why
    _, always = gp.compile(net(), recipe.set(["zeroq.always=true"]), given, prove=False)
    assert (always.data["made_by"], always.data["calibration"], always.data["held_out"]) == ("zeroq", 20, 4)
    assert always.gate.samples == 4 and not always.gate.left_out  # of the user's data
    assert always.data["digest"] != used.data["digest"]


def test_inputs_are_made_once_however_often_sites_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    original = ZeroQ.run

    def count(self: ZeroQ, model: ir.Model, ctx: Context, report: PassReport) -> None:
        runs.append(1)
        original(self, model, ctx, report)

    monkeypatch.setattr(ZeroQ, "run", count)
    true = kit.run(net(), {"x": images(8)})["y"]

    def evaluate(runner: Any) -> float:
        return -float(np.abs(runner({"x": images(8)})["y"] - true).max())

    _, report = gp.compile(
        net(), Recipe.load("zeroq").set(SHORT), evaluate=evaluate, max_drop=0.002, gate=False, prove=False
    )
    assert report.reverted and len(runs) == 1


def test_passes_after_it_are_checked_on_what_it_made() -> None:
    _, reports = Pipeline([ZeroQ(samples=2, iterations=1), FoldBatchnorm()]).run(net(), CTX)
    assert reports[1].checked.startswith("close: ")
    _, reports = Pipeline([FoldBatchnorm()]).run(net(), CTX)
    assert reports[0].checked == "not checked: no data"


def test_data_bind_to_the_model() -> None:
    data = run(net(), samples=2, iterations=1).handed["data"]
    assert isinstance(data, CalibrationData) and data.binding is not None and data.binding.exact is None


def test_resnet20_folded_by_its_exporter_is_refused(zoo: Path) -> None:
    with pytest.raises(BadRequest, match="an exporter has folded them away"):
        gp.compile(zoo / "cifar10/resnet20.onnx", "zeroq", prove=False)


def test_resnet20_with_its_norms_is_quantized(zoo: Path) -> None:
    short = Recipe.load("zeroq").set(["zeroq.samples=10", "zeroq.iterations=12"])
    _, report = gp.compile(zoo / "cifar10/resnet20_bn.onnx", short, gate=False, prove=False)
    zeroq = next(p for p in report.passes if p.name == "zeroq")
    assert zeroq.metrics["values with statistics"] == 19 and report.coverage().sites == 1.0
    loss, noise = zeroq.metrics["loss"], zeroq.metrics["loss of noise"]
    assert isinstance(loss, float) and isinstance(noise, float) and loss < 0.5 * noise


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_resnet20_is_as_good_as_with_real_images(zoo: Path, traced: bool) -> None:
    from graphpress.tools.bench.figures.zeroq import exported, measured, trace_resnet

    real, distilled, _ = measured(zoo, partial(trace_resnet, zoo)() if traced else exported(zoo))
    assert real - distilled <= 0.3
