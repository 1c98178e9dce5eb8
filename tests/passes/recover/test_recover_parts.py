"""What is trained, where a graph is cut into blocks, and how samples become batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.observe.data import CalibrationData
from graphpress.passes.recover.engine import parameters
from graphpress.passes.recover.engine.blocks import blocks
from graphpress.passes.recover.engine.samples import Samples, split, tensors
from tests.passes import quantizing
from tests.passes.quantizing import normal
from tests.passes.recovering import chain, int4

DECODER = """
agraph (int64[N, T] ids, float[12, 8] table, float[16, 8] positions, float[8] gain, float[8, 8] a, float[8, 8] b,
        float[8] bias, float[1, 1] mask) => (float[N, T, 12] logits)
{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  half = Constant <value = float {0.5}> ()
  shape = Shape (ids)
  length = Slice (shape, one, two, zero)
  rows = Slice (positions, zero, length, zero)
  fixed = Add (rows, mask)
  e = Gather (table, ids)
  x0 = Add (e, fixed)
  n1 = LayerNormalization (x0, gain)
  sizes = Shape (n1)
  zeros = ConstantOfShape (sizes)
  p1 = MatMul (n1, a)
  q1 = Add (p1, bias)
  r1 = Relu (q1)
  x1 = Add (x0, r1)
  p2 = MatMul (x1, b)
  m2 = Mul (p2, half)
  z2 = Add (m2, zeros)
  f2 = Add (z2, fixed)
  x2 = Add (x1, f2)
  turned = Transpose <perm = [1, 0]> (table)
  logits = MatMul (x2, turned)
}
"""


def decoder() -> ir.Model:
    """Two residual branches, positions that all of them read, a head that shares the table of the tokens."""
    weights = {
        "table": normal(12, 8), "positions": normal(16, 8, seed=1), "gain": np.ones(8, np.float32),
        "a": normal(8, 8, seed=2), "b": normal(8, 8, seed=3), "bias": normal(8, seed=4),
        "mask": np.zeros((1, 1), np.float32),
    }  # fmt: skip
    return quantizing.model(DECODER, weights)


def test_layers_norms_biases_and_tables_are_trained_and_tables_of_positions_are_not() -> None:
    found = parameters.trainable_of(decoder())
    assert sorted(found.weights) == ["a", "b", "bias", "gain", "table"]
    assert sorted(found.matrices) == ["a", "b", "table"]
    assert found.scales == []
    assert found.refused == {}


def test_roles_that_a_traced_module_notes_count_more_than_readers() -> None:
    model = chain()
    model.graph.initializers["w1"].metadata_props["graphpress.role"] = "buffer"
    assert parameters.trainable_of(model).weights == ["b1", "w2", "w3"]


def test_quantized_weights_are_found_before_q_and_their_scales_beside() -> None:
    model = int4(chain())
    found = parameters.trainable_of(model)
    assert sorted(found.weights) == ["b1", "w1", "w2", "w3"]
    assert sorted(found.scales) == ["w1_scale", "w2_scale", "w3_scale"]
    assert parameters.bits(model) == 4
    assert parameters.bits(chain()) == 32


def test_the_factors_of_a_rotation_at_run_time_are_left_alone() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21, "graphpress" : 1]>
    agraph (float[N, 4] x, float[2, 2] left, float[2, 2] right, float[4, 4] w) => (float[N, 4] y)
    {
      r = graphpress.Hadamard <fast_left = 0, fast_right = 0> (x, left, right)
      y = MatMul (r, w)
    }
    """
    weights = {"left": np.eye(2, dtype=np.float32), "right": np.eye(2, dtype=np.float32), "w": normal(4, 4)}
    assert parameters.trainable_of(quantizing.model(text, weights)).weights == ["w"]


def test_half_precision_is_refused_with_the_reason() -> None:
    text = "agraph (float16[N, 4] x, float16[4, 4] w) => (float16[N, 4] y) { y = MatMul(x, w) }"
    found = parameters.trainable_of(quantizing.model(text, {"w": np.ones((4, 4), np.float16)}))
    assert found.weights == []
    assert found.refused == {"w": "it is FLOAT16: updates would be lost in rounding"}


