"""A use of each operator of the dialect: a model with one node of it, and what to feed it."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphpress import catalog
from graphpress.graph import edit
from graphpress.ops import dense_codes, sparse_codes, unpack_codes
from graphpress.ops.base import DOMAIN, attach
from tests import kit
from tests.core.ops import test_ops, test_ops_hadamard
from tests.passes import acm_models
from tests.passes.quantizing import normal

_OF_CONSTANTS = ("SparseWeight", "UnpackCodes")  # operators that read nothing else


def _one(name: str, text: str, constants: dict[str, np.ndarray], attributes: dict[str, object]) -> ir.Model:
    """The model of a text whose node called old is replaced by the operator, with these constants after its inputs."""
    model = kit.parse(text)
    old = edit.find(model, "old")
    held = [edit.add_const(model.graph, a, n) for n, a in constants.items()]
    kept = [v for v in old.inputs if v is not None and name not in _OF_CONSTANTS]
    made = edit.new_node(name, [*kept, *held], attributes, before=old, domain=DOMAIN, name="new")
    edit.like(made.outputs[0], old.outputs[0])
    edit.replace(old.outputs[0], made.outputs[0])
    edit.remove([old])
    attach(model, catalog.ops()[name])
    return model


def _packed() -> tuple[dict[str, np.ndarray], dict[str, object]]:
    dense = normal(8, 6)
    dense.reshape(2, 4, 6)[:, :2] = 0
    packed = sparse_codes.pack(dense, 0, 2)
    assert packed is not None
    return {"v": packed.values, "i": packed.indices}, {"n": 2, "shape": list(packed.shape), "perm": list(packed.perm)}


def _price() -> ir.Model:
    table = {"knots": np.array([0.0, 0.5, 1.0], np.float32), "prices": np.array([2.0, 0.5, -1.0], np.float32)}
    return _one("ACMPrice", "g (float b) => (float y) { [old] y = Neg(b) }", table, {})


def _product() -> ir.Model:
    return _one("SparseMatMul", "g (float[3, 8] x) => (float[3, 6] y) { [old] y = Identity(x) }", *_packed())


def _weight() -> ir.Model:
    return _one("SparseWeight", "g (float[8, 6] x) => (float[8, 6] y) { [old] y = Neg(x) }", *_packed())


def _clip() -> ir.Model:
    return _one("ClipToken", "g (float[3, 8] x) => (float[3, 8] y) { [old] y = Neg(x) }", {}, {"share": 0.5})


def _decode() -> ir.Model:
    text = "g (int8[4, 6] c) => (float[4, 6] y) { [old] y = Cast<to = 1>(c) }"
    book = np.sort(normal(256, seed=1))
    constants = {"s": np.abs(normal(4, 2)) + np.float32(0.1), "book": book}
    return _one("LookupDequantize", text, constants, {"lowest": -128, "axis": 1, "block_size": 3})


def _encode() -> ir.Model:
    text = "g (float[4, 6] x) => (int8[4, 6] y) { [old] y = Cast<to = 3>(x) }"
    constants = {"s": np.abs(normal(4, 2)) + np.float32(0.1), "bounds": np.sort(normal(255, seed=1)) * 3}
    return _one("LookupQuantize", text, constants, {"lowest": -128, "dtype": 3, "axis": 1, "block_size": 3})


def _twin(table: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.array([[1, 0], [2, 1], [0, 0], [1, 2]], np.uint8)
    sizes = {n: np.abs(normal(4, 2, seed=i)) + np.float32(0.1) for i, n in enumerate(("s", "n"))}
    return {**sizes, "r": rows, "nr": rows[::-1].copy(), "t": table}


def _twin_decode() -> ir.Model:
    text = "g (int8[4, 6] c) => (float[4, 6] y) { [old] y = Cast<to = 1>(c) }"
    constants = _twin(np.sort(normal(3, 256, seed=2), axis=1))
    return _one("TwinLookupDequantize", text, constants, {"lowest": -128, "axis": 1, "block_size": 3})


def _twin_encode() -> ir.Model:
    text = "g (float[4, 6] x) => (int8[4, 6] y) { [old] y = Cast<to = 3>(x) }"
    constants = _twin(np.sort(normal(3, 15, seed=2), axis=1))
    return _one("TwinLookupQuantize", text, constants, {"lowest": -8, "dtype": 3, "axis": 1, "block_size": 3})


def _terms(count: int, *, bounds: bool) -> dict[str, np.ndarray]:
    first = np.sort(normal(count, seed=1)) * 3
    return {
        "s": np.abs(normal(4, 2)) + np.float32(0.1), "d": normal(4, 2, seed=3), "a": first,
        "b": np.ones(count, np.float32) if bounds else normal(count, seed=2),
    }  # fmt: skip


def _terms_decode() -> ir.Model:
    text = "g (int8[4, 6] c) => (float[4, 6] y) { [old] y = Cast<to = 1>(c) }"
    attributes = {"lowest": -128, "axis": 1, "block_size": 3}
    return _one("SumLookupDequantize", text, _terms(256, bounds=False), attributes)


def _terms_encode() -> ir.Model:
    text = "g (float[4, 6] x) => (int8[4, 6] y) { [old] y = Cast<to = 3>(x) }"
    attributes = {"lowest": -128, "dtype": 3, "axis": 1, "block_size": 3}
    return _one("SumLookupQuantize", text, _terms(255, bounds=True), attributes)


def _blocks(table: np.ndarray) -> dict[str, np.ndarray]:
    scale = (np.abs(normal(4, 2)) + np.float32(0.5)).astype(ml_dtypes.float8_e4m3fn)
    return {"s": scale, "o": np.array([0.5], np.float32), "t": table}


def _blocks_decode() -> ir.Model:
    text = "g (int8[4, 6] c) => (float[4, 6] y) { [old] y = Cast<to = 1>(c) }"
    attributes = {"lowest": -128, "axis": 1, "block_size": 3}
    return _one("BlockLookupDequantize", text, _blocks(np.sort(normal(256, seed=1))), attributes)


def _blocks_encode() -> ir.Model:
    text = "g (float[4, 6] x) => (int8[4, 6] y) { [old] y = Cast<to = 3>(x) }"
    attributes = {"lowest": -128, "dtype": 3, "axis": 1, "block_size": 3}
    return _one("BlockLookupQuantize", text, _blocks(np.sort(normal(255, seed=1)) * 3), attributes)


def _sign() -> ir.Model:
    text = "g (float[4, 6] x) => (int8[4, 6] y) { [old] y = Cast<to = 3>(x) }"
    constants = {"s": np.abs(normal(4, 2)) + np.float32(0.1)}
    return _one("SignQuantize", text, constants, {"share": 0.5, "dtype": 3, "axis": 1, "block_size": 3})


def _unpack() -> ir.Model:
    dense = dense_codes.pack(np.arange(-4, 4).repeat(5).reshape(4, 10))
    assert dense is not None
    text = "g (float[4, 10] x) => (int8[4, 10] y) { [old] y = Cast<to = 3>(x) }"
    constants = {"low": dense.low, "high": dense.high}
    return _one("UnpackCodes", text, constants, unpack_codes.attributes(dense, ir.DataType.INT8))


def _hadamard() -> ir.Model:
    left, right = test_ops_hadamard.factor(4, True), test_ops_hadamard.factor(3, False)
    return test_ops_hadamard.model(left, right, "2, 12", "float")


def _dual_turn() -> ir.Model:
    turns = {n: np.linalg.qr(normal(2, 4, 4, seed=i))[0] for i, n in enumerate(("first", "second"))}
    constants = {"first": turns["first"], "order": np.array([3, 0, 6, 1, 7, 2, 5, 4]), "second": turns["second"]}
    return _one("DualTurn", "g (float[2, 3, 8] x) => (float[2, 3, 8] y) { [old] y = Neg(x) }", constants, {})


MODELS: dict[str, Callable[[], ir.Model]] = {
    "ACM": lambda: acm_models.op_model("silu", 1, 1),
    "ACMPrice": _price,
    "BlockLookupDequantize": _blocks_decode,
    "BlockLookupQuantize": _blocks_encode,
    "ClipToken": _clip,
    "DualTurn": _dual_turn,
    "DynamicQuantizeToken": lambda: test_ops.token_model("2, 3, 8"),
    "Hadamard": _hadamard,
    "LookupDequantize": _decode,
    "LookupQuantize": _encode,
    "SignQuantize": _sign,
    "SparseMatMul": _product,
    "SparseWeight": _weight,
    "SumLookupDequantize": _terms_decode,
    "SumLookupQuantize": _terms_encode,
    "TwinLookupDequantize": _twin_decode,
    "TwinLookupQuantize": _twin_encode,
    "UnpackCodes": _unpack,
}
# Operators whose kernel has the gradient of the body; the others round or choose, and what stands in for their gradient
# is held by tests of their own (tests/core/ops, tests/passes/acm).
SMOOTH = {"ACMPrice", "ClipToken", "DualTurn", "Hadamard", "SparseMatMul"}


def feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs; a number alone lies between 0 and 1."""
    given = kit.random_feeds(model, seed, {"B": 2, "T": 3})
    return {k: np.array(0.3, np.float32) if a.ndim == 0 else a for k, a in given.items()}
