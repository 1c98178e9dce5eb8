"""LSTM, GRU, RNN against ONNX Runtime; the loop against the fused kernel; gradients, compile, export."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from graphpress.backends.fx.ops import recurrent
from graphpress.errors import Unsupported
from tests.backends.fx.single import doubles, in_ort, in_torch, module, normal, same

TIME, BATCH, SIZE, H = 5, 3, 4, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def inputs(
    op: str, directions: int, *, bias: bool = True, lengths: Any = None, states: bool = True, peep: bool = False,
    time: int = TIME, dtype: Any = np.float32,
) -> list[np.ndarray | None]:  # fmt: skip
    g = GATES[op]
    found: list[np.ndarray | None] = [
        normal(time, BATCH, SIZE, dtype=dtype), normal(directions, g * H, SIZE, seed=1, dtype=dtype),
        normal(directions, g * H, H, seed=2, dtype=dtype),
        normal(directions, 2 * g * H, seed=3, dtype=dtype) if bias else None,
        None if lengths is None else np.array(lengths, np.int32),
        normal(directions, BATCH, H, seed=4, dtype=dtype) if states else None,
    ]  # fmt: skip
    if op == "LSTM":
        found += [normal(directions, BATCH, H, seed=5, dtype=dtype) if states else None]
        found += [normal(directions, 3 * H, seed=6, dtype=dtype)] if peep else []
    while found[-1] is None:
        found.pop()
    return found


def agree(op: str, given: list[np.ndarray | None], **attributes: Any) -> None:
    outputs = 3 if op == "LSTM" else 2
    options = {"opset": 14, "outputs": outputs, "hidden_size": H, **attributes}
    for a, b in zip(in_torch(op, *given, **options), in_ort(op, *given, **options), strict=True):
        same(a, b, **CLOSE)


DIRECTIONS = [("forward", 1), ("reverse", 1), ("bidirectional", 2)]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("direction", "count"), DIRECTIONS)
@pytest.mark.parametrize(("bias", "states", "time"), [(True, True, TIME), (False, False, TIME), (True, True, 1)])
def test_plain(op: str, direction: str, count: int, bias: bool, states: bool, time: int) -> None:
    agree(op, inputs(op, count, bias=bias, states=states, time=time), direction=direction)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("direction", "count"), DIRECTIONS)
@pytest.mark.parametrize("lengths", [(5, 2, 3), (1, 5, 4), (3, 3, 2)])
def test_sequences_of_different_lengths(op: str, direction: str, count: int, lengths: tuple[int, ...]) -> None:
    agree(op, inputs(op, count, lengths=lengths), direction=direction)


@pytest.mark.parametrize(("direction", "count"), DIRECTIONS)
@pytest.mark.parametrize("more", [{}, {"clip": 0.4}, {"input_forget": 1}, {"clip": 0.6, "input_forget": 1}])
@pytest.mark.parametrize("peep", [False, True])
def test_lstm_variants(direction: str, count: int, more: dict[str, Any], peep: bool) -> None:
    agree("LSTM", inputs("LSTM", count, peep=peep), direction=direction, **more)


@pytest.mark.parametrize(("direction", "count"), DIRECTIONS)
@pytest.mark.parametrize("more", [{}, {"clip": 0.4}, {"activations": ["HardSigmoid", "Softsign"]}])
@pytest.mark.parametrize("linear", [0, 1])
def test_gru_variants(direction: str, count: int, more: dict[str, Any], linear: int) -> None:
    more = {k: v * count if isinstance(v, list) else v for k, v in more.items()}
    agree("GRU", inputs("GRU", count), direction=direction, linear_before_reset=linear, **more)


ACTIVATIONS = (
    "Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign",
    "Softplus",
)  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rnn_activations(name: str) -> None:
    agree("RNN", inputs("RNN", 1), activations=[name], activation_alpha=[0.7], activation_beta=[0.3])
    two = {"activation_alpha": [0.7, 0.2], "activation_beta": [0.3, 0.1]}
    agree("RNN", inputs("RNN", 2), activations=["HardSigmoid", name], direction="bidirectional", clip=0.5, **two)


def test_functions_take_parameters_in_turn() -> None:
    names = ["HardSigmoid", "Tanh", "ScaledTanh", "Sigmoid", "Elu", "Affine"]
    agree("LSTM", inputs("LSTM", 2), direction="bidirectional", activations=names,
          activation_alpha=[0.3, 0.8, 0.9, 1.1], activation_beta=[0.4, 0.6, 0.1])  # fmt: skip


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str) -> None:
    given = inputs(op, 2)
    swapped = [x.swapaxes(0, 1).copy() if x is not None and i in (0, 5, 6) else x for i, x in enumerate(given)]
    outputs = 3 if op == "LSTM" else 2
    options: dict[str, Any] = {"opset": 14, "outputs": outputs, "hidden_size": H, "direction": "bidirectional"}
    y, *states = in_torch(op, *given, **options)
    y1, *states1 = in_torch(op, *swapped, layout=1, **options)
    same(y1, y.transpose(2, 0, 1, 3), **CLOSE)
    for a, b in zip(states1, states, strict=True):
        same(a, b.swapaxes(0, 1), **CLOSE)


@pytest.mark.parametrize("op", GATES)
def test_first_opset(op: str) -> None:
    given = inputs(op, 1)
    now, then = ({"opset": o, "outputs": 2, "hidden_size": H} for o in (14, 1))
    for a, b in zip(in_torch(op, *given, **then, output_sequence=1), in_torch(op, *given, **now), strict=True):
        same(a, b)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(op: str, dtype: torch.dtype) -> None:
    given = inputs(op, 1)
    for extra in ({}, {"clip": 3.0}):
        built = module(op, *given, opset=14, outputs=2, hidden_size=H, **extra)
        tensors = [torch.from_numpy(x) for x in given if x is not None]
        found, exact = built(*(t.to(dtype) for t in tensors)), built(*tensors)
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.float(), b, rtol=0, atol=0.01 if dtype == torch.float16 else 0.08)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("extra", [{}, {"clip": 0.9}])
def test_gradients(op: str, extra: dict[str, Any]) -> None:
    given = inputs(op, 2, time=3)
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    built = module(op, *given, opset=14, outputs=2, hidden_size=H, direction="bidirectional", **more, **extra)
    tensors = [doubles(*x.shape, seed=i) for i, x in enumerate(given) if x is not None]
    assert torch.autograd.gradcheck(built, tensors, fast_mode=True)


@pytest.mark.parametrize("op", GATES)
def test_compile_and_export(op: str) -> None:
    given = inputs(op, 1)
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    shapes = {0: (TIME, "n", SIZE), 5: (1, "n", H), 6: (1, "n", H)}
    built = module(op, *given, opset=14, outputs=2, hidden_size=H, constants=[1, 2, 3], shapes=shapes, **more)
    tensors = [torch.from_numpy(given[0]), *(torch.from_numpy(x) for x in given[5:] if x is not None)]
    expected = built(*tensors)
    compiled = torch.compile(built, fullgraph=True, backend="eager")(*tensors)
    dynamic = tuple({1: torch.export.Dim.DYNAMIC} for _ in tensors)  # the batch; torch itself unrolls over time
    exported = torch.export.export(built, tuple(tensors), dynamic_shapes=dynamic).module()
    for a, b in itertools.chain(zip(compiled, expected, strict=True), zip(exported(*tensors), expected, strict=True)):
        torch.testing.assert_close(a, b)
    more_of_them = [torch.cat((t, t), 1) for t in tensors]
    torch.testing.assert_close(exported(*more_of_them)[0], built(*more_of_them)[0])


def test_fused_kernel_is_used_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        recurrent, "_fused", lambda kernel, *rest, run=recurrent._fused: seen.append(kernel) or run(kernel, *rest)
    )
    for op, more in (("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {"activations": ["Relu"]})):
        in_torch(op, *inputs(op, 1), opset=14, hidden_size=H, **more)
    assert seen == [torch.lstm, torch.gru, torch.rnn_relu]


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(Unsupported, match="no activation function 'cos'"):
        in_torch("RNN", *inputs("RNN", 1), opset=14, hidden_size=H, activations=["Cos"])
