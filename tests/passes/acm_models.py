"""What the tests of ACMs share: small models with ACMs, and what one gives by its definition, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphpress.graph import edit, verify
from graphpress.ops.acm import OP
from graphpress.ops.base import DOMAIN, attach
from tests import kit

WIDTH, HIDDEN, OUT, LEARNERS = 8, 6, 5, 4
ACTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda a: a,
    "relu": lambda a: np.maximum(a, 0),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "gelu": lambda a: a / 2 * (1 + np.vectorize(math.erf)(a / math.sqrt(2))),
    "gelu-tanh": lambda a: a / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
    "quick-gelu": lambda a: a / (1 + np.exp(-1.702 * a)),
    "relu-squared": lambda a: np.maximum(a, 0) ** 2,
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "hard-swish": lambda a: np.where(a <= -3, 0, np.where(a >= 3, a, a * (a + 3) / 6)),
}


def op_model(activation: str = "silu", gated: int = 1, least: int = 0, int8: int = 0, seed: int = 0) -> ir.Model:
    """x [B, T, 8] and a price in; y [B, T, 5] and the learners of each token out."""
    text = f"g (float[B,T,{WIDTH}] x, float price) => (float[B,T,{OUT}] y, int64[B,T] k) {{ y, k = Identity(x) }}"
    model = kit.parse(text)
    old, rng, inner = model.graph.node(0), np.random.default_rng(seed), HIDDEN * (1 + gated)
    shapes = {
        "gate": (WIDTH, LEARNERS + 1 - least), "gate_bias": (LEARNERS + 1 - least,), "w1": (LEARNERS, WIDTH, inner),
        "b1": (LEARNERS, inner), "w2": (LEARNERS, HIDDEN, OUT), "b2": (OUT,),
    }  # fmt: skip
    held = [edit.add_const(model.graph, rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    x, price = model.graph.inputs
    attributes = {"activation": activation, "gated": gated, "min_learners": least, "int8": int8}
    made = edit.new_node(
        OP.name, [x, *held[:2], price, *held[2:]], attributes, before=old, outputs=2, domain=DOMAIN, name="acm"
    )
    for a, b in zip(list(old.outputs), made.outputs, strict=True):
        edit.like(b, a)
        edit.replace(a, b)
    edit.remove([old])
    attach(model, OP)
    verify.check(model)
    return model


def acm_node(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type == "ACM")


def arrays(node: ir.Node) -> list[np.ndarray]:
    """gate, gate_bias, w1, b1, w2, b2."""
    found = [edit.constant(node.inputs[i]) for i in (1, 2, 4, 5, 6, 7)]
    return [a for a in found if a is not None]


def by_definition(node: ir.Node, x: np.ndarray, price: float) -> tuple[np.ndarray, np.ndarray]:
    """(y, learners) in float64, one token and one learner at a time."""
    gate, gate_bias, w1, b1, w2, b2 = (a.astype(np.float64) for a in arrays(node))
    act = ACTS[edit.attribute(node, "activation")]
    least, int8, gated = (edit.attribute(node, n) for n in ("min_learners", "int8", "gated"))
    ys, counts = [], []
    for token in x.reshape(-1, x.shape[-1]).astype(np.float64):
        scores = token @ gate + gate_bias - price * np.arange(gate.shape[1])
        count = int(np.argmax(scores)) + least
        y = b2.copy()
        for j in range(count):
            h = _codes(token, int8) @ w1[j] + b1[j]
            h = act(h[:HIDDEN]) * h[HIDDEN:] if gated else act(h)
            y += _codes(h, int8) @ w2[j]
        ys.append(y)
        counts.append(count)
    return np.array(ys).reshape(*x.shape[:-1], len(b2)), np.array(counts, np.int64).reshape(x.shape[:-1])


def _codes(row: np.ndarray, int8: int) -> np.ndarray:
    scale = np.abs(row).max() / 127
    return np.rint(row / scale) * scale if int8 and scale else row


def tokens(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, WIDTH)).astype(np.float32)


def feeds(x: np.ndarray, price: float) -> dict[str, np.ndarray]:
    return {"x": x, "price": np.array(price, np.float32)}
