"""Laws of every lowering rule: the numbers stay, a second time changes nothing, and it asks the target first."""

from __future__ import annotations

import dataclasses
import functools

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.backends.ort import lower, probe
from graphpress.backends.ort.emit import CONTRIB, Shared
from graphpress.backends.ort.lowering import LoweringRule, rules
from graphpress.graph import edit
from graphpress.target import Target
from tests import kit
from tests.backends.given import codes, parse
from tests.passes.acm_models import feeds as acm_feeds
from tests.passes.acm_models import op_model, tokens

TARGET = Target.load("ort-cpu")
BARE = Target(name="bare", runtime="ort", provider="CPUExecutionProvider", activation_dtype="uint8", isa="x86-64",
              capabilities=())  # fmt: skip
STEP = 1 / 127  # of the largest magnitude: one int8 code
ROUNDS = ("blocked-weights", "integer-lstm")  # their kernels round activations, or a hidden state, by themselves

FLOAT_ISLAND = """
g (float[1, 4, 6, 6] x, float w) => (float[1, 4, 6, 6] y) <float s = {0.03}, uint8 z = {128}> {
    q = QuantizeLinear(x, s, z)
    f = DequantizeLinear(q, s, z)
    c = Conv(f, w)
    p = QuantizeLinear(c, s, z)
    y = DequantizeLinear(p, s, z)
}"""
ATTENTION = """<ir_version: 11, opset_import: ["" : 23]>
g (float[1, 2, 40, 8] q, float[1, 2, 40, 8] k, float[1, 2, 40, 4] v) => (float[1, 2, 40, 4] y) {
    [op] y = Attention<is_causal=1>(q, k, v)
}"""

SIGNED_MOVE = """g (float[2, 4] x) => (float[4, 2] y) <float s = {0.03}, int8 z = {-5}> {
    q = QuantizeLinear(x, s, z)
    f = DequantizeLinear(q, s, z)
    y = Transpose(f)
}"""


NARROW = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2, 4] x, float s, float z) => (float[2, 4] y) {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}"""


@functools.cache
def corpus() -> tuple[ir.Model, ...]:
    """Canonical graphs of every kind: what each capability of the CPU provider is for, and what has no capability."""
    rng = np.random.default_rng(0)
    table = [probe.build(c, next(iter(probe.variants(c)))) for c in TARGET.capabilities]
    island = parse(FLOAT_ISLAND, w=rng.normal(size=(4, 4, 1, 1)).astype(np.float32))
    weight = parse(
        "g (float[2, 32] x, float w, float ws) => (float[2, 8] y) { f = DequantizeLinear<axis=1>(w, ws) "
        "[op] y = MatMul(x, f) }",
        w=codes(rng, "int8", (32, 8)), ws=rng.uniform(0.01, 0.1, 8).astype(np.float32),
    )  # fmt: skip
    zeros = (np.array(3, ml_dtypes.uint4), np.array(0, ml_dtypes.float8_e4m3fn))
    narrow = [parse(NARROW, s=np.float32(0.3), z=z) for z in zeros]
    texts = (kit.parse(ATTENTION), kit.parse(SIGNED_MOVE))
    return (*table, island, weight, *texts, *narrow, op_model("relu", 1))


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    if any(n.op_type == "ACM" for n in model.graph):
        return acm_feeds(tokens(2, 9), 0.3)
    return kit.random_feeds(model, 0)


def alone(rule: LoweringRule, model: ir.Model, target: Target = TARGET) -> tuple[ir.Model, int]:
    """(a copy, lowered by one rule; how many nodes it took)."""
    result, shared = model.clone(), Shared()
    took = sum(rule(node, target, shared) for node in list(edit.nodes(result)) if node.graph is not None)
    if any(n.domain == CONTRIB for n in edit.nodes(result)):
        result.opset_imports.setdefault(CONTRIB, 1)
    return result, took


@functools.cache
def taken(rule: LoweringRule) -> tuple[ir.Model, ...]:
    """The models of the corpus that the rule lowers something of."""
    return tuple(m for m in corpus() if alone(rule, m)[1])


each_rule = pytest.mark.parametrize("rule", rules(), ids=lambda r: r.name)


@each_rule
def test_numbers_stay(rule: LoweringRule) -> None:
    assert taken(rule), "give this test a graph that the rule lowers"
    for model in taken(rule):
        lowered, _ = alone(rule, model)
        given = feeds_of(model)
        want, got = reference.execute(model)(given), reference.execute(lowered)(given)
        for name, expected in want.items():
            limit = (3 * STEP if rule.name in ROUNDS else 2e-6) * np.abs(expected).max()
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=limit)


@each_rule
def test_a_second_time_changes_nothing(rule: LoweringRule) -> None:
    for model in taken(rule):
        once, _ = alone(rule, model)
        twice, took = alone(rule, once)
        assert took == 0
        assert kit.structure(twice) == kit.structure(once)


@each_rule
def test_without_kernel_capability_or_fact_the_graph_stays(rule: LoweringRule) -> None:
    lacking = []
    if rule.kernels:
        lacking += [dataclasses.replace(TARGET, kernels=TARGET.kernels - {k}) for k in rule.kernels]
    if rule.modes:
        others = [c for c in TARGET.capabilities if c.kernel not in rule.kernels]
        lacking.append(dataclasses.replace(TARGET, capabilities=tuple(others)))
    if rule.fact is not None:
        lacking.append(dataclasses.replace(TARGET, facts=TARGET.facts - {rule.fact}))
    for target in lacking:
        for model in taken(rule):
            result, took = alone(rule, model, target)
            assert took == 0
            assert kit.structure(result) == kit.structure(model)


@each_rule
def test_it_writes_what_it_says(rule: LoweringRule) -> None:
    """Operators of ONNX Runtime's own are those it declares; without any, standard ONNX comes out."""
    written = {n.op_type for m in taken(rule) for n in edit.nodes(alone(rule, m)[0]) if n.domain == CONTRIB}
    assert written == set(rule.kernels) or (len(rule.kernels) > 1 and written < set(rule.kernels))


def test_a_target_without_capabilities_gets_standard_onnx() -> None:
    for model in corpus():
        lowered = lower(model, BARE)
        assert {n.domain for n in edit.nodes(lowered)} <= {"", "graphpress"}
        assert {d for d, *_ in lowered.functions} >= {n.domain for n in edit.nodes(lowered) if n.domain}  # with a body
        assert CONTRIB not in lowered.opset_imports
        given = feeds_of(model)
        want, got = reference.execute(model)(given), reference.execute(lowered)(given)
        for name, expected in want.items():
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_rules_have_names_and_places_of_their_own() -> None:
    assert len({r.name for r in rules()}) == len({r.order for r in rules()}) == len(rules()) >= 8
    assert [r.order for r in rules()] == sorted(r.order for r in rules())