def test_blocks_end_at_the_residual_stream_and_positions_and_shapes_go_around() -> None:
    model = decoder()
    found, spread = blocks(model, model, parameters.trainable_of(model).weights)
    assert [(b.source, b.outputs) for b in found] == [
        (None, ("x0",)), ("x0", ("x1",)), ("x1", ("x2",)), ("x2", ("logits",)),
    ]  # fmt: skip
    assert [sorted(b.parameters) for b in found] == [[], ["a", "bias", "gain"], ["b"], []]
    assert spread == {"table": "it is read in several blocks"}
    assert found[1].aside == ()
    assert len(found[2].aside) == 2  # zeros made of a shape, and the positions


def test_a_cut_needs_a_value_of_the_teacher() -> None:
    model, teacher = decoder(), decoder()
    next(v for n in teacher.graph for v in n.outputs if v.name == "x1").name = "another"
    found, _ = blocks(model, teacher, parameters.trainable_of(model).weights)
    assert [b.outputs[0] for b in found] == ["x0", "x2", "logits"]


def test_a_layer_takes_its_bias_and_activation_with_it() -> None:
    model = chain()
    found, _ = blocks(model, model, parameters.trainable_of(model).weights)
    assert [(b.source, b.outputs, b.parameters) for b in found] == [
        (None, ("h",), ("w1", "b1")), ("h", ("r",), ("w2",)), ("r", ("y",), ("w3",)),
    ]  # fmt: skip
    assert blocks(int4(model), model, parameters.trainable_of(int4(model)).weights)[0] == found


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    pytest.importorskip("torch")
    data = CalibrationData.from_arrays({"x": np.arange(10, dtype=np.float32)[:, None]}, labels=np.arange(10))
    made = Samples(data.bind(quantizing.model("agraph (float[N, 1] x) => (float[N, 1] y) { y = Relu(x) }", {})), 4, 3)
    epochs = []
    for epoch in range(3):
        batches = [piece for step in range(3) for piece in made(3 * epoch + step)]
        assert [len(b["x"]) for b in batches] == [4, 4, 2]
        assert all((b["x"][:, 0] == b["labels"]).all() for b in batches)
        epochs.append([int(v) for b in batches for v in b["x"]])
    assert all(Counter(e) == Counter(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [int(v) for v in made(1)[0]["labels"]] == epochs[0][4:8]  # whatever was asked for before


def test_a_model_of_a_fixed_batch_gets_full_batches_only() -> None:
    pytest.importorskip("torch")
    model = quantizing.model("agraph (float[4, 1] x) => (float[4, 1] y) { y = Relu(x) }", {})
    data = CalibrationData.from_arrays({"x": np.zeros((11, 1), np.float32)}).bind(model)
    made = Samples(data, 32)
    assert len(made) == 2
    assert all(len(piece["x"]) == 4 for step in range(8) for piece in made(step))
    rest, held = split(data, 0.125, 0)
    assert (len(rest), len(held)) == (7, 4)


def test_held_back_samples_are_none_of_those_to_train_on() -> None:
    pytest.importorskip("torch")
    data = CalibrationData.from_arrays({"x": np.arange(40, dtype=np.float32)[:, None]})
    rest, held = (sorted(float(v) for b in tensors(part, 8) for v in b["x"]) for part in split(data, 0.1, 5))
    assert len(held) == 4
    assert sorted(rest + held) == list(range(40))
    one = data.take(1)
    assert [len(part) for part in split(one, 0.1, 0)] == [1, 1]


def test_picked_samples_come_in_their_order() -> None:
    data = CalibrationData.from_arrays({"x": np.arange(10)}).pick([7, 2, 5]).pick([2, 0, 2])
    assert [a["x"].tolist() for a in data.batches(4)] == [[2, 7]]
