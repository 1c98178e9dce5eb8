"""Ranges of timesteps: samples go where their step lies, plans differ by range, and what it costs is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import BadRequest
from graphpress.job.step_ranges import RangedModel, RangedPlan, StepRanges, compile_ranges
from graphpress.report.report import stored_bytes
from graphpress.types import Plan, Role, Scheme, Site, per_channel
from tests import kit
from tests.passes.quantizing import model, normal

TEXT = """
g (float[N, 8] x, float[N, 1] t, float[8, 6] w) => (float[N, 6] y) {
    [scaled] h = Mul(x, t)
    [layer] y = MatMul(h, w)
}"""
STEPS = StepRanges("t", (0.0, 0.5, 1.0))
DATA = {"x": normal(24, 8, seed=3), "t": np.linspace(0, 1, 24, dtype=np.float32).reshape(-1, 1)}
OPTIONS = {"gate": False, "prove": False}


def denoiser() -> ir.Model:
    return model(TEXT, {"w": normal(8, 6)})


def plans() -> RangedPlan:
    kinds = (Scheme("int4", per_channel(1)), Scheme("int8", per_channel(1)))
    return RangedPlan(STEPS, tuple(Plan({Site("layer", 1, Role.WEIGHT): kind}) for kind in kinds))


def test_a_step_lies_in_the_range_that_begins_at_it_and_the_last_one_holds_its_end() -> None:
    assert STEPS.of(np.array([0, 0.499, 0.5, 1.0])).tolist() == [0, 0, 1, 1]
    assert StepRanges.read("t = 0, 0.5,1") == STEPS
    parts = STEPS.split(gp.CalibrationData.from_arrays(DATA), denoiser())
    seen = [np.concatenate([b["t"] for b in p.batches(8)]).ravel() for p in parts]
    assert [len(s) for s in seen] == [12, 12] and seen[0].max() < 0.5 <= seen[1].min()


def test_each_range_is_computed_with_its_own_bits_whatever_the_order_of_samples(tmp_path: Path) -> None:
    made = compile_ranges(denoiser(), plans(), DATA, **OPTIONS)
    assert made.plan == plans()
    w = normal(8, 6)
    scales = [np.abs(w).max(0, keepdims=True) / d for d in (7.5, 127.5)]
    order = np.random.default_rng(0).permutation(24)
    feeds = {n: a[order] for n, a in DATA.items()}
    early = feeds["t"].ravel() < 0.5
    whole = kit.run(denoiser(), feeds)["y"]
    made.save(tmp_path / "out")
    for runner in (made.runner(), RangedModel.load(tmp_path / "out").runner()):
        got = runner(feeds)["y"]
        # Half a step a weight, and the largest ones, which are clipped, up to one and a half.
        steps = [np.abs(feeds["x"] * feeds["t"]).sum(1, keepdims=True) * s * 1.6 for s in scales]
        assert (np.abs(got - whole) <= np.where(early[:, None], *steps) + 1e-5).all()
        assert np.abs(got - whole)[early].mean() > 3 * np.abs(got - whole)[~early].mean()
        alone = {n: a[early] for n, a in feeds.items()}
        np.testing.assert_allclose(runner(alone)["y"], got[early], atol=1e-6)
    index = json.loads((tmp_path / "out/ranges.json").read_text())
    each = [stored_bytes(m) for m in made.models]
    assert index["bytes"] == {"all": sum(each), "one": max(each)} == made.size
    assert [r["model"] for r in index["ranges"]] == ["range0.onnx", "range1.onnx"]


def test_a_plan_of_ranges_is_json_and_a_wrong_one_is_refused() -> None:
    data = json.loads(json.dumps(plans().to_json()))
    assert RangedPlan.from_json(data) == plans()
    data["ranges"][1]["from"] = 0.6
    with pytest.raises(BadRequest, match="its ranges do not join"):
        RangedPlan.from_json(data)
    with pytest.raises(BadRequest, match="has no list 'ranges'"):
        RangedPlan.from_json({"input": "t"})
    with pytest.raises(BadRequest, match="1 plans for 2 ranges"):
        RangedPlan(STEPS, (Plan(),))


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ("t=0,0.5", "step 0.52.* lies in no range, they go from 0 to 0.5"),
        ("s=0,1", r"no such input\. Known: t, x"),
        ("t=0,1,2", r"no sample has t in \[1, 2\]|no sample has t in"),
        ("t=1,0", "are no bounds of ranges"),
        ("t=0,nan", "are no bounds of ranges"),
        ("t", "are no ranges"),
        (None, "there are no ranges"),
    ],
)
def test_one_clear_error(steps: str | None, why: str) -> None:
    data = {**DATA, "t": np.minimum(DATA["t"], 0.99)} if steps == "t=0,1,2" else DATA
    with pytest.raises(BadRequest, match=why):
        compile_ranges(denoiser(), "w8a16", data, steps, **OPTIONS)


def test_an_unknown_step_is_refused_when_the_model_runs() -> None:
    runner = compile_ranges(denoiser(), plans(), DATA, **OPTIONS).runner()
    with pytest.raises(BadRequest, match=r"step 1.5 lies in no range"):
        runner({"x": DATA["x"][:1], "t": np.full((1, 1), 1.5, np.float32)})
    with pytest.raises(BadRequest, match="the step is missing"):
        runner({"x": DATA["x"][:1]})
    with pytest.raises(BadRequest, match="has ranges of its own"):
        compile_ranges(denoiser(), plans(), DATA, "t=0,1", **OPTIONS)
