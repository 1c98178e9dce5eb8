"""The pass ``recover`` on graphs: what it lowers, what it holds, what it leaves, what it refuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.contracts import PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.keys import SPARSITY
from graphpress.observe.data import CalibrationData
from graphpress.passes.clean.remove_dead import RemoveDead
from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.recover.engine.student import extract
from graphpress.passes.recover.engine.trainer import Diverged
from graphpress.passes.recover.recover import Recover
from tests import kit
from tests.passes import quantizing
from tests.passes.quantizing import normal
from tests.passes.recovering import WEIGHTS, X, arrays, chain, context, error, int4, recover, without_data

torch = pytest.importorskip("torch")
SHORT = Recover(steps=40, lr=5e-3, batch_size=16)
BLOCKS = replace(SHORT, mode="blocks")


@pytest.mark.parametrize("mode", ["end_to_end", "blocks"])
def test_a_quantized_model_comes_nearer_to_the_one_before(mode: Any) -> None:
    teacher = chain()
    student = int4(teacher)
    after, report = recover(student, replace(SHORT, mode=mode), context(teacher))
    fresh = {"x": normal(128, 8, seed=77)}
    assert error(after, teacher, fresh) < 0.6 * error(student, teacher, fresh)
    assert report.metrics["loss after"] < 0.6 * report.metrics["loss before"]  # type: ignore[operator]
    assert kit.ops(after) == kit.ops(student)
    assert report.changed == 4


def test_the_reported_loss_is_that_of_the_graph_as_it_is_written() -> None:
    teacher = chain()
    data = {"x": X[:2]}  # too few to hold any back: these two are both
    after, report = recover(int4(teacher), replace(SHORT, held_back=0.9), context(teacher, data))
    assert report.metrics["loss after"] == pytest.approx(error(after, teacher, data), rel=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    teacher = chain()
    first, second, other = (arrays(recover(int4(teacher), SHORT, context(teacher, seed=seed))[0]) for seed in (0, 0, 1))
    assert all(first[n].tobytes() == second[n].tobytes() for n in first)
    assert any(first[n].tobytes() != other[n].tobytes() for n in first)


class _Stop:
    """Ctrl-C at a step of one training."""

    def __init__(self, label: str, after: int) -> None:
        self.label, self.after = label, after

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        for i, item in enumerate(items, 1):
            if self.label in label and i == self.after:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize(("mode", "where"), [("end_to_end", "model"), ("blocks", "block 2")])
def test_an_interrupted_pass_goes_on_to_the_same_bytes(tmp_path: Path, mode: Any, where: str) -> None:
    teacher = chain()
    options = replace(SHORT, mode=mode)
    expected = arrays(recover(int4(teacher), options, context(teacher))[0])
    kept = replace(options, state=str(tmp_path / "state"))
    with pytest.raises(KeyboardInterrupt):
        recover(int4(teacher), kept, context(teacher, progress=_Stop(where, 13)))
    after, report = recover(int4(teacher), kept, context(teacher))
    found = arrays(after)
    assert all(expected[n].tobytes() == found[n].tobytes() for n in expected)
    assert report.metrics["steps"] == (40.0 if mode == "end_to_end" else 120.0)


def test_blocks_on_the_teachers_values_are_trained_as_if_alone() -> None:
    """Each block, cut out and trained end to end as a model of its own, gets the same bytes."""
    teacher = chain()
    student = int4(teacher)
    options = Recover(mode="blocks", inputs="teacher", steps=60, lr=5e-3, batch_size=64)
    together = arrays(recover(student, options, context(teacher))[0])
    feeds = {"x": X}
    for source, end, names in ((None, "h", ["w1", "b1"]), ("h", "r", ["w2"]), ("r", "y", ["w3"])):
        inputs = [source] if source else None
        alone, its = extract(student, inputs, [end]), extract(teacher, inputs, [end])
        given = kit.run(extract(teacher, None, [source]), feeds) if source else feeds
        options = Recover(steps=60, lr=5e-3, batch_size=64)
        found = arrays(recover(alone, options, context(its, given))[0])
        for name in names:
            np.testing.assert_allclose(found[name], together[name], rtol=0, atol=1e-6, err_msg=name)
            assert not np.array_equal(found[name], WEIGHTS[name])


@pytest.mark.slow
def test_blocks_on_the_students_values_make_up_for_what_came_before() -> None:
    teacher = chain()
    broken = int4(teacher)
    broken.graph.initializers["w1"].const_value = ir.tensor(WEIGHTS["w1"] * 1.5)
    frozen = replace(BLOCKS, steps=1, lr=1e-9)  # nothing moves: the error of the first block stays
    losses = {}
    for inputs in ("student", "teacher"):
        options = replace(BLOCKS, steps=150, inputs=inputs, seconds=None)
        model, _ = recover(broken, replace(frozen, inputs=inputs), context(teacher))
        only_last = recover(_freeze_first(model), options, context(teacher))[0]
        losses[inputs] = error(only_last, teacher, {"x": X})
    assert losses["student"] < 0.9 * losses["teacher"]


def _freeze_first(model: ir.Model) -> ir.Model:
    """The parameters of the first block noted as what training leaves alone."""
    copy = model.clone()
    for name in ("w1", "b1"):
        copy.graph.initializers[name].metadata_props["graphpress.role"] = "buffer"
    return copy


def test_zeros_of_a_pattern_stay_and_the_others_are_free() -> None:
    teacher = chain()
    pruned = teacher.clone()
    order = np.argsort(np.abs(WEIGHTS["w2"].reshape(4, 4, 16)), axis=1)
    weight = WEIGHTS["w2"].reshape(4, 4, 16).copy()
    np.put_along_axis(weight, order[:, :2], 0, axis=1)
    pruned.graph.initializers["w2"].const_value = ir.tensor(weight.reshape(16, 16))
    node = pruned.graph.initializers["w2"].uses()[0].node
    node.metadata_props[SPARSITY] = "2:4"
    for model in (pruned, int4(pruned)):
        after, _ = recover(model, replace(SHORT, weight_decay=0.01), context(teacher))
        found = arrays(after)["w2"]
        assert ((found != 0) == (weight.reshape(16, 16) != 0)).all()
        assert error(after, teacher, {"x": X}) < 0.8 * error(model, teacher, {"x": X})
    del node.metadata_props[SPARSITY]
    both = (replace(SHORT, keep_zeros=keep) for keep in (False, True))
    loose, held = (arrays(recover(pruned, options, context(teacher))[0])["w2"] for options in both)
    assert (loose != 0).all()
    assert ((held != 0) == (weight.reshape(16, 16) != 0)).all()


def test_it_never_ends_worse_than_it_began() -> None:
    teacher = chain()
    student = int4(teacher)
    for mode in ("end_to_end", "blocks"):
        wild = Recover(mode=mode, steps=5, lr=50.0, clip=None, warmup=0.0, schedule="constant")  # type: ignore[arg-type]
        after, report = recover(student, wild, context(teacher))
        assert [s.why for s in report.skips] == [
            "training did not lower the loss on the held-back samples: it is as before"
        ]
        assert report.changed == 0
        old, new = arrays(student), arrays(after)
        assert all(old[n].tobytes() == new[n].tobytes() for n in old)
        assert report.metrics["loss after"] == report.metrics["loss before"]


def test_a_loss_that_becomes_none_names_the_step_and_the_node_and_keeps_the_best() -> None:
    text = """agraph (float[N, 4] x, float[4, 4] w, float[4] v) => (float[N, 4] y)
              { p = MatMul(x, w) q = Add(p, v) y = Log(q) }"""
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.full(4, 0.05, np.float32)}
    teacher = quantizing.model(text, weights)
    student = quantizing.model(text, weights | {"v": np.full(4, 0.2, np.float32)})
    data = {"x": np.random.default_rng(0).uniform(0, 1, (32, 4)).astype(np.float32)}
    options = Recover(steps=60, lr=2e-3, batch_size=32, warmup=0.0, clip=None, schedule="constant")
    model, report = student.clone(), PassReport()
    wild = replace(options, lr=0.5, optimizer="sgd")
    with pytest.raises(Diverged, match=r"the model: the loss .*is nan in step \d+; .* node 'Log_2'.*"):
        wild.run(model, context(teacher, data), report)
    assert all(np.isfinite(a).all() for a in arrays(model).values())
    after, _ = recover(student, replace(options, steps=20), context(teacher, data))
    assert error(after, teacher, data) < error(student, teacher, data)


def test_scales_are_learned_alone_or_with_the_weights() -> None:
    teacher = chain()
    student = int4(teacher)
    moved = {}
    for train in ("weights", "scales", "all"):
        after, _ = recover(student, replace(SHORT, train=train), context(teacher))  # type: ignore[arg-type]
        old, new = arrays(student), arrays(after)
        moved[train] = {n for n in old if not np.array_equal(old[n], new[n])}
        assert error(after, teacher, {"x": X}) < error(student, teacher, {"x": X})
        assert all((new[n] > 0).all() for n in new if n.endswith("_scale"))
        assert {n: a.dtype for n, a in old.items()} == {n: a.dtype for n, a in new.items()}
    scales = {"w1_scale", "w2_scale", "w3_scale"}
    assert moved == {"weights": set(WEIGHTS), "scales": scales, "all": set(WEIGHTS) | scales}


def test_codes_of_3_bits_stored_in_4_stay_codes_of_3_bits() -> None:
    teacher = chain()
    student = int4(teacher, weight="int3")
    for train in ("weights", "all"):
        after, report = recover(student, replace(SHORT, lr=0.05, train=train), context(teacher))  # type: ignore[arg-type]
        assert report.changed >= 3
        quantizers = [n for n in after.graph if n.op_type == "QuantizeLinear"]
        assert len(quantizers) == 3
        for node in quantizers:
            weight, scale = (edit.constant(v) for v in node.inputs[:2])
            assert weight is not None and scale is not None
            codes = np.rint(weight / scale)
            assert (codes.min(), codes.max()) == (-4, 3)


def test_static_activations_of_8_bits_are_trained_through() -> None:
    teacher = chain()
    ctx = context(teacher)
    student = kit.apply(teacher, Quantize(mode="static", weight="int4"), ctx=ctx)[0]
    after, _ = recover(student, SHORT, ctx)
    assert error(after, teacher, {"x": X}) < 0.7 * error(student, teacher, {"x": X})


TOKENS = """
agraph (int64[N, T] ids, float[12, 8] table, float[8] gain, float[8, 12] head)
  => (float[N, T, 12] logits, int64[N, T] best)
{
  e = Gather(table, ids)
  n = LayerNormalization(e, gain)
  logits = MatMul(n, head)
  best = ArgMax <axis = 2, keepdims = 0> (logits)
}
"""


def tokens() -> tuple[ir.Model, dict[str, np.ndarray]]:
    weights = {"table": normal(12, 8), "gain": np.ones(8, np.float32), "head": normal(8, 12, seed=1)}
    return quantizing.model(TOKENS, weights), {"ids": np.random.default_rng(2).integers(0, 12, (40, 6))}


@pytest.mark.parametrize("losses", [{"kl": {"temperature": 2, "weight": 0.5}, "mse": {"on": ["n"]}}, {"labels": {}}])
def test_tokens_and_several_outputs(losses: Any) -> None:
    teacher, feeds = tokens()
    best = kit.run(teacher, feeds)["best"]
    student = int4(teacher)
    ctx = context(None if "labels" in losses else teacher, feeds | ({"labels": best} if "labels" in losses else {}))
    after, report = recover(student, replace(SHORT, losses=losses, steps=60), ctx)
    assert report.metrics["loss after"] < 0.9 * report.metrics["loss before"]  # type: ignore[operator]
    fit = [(kit.run(m, feeds)["best"] == best).mean() for m in (student, after)]
    assert fit[1] >= fit[0]


def test_images_with_statistics_that_stay() -> None:
    text = """
    agraph (float[N, 3, 6, 6] x, float[4, 3, 3, 3] w, float[4] g, float[4] b, float[4] mean, float[4] var)
      => (float[N, 4, 1, 1] y)
    {
      c = Conv(x, w)
      n = BatchNormalization(c, g, b, mean, var)
      y = GlobalAveragePool(n)
    }
    """
    norm = {"g": np.ones(4), "b": np.zeros(4), "mean": np.full(4, 0.3), "var": np.full(4, 2.0)}
    weights = {"w": normal(4, 3, 3, 3), **norm}
    teacher = quantizing.model(text, {k: v.astype(np.float32) for k, v in weights.items()})
    student = int4(teacher)
    after, _ = recover(student, SHORT, context(teacher, {"x": normal(24, 3, 6, 6)}))
    old, new = arrays(student), arrays(after)
    assert {n for n in old if not np.array_equal(old[n], new[n])} == {"w", "g", "b"}


def test_samples_of_several_lengths_are_trained_in_pieces() -> None:
    teacher, _ = tokens()
    rng = np.random.default_rng(0)
    data = CalibrationData.from_batches({"ids": rng.integers(0, 12, (5, length))} for length in (3, 4, 6, 9))
    ctx = replace(context(teacher, {"ids": np.zeros((1, 2), np.int64)}), data=data)
    _, report = recover(int4(teacher), replace(SHORT, losses={"kl": {}}), ctx)
    assert report.metrics["loss after"] < 0.8 * report.metrics["loss before"]  # type: ignore[operator]


def test_integers_are_skipped_and_a_model_of_integers_refused() -> None:
    teacher = chain()
    folded = kit.apply(int4(teacher), FoldWeights())[0]
    with pytest.raises(BadRequest, match="INT4: put recover before the fold passes"):
        recover(folded, SHORT, context(teacher))
    partly = kit.apply(int4(teacher, ignore=("MatMul_0",)), FoldWeights())[0]
    after, report = recover(partly, SHORT, context(teacher))
    assert [s.why for s in report.skips] == ["it is stored as INT4: put recover before the fold passes"] * 2
    assert error(after, teacher, {"x": X}) < error(partly, teacher, {"x": X})


def test_parameters_of_a_traced_module_are_written_back_as_the_graph_has_them() -> None:
    import graphpress as gp

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)).eval()
    sizes = {"input": {0: torch.export.Dim("n", min=2, max=512)}}
    teacher = gp.trace(module, (torch.randn(4, 8),), dynamic_shapes=sizes)
    name = teacher.graph.inputs[0].name or ""
    student = int4(teacher)
    feeds = {name: X}
    after, report = recover(student, SHORT, context(teacher, feeds))
    assert error(after, teacher, feeds) < 0.7 * error(student, teacher, feeds)
    assert report.metrics["loss after"] < 0.9 * report.metrics["loss before"]  # type: ignore[operator]
    own = set(gp.to_torch(after).state_dict())
    assert {n for n in own if n.endswith("_folded")} == {f"{n}_folded" for n in dict(module.named_parameters())}


def _missing(*_: Any, **__: Any) -> Any:
    from graphpress.errors import Unsupported

    raise Unsupported("torch is not installed", fix="pip install graphpress[torch]")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (SHORT, without_data, "needs calibration data"),
        (SHORT, lambda c: replace(c, teacher=None), "no model to train towards"),
        (SHORT, lambda c: replace(c, differentiate=None), "needs the torch backend"),
        (SHORT, lambda c: replace(c, differentiate=_missing), "torch is not installed"),
        (replace(SHORT, device="cuda:99"), None, "cuda:99"),
        (replace(SHORT, losses={"labels": {}}), None, "has no labels"),
        (replace(SHORT, losses={"mse": {"on": ["nowhere"]}}), None, "nowhere"),
        (replace(SHORT, teacher="nowhere.onnx"), None, "no readable model"),
        (replace(SHORT, state="/nowhere/state"), None, "folder does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused(options: Recover, change: Any, message: str) -> None:
    from graphpress.errors import GraphpressError

    teacher = chain()
    ctx = context(teacher)
    model = int4(teacher)
    with pytest.raises(GraphpressError, match=message):
        recover(model, options, change(ctx) if change else ctx)


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x08\x07\x12\x03abc"])
def test_a_teacher_that_is_no_model_is_refused_before_any_pass(tmp_path: Path, content: bytes | None) -> None:
    from graphpress.pipeline import Pipeline

    if content is not None:
        (tmp_path / "t.onnx").write_bytes(content)
    teacher, ran = chain(), list[str]()
    passes = [RemoveDead(), replace(SHORT, teacher=str(tmp_path / "t.onnx"))]
    with pytest.raises(BadRequest, match=r"option 'teacher' '.*t\.onnx': is no readable model: .*Give a whole \.onnx"):
        Pipeline(passes, watch=lambda _, report: ran.append(report.name)).run(int4(teacher), context(teacher))
    assert not ran


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"held_back": 1.0}, "held_back"),
        ({"steps": None}, "neither steps nor seconds"),
        ({"losses": {"label": {}}}, "Did you mean 'labels'"),
        ({"mode": "blocks", "losses": {"kl": {}}}, "blocks are compared by mse alone"),
        ({"mode": "blocks", "losses": {"mse": {"on": ["a"]}}}, "'on'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Recover(**options)


def test_a_recipe_trains_towards_the_model_before_its_first_lossy_pass() -> None:
    import graphpress as gp

    recipe = {
        "name": "r",
        "passes": [
            {"recipe": "clean"}, {"quantize": {"mode": "weight", "weight": "int4"}},
            {"recover": {"steps": 20, "lr": 5e-3, "losses": {"kl": {"temperature": 2}}}}, {"recipe": "fold"},
        ],
    }  # fmt: skip
    _, report = gp.compile(chain(), recipe, {"x": X}, gate=False, prove=False)
    trained = next(p for p in report.passes if p.name == "recover")
    assert trained.metrics["loss after"] < trained.metrics["loss before"]  # type: ignore[operator]
