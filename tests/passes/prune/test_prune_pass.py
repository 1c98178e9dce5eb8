"""The passes prune and permute, and the verifier's hold on the pattern."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.backends import ort
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest, RecipeError, VerifyError
from graphpress.graph import edit, verify
from graphpress.keys import SPARSITY
from graphpress.observe.data import CalibrationData
from graphpress.passes.prune.permute import Permute
from graphpress.passes.prune.prune import Prune
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.structure.layers import linear
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, parse_passes
from graphpress.types import Numerics
from tests import kit

RNG = np.random.default_rng


def layered(*widths: int, form: str = "MatMul") -> ir.Model:
    """x -> layer -> Relu -> ... -> y, of random weights."""
    rng, lines, value = RNG(0), [], "x"
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        lines.append(f"{'y' if last else f'p{i}'} = {form} ({value}, w{i})")
        value = f"h{i}"
        lines += [] if last else [f"{value} = Relu (p{i})"]
    model = kit.parse(f"g (float[N, {widths[0]}] x) => (float[N, {widths[-1]}] y) {{ {' '.join(lines)} }}")
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == f"w{i}")
        value.const_value = ir.Tensor(rng.normal(size=(a, b)).astype(np.float32), name=f"w{i}")
        value.shape, value.type = ir.Shape((a, b)), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    return kit.apply(model, *Recipe.load("clean").passes)[0]


def context(model: ir.Model, samples: int = 64) -> Context:
    x = RNG(1).normal(size=(samples, model.graph.inputs[0].shape[1])).astype(np.float32)
    return Context(data=CalibrationData.from_arrays({"x": x * np.logspace(0, 1, x.shape[1], dtype=np.float32)}),
                   run=partial(ort.execute, threads=1))  # fmt: skip


def groups(node: ir.Node, m: int = 4) -> np.ndarray:
    """Non-zeros of each group along the reduction axis."""
    view = linear.linear(node)
    weight = np.moveaxis(view.weight(), 1, -1)
    return np.count_nonzero(weight.reshape(-1, m), axis=1)


def marked(model: ir.Model) -> list[str]:
    return [n.name for n in edit.nodes(model) if SPARSITY in n.metadata_props]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_layers_get_the_pattern_and_say_so(method: str) -> None:
    model = layered(8, 16, 24, 12)
    after, (report,) = kit.apply(model, Prune(method=method), ctx=context(model))
    assert marked(after) == ["MatMul_2"]  # the first and the last are kept dense
    node = edit.find(after, "MatMul_2")
    assert node.metadata_props[SPARSITY] == "2:4"
    assert (groups(node) == 2).all()
    assert report.metrics["weights pruned"] == pytest.approx(16 * 24 / (8 * 16 + 16 * 24 + 24 * 12))
    assert {s.why for s in report.skips} == {"the first layer is kept dense", "the last layer is kept dense"}


def test_what_keep_does_not_name_is_pruned() -> None:
    after, _ = kit.apply(layered(8, 16, 24, 12), Prune(keep=()))
    assert len(marked(after)) == 3


def test_other_patterns() -> None:
    after, _ = kit.apply(layered(8, 16, 24, 12), Prune(n=1, m=8))
    assert (groups(edit.find(after, marked(after)[0]), 8) == 1).all()


def test_reasons_of_layers_left_dense() -> None:
    after, (report,) = kit.apply(layered(8, 6, 4, 16, 8, 8), Prune(ignore=("MatMul_6",)))
    assert {s.where: s.why for s in report.skips if "kept dense" not in s.why} == {
        "MatMul_2": "its 6 input channels are no multiple of 4",
        "MatMul_4": "it has only 4 input channels",
        "MatMul_6": "ignored on request",
    }
    assert marked(after) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4}, "keeps everything"),
        ({"n": 0}, "keeps nothing"),
        ({"m": 7, "n": 2}, "no layer's input channels are a multiple of 7"),
        ({"ignore": ("nothing*",)}, "matches no node"),
        ({"method": "wanda"}, "needs calibration data"),
        ({"method": "sparsegpt"}, "needs calibration data"),
        ({"damping": 0.0}, "not positive"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        kit.apply(layered(8, 16, 24, 12), Prune(**options))


@pytest.mark.parametrize("step", [Prune(), Permute()], ids=["prune", "permute"])
def test_a_quantized_model_is_refused(step: Pass) -> None:
    model = layered(8, 16, 24, 12)
    quantized, _ = kit.apply(model, Quantize(mode="weight"))
    with pytest.raises(BadRequest, match="needs a model at stage float"):
        kit.apply(quantized, step)


def test_weights_that_are_not_numbers_stay() -> None:
    model = layered(8, 16, 24, 12)
    weight = model.graph.initializers["w1"].const_value.numpy().copy()
    weight[0, 0] = np.nan
    edit.overwrite(model.graph.initializers["w1"], weight)
    _, (report,) = kit.apply(model, Prune())
    assert [s.why for s in report.skips if "NaN" in s.why] == ["the weight holds NaN or infinity"]


class Break(Pass):
    """Fills one zero of a pruned weight."""

    name = "break"
    numerics = Numerics.LOSSY

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        value = edit.find(model, "MatMul_2").inputs[1]
        while not value.is_initializer():
            value = value.producer().inputs[0]
        weight = value.const_value.numpy().copy()
        weight[weight == 0] = 1
        edit.overwrite(value, weight)


@pytest.mark.parametrize("stage", ["float", "behind Q and DQ", "integers"])
def test_a_pass_that_breaks_the_pattern_is_named(stage: str) -> None:
    model = layered(8, 16, 24, 12)
    more = {"float": [], "behind Q and DQ": [Quantize(mode="weight")],
            "integers": [Quantize(mode="weight"), *Recipe.load("fold").passes]}[stage]  # fmt: skip
    with pytest.raises(VerifyError, match="has no longer the pattern 2:4") as e:
        kit.apply(model, Prune(), *more, Break())
    assert "MatMul_2" in str(e.value) and "pass 'break' left a broken graph" in str(e.value)


def test_a_pruned_model_quantizes_and_folds_with_its_pattern() -> None:
    model = layered(8, 16, 24, 12)
    after, _ = kit.apply(model, Prune(), Quantize(mode="weight", weight_symmetric=False), *Recipe.load("fold").passes)
    node = edit.find(after, "MatMul_2")
    dq = node.inputs[1].producer()
    codes, zero = (edit.constant(dq.inputs[i]).astype(int) for i in (0, 2))
    assert zero.any()  # asymmetric: a zero is the code of the zero point
    assert (np.count_nonzero((codes - zero).reshape(4, 4, 24), axis=1) <= 2).all()


def test_the_pattern_is_checked_once_for_each_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    after, _ = kit.apply(layered(8, 16, 24, 12), Prune())
    verify.check(after)
    monkeypatch.setattr("graphpress.graph.pattern.holds", lambda *a: pytest.fail("read again"))
    verify.check(after)


def test_a_note_that_is_no_pattern_is_refused() -> None:
    after, _ = kit.apply(layered(8, 16, 24, 12), Prune())
    edit.find(after, "MatMul_2").metadata_props[SPARSITY] = "4:2"
    with pytest.raises(VerifyError, match="no pattern n:m"):
        verify.check(after)


@pytest.mark.parametrize("score", ["magnitude", "energy"])
def test_permuting_keeps_more_and_changes_nothing(score: str) -> None:
    model = layered(8, 32, 32, 12)
    after, (report,) = kit.apply(model, Permute(score=score, escapes=2), ctx=context(model))
    assert report.metrics["kept after"] > report.metrics["kept before"]
    kit.assert_same_outputs(model, after, rtol=1e-5, atol=1e-5)
    pruned = [kit.apply(m, Prune(keep=("last",)))[0] for m in (model, after)]
    if score == "magnitude":
        kept = [sum(np.abs(v.const_value.numpy()).sum() for v in m.graph.initializers.values()) for m in pruned]
        assert kept[1] > kept[0]


def test_energy_is_the_square_of_a_weight_times_the_mean_square_of_what_it_reads() -> None:
    """As a share of E|W x|^2: the two best of four, summed over the layers, by hand in float64."""
    model = layered(8, 32, 32, 12)
    ctx = context(model)
    _, (report,) = kit.apply(model, Permute(score="energy", escapes=0), ctx=ctx)
    assert ctx.data is not None
    x = next(iter(ctx.data.batches(64)))["x"].astype(np.float64)
    wanted = 0.0
    for i in range(3):
        w = model.graph.initializers[f"w{i}"].const_value.numpy().astype(np.float64)  # [in, out]
        if i:
            score = np.square(w) * np.mean(np.square(x), axis=0)[:, None] / np.square(x @ w).sum(axis=1).mean()
            wanted += np.sort(score.T.reshape(-1, 4), axis=1)[:, 2:].sum()
        x = np.maximum(x @ w, 0)
    assert report.metrics["kept before"] == pytest.approx(wanted, rel=1e-5)


def test_energy_needs_data() -> None:
    with pytest.raises(BadRequest, match="energy needs calibration data"):
        kit.apply(layered(8, 32, 32, 12), Permute(score="energy"))


def test_permuting_tells_what_stays() -> None:
    _, (report,) = kit.apply(layered(8, 32, 12), Permute())
    assert [(s.where, s.why) for s in report.skips] == [("MatMul_0", "its input comes from no layer that is followed")]


@pytest.mark.parametrize(
    ("path", "layers"), [("cifar10/resnet20.onnx", 18), ("imagenet/mobilenet_v1_0.5_160.onnx", 13)]
)
def test_real_models(zoo: Path, path: str, layers: int) -> None:
    steps = [*Recipe.load("clean").passes, Prune()]
    after, reports = Pipeline(steps).run(gp.load(zoo / path))
    nodes = [n for n in edit.nodes(after) if SPARSITY in n.metadata_props]
    assert len(nodes) == layers
    assert all((groups(n) <= 2).all() for n in nodes)
    assert all("depthwise" in s.why or "kept dense" in s.why for s in reports[-1].skips)


def test_the_passes_are_known_by_name() -> None:
    assert parse_passes("permute{score=energy},prune{n=1,m=4,method=wanda},pack-sparse")[1] == Prune(
        n=1, method="wanda"
    )
    with pytest.raises(RecipeError, match="option 'method'"):
        parse_passes("prune{method=luck}")
