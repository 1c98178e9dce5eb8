"""Float weights stored as halves behind a Cast: which, in what type, under which name, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphpress.graph import edit, half_storage, widening
from tests import kit

D = ir.DataType
RNG = np.random.default_rng(6)
BF16 = ml_dtypes.bfloat16


def linear(**weights: np.ndarray) -> ir.Model:
    """``y = x + a + b ...``; each weight has the shape [256] or fewer elements."""
    names = list(weights)
    chain = ["x", *(f"h{i}" for i in range(len(names) - 1)), "y"]
    body = "\n".join(f"{b} = Add({a}, {w}_c)" for a, b, w in zip(chain, chain[1:], names, strict=False))
    casts = "\n".join(f"{n}_c = Cast<to=1>({n})" for n in names)
    model = kit.parse(f"g (float[N,256] x) => (float[N,256] y) {{ {casts} {body} }}")
    for value in [v for n in model.graph for v in n.inputs if v is not None and v.name in weights]:
        tensor = ir.tensor(weights[value.name or ""], name=value.name)
        value.const_value, value.type, value.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        model.graph.register_initializer(value)
    edit.index(model)
    return model


def halves(kind: Any, size: int = 256) -> np.ndarray:
    return RNG.normal(size=size).astype(kind)


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {n: v.dtype for n, v in model.graph.initializers.items()}


@pytest.mark.parametrize("kind", [np.float16, BF16])
def test_a_weight_comes_back_under_its_name_to_the_bit(kind: Any) -> None:
    weight = halves(kind)
    model = linear(a=weight)
    widening.widen(model)
    assert half_storage.store(model) == half_storage.count_stored(model) == 1
    stored = edit.constant(model.graph.initializers["a"])
    assert stored is not None
    assert stored.dtype == kind
    assert stored.tobytes() == weight.tobytes()
    assert [n.op_type for n in model.graph] == ["Cast", "Add"]
    assert half_storage.behind(model.graph[1].inputs[1]) is model.graph.initializers["a"]
    taken = half_storage.taken_back(model)
    assert [n.op_type for n in taken.graph] == ["Add"]
    wide = edit.constant(taken.graph.initializers["a"])
    assert wide is not None
    assert np.array_equal(wide, weight.astype(np.float32))
    assert half_storage.taken_back(taken) is taken
    assert "graphpress.half" not in taken.metadata_props


def test_small_ones_and_scales_stay() -> None:
    model = linear(a=halves(np.float16, 1), b=halves(np.float16))
    widening.widen(model)
    half_storage.store(model)
    assert types(model) == {"a": D.FLOAT, "b": D.FLOAT16}
    scaled = kit.parse("g (int8[4,256] x) => (float[4,256] y) { y = DequantizeLinear<axis=1>(x, s) }")
    scale = scaled.graph[0].inputs[1]
    assert scale is not None
    scale.const_value = ir.tensor(np.full(256, 0.5, np.float16), name="s")
    scale.type = ir.TensorType(D.FLOAT16)
    scaled.graph.register_initializer(scale)
    widening.widen(scaled)
    assert half_storage.store(scaled) == 0


def test_what_passes_made_goes_to_float16_or_where_its_range_ends_to_bfloat16() -> None:
    model = linear(a=halves(BF16), b=halves(BF16), c=halves(BF16))
    widening.widen(model)
    made = {"a": RNG.normal(size=256), "b": RNG.normal(size=256) * 1e6, "c": np.geomspace(1e-30, 1e-39, 256)}
    for name, array in made.items():
        edit.overwrite(model.graph.initializers[name], array.astype(np.float32))
    half_storage.store(model)
    assert types(model) == {"a": D.FLOAT16, "b": D.BFLOAT16, "c": D.BFLOAT16}
    (a,) = (edit.constant(model.graph.initializers[n]) for n in "a")
    assert a is not None
    assert np.abs(a.astype(np.float64) - made["a"]).max() <= 2.0**-11 * np.abs(made["a"]).max()


def test_among_others_only_what_was_a_half_or_is_one() -> None:
    float32 = RNG.normal(size=256).astype(np.float32)
    model = linear(a=halves(np.float16), b=float32, c=float32.copy(), d=halves(np.float16).astype(np.float32))
    widening.widen(model)
    edit.overwrite(model.graph.initializers["a"], float32)
    half_storage.store(model)
    assert types(model) == {"a": D.FLOAT16, "b": D.FLOAT, "c": D.FLOAT, "d": D.FLOAT16}


def test_a_float32_model_is_not_touched() -> None:
    model = linear(a=halves(np.float16).astype(np.float32))
    before = kit.structure(model)
    assert half_storage.store(model) == 0
    assert kit.structure(model) == before
