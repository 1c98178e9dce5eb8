"""LSTM, GRU and RNN: torch's fused kernels where they mean the same, else a loop over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphpress.backends.fx.operands import Tensor
from graphpress.errors import Unsupported

Activation: TypeAlias = Callable[[Tensor], Tensor]
State: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, State], State]
_SHORT = 4  # steps up to which a loop beats the fused kernel, whose weights are put into torch's order at each call


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None, initial_c: Tensor | None = None, p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (), activation_beta: Sequence[float] = (), activations: Sequence[str] = (),
    clip: float = 0.0, direction: str = "forward", hidden_size: int = 0, input_forget: int = 0, layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(Y, Y_h, Y_c). Rows of the weights are for the gates i, o, f, c; torch's are for i, f, c, o.

    The clip is on what enters the gates; the cell goes unclipped to its activation h, as in ONNX Runtime.
    """
    names = _names(activations, ("sigmoid", "tanh", "tanh"), w.shape[0])
    x, h, c = _first_time(layout, x, initial_h, initial_c)
    h, c = _state(h, x, r), _state(c, x, r)
    plain = not (clip or input_forget) and p is None and sequence_lens is None
    if plain and names == ["sigmoid", "tanh", "tanh"] * w.shape[0] and x.shape[0] > _SHORT:
        parts = [None if t is None else _reordered(t, 4, (0, 2, 3, 1)) for t in (w, r, *_biases(b))]
        return _laid(layout, *_fused(torch.lstm, x, (h, c), parts, direction))
    functions = _functions(names, activation_alpha, activation_beta)

    def step_of(d: int) -> Step:
        f, g, out = functions[3 * d : 3 * d + 3]
        pi, po, pf = (0.0, 0.0, 0.0) if p is None else p[d].chunk(3)

        def step(gates: Tensor, state: State) -> State:
            h, c = state
            i, o, forget, cell = (gates + F.linear(h, r[d])).chunk(4, -1)
            i = f(_clipped(i + pi * c, clip))
            forget = 1 - i if input_forget else f(_clipped(forget + pf * c, clip))
            c = forget * c + i * g(_clipped(cell, clip))
            return f(_clipped(o + po * c, clip)) * out(c), c

        return step

    return _laid(layout, *_run(x, w, _bias(b), (h, c), step_of, sequence_lens, direction))


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (), activation_beta: Sequence[float] = (), activations: Sequence[str] = (),
    clip: float = 0.0, direction: str = "forward", hidden_size: int = 0, layout: int = 0,
    linear_before_reset: int = 0, output_sequence: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(Y, Y_h). Rows of the weights are for the gates z, r, h; torch's, where the reset is last, for r, z, h."""
    names = _names(activations, ("sigmoid", "tanh"), w.shape[0])
    x, h = _first_time(layout, x, initial_h)
    h = _state(h, x, r)
    plain = linear_before_reset and not clip and sequence_lens is None
    if plain and names == ["sigmoid", "tanh"] * w.shape[0] and x.shape[0] > _SHORT:
        parts = [None if t is None else _reordered(t, 3, (1, 0, 2)) for t in (w, r, *_biases(b))]
        return _laid(layout, *_fused(torch.gru, x, (h,), parts, direction))
    functions = _functions(names, activation_alpha, activation_beta)
    hidden = r.shape[-1]
    _, rb = _biases(b)

    def step_of(d: int) -> Step:
        f, g = functions[2 * d : 2 * d + 2]
        gate, candidate = r[d].split((2 * hidden, hidden))
        gate_b, candidate_b = (None, None) if rb is None else rb[d].split((2 * hidden, hidden))

        def step(given: Tensor, state: State) -> State:
            (h,) = state
            given_gates, given_h = given.split((2 * hidden, hidden), -1)
            z, reset = f(_clipped(given_gates + F.linear(h, gate, gate_b), clip)).chunk(2, -1)
            if linear_before_reset:
                new = given_h + reset * F.linear(h, candidate, candidate_b)
            else:
                new = given_h + F.linear(reset * h, candidate, candidate_b)
            return ((1 - z) * g(_clipped(new, clip)) + z * h,)

        return step

    return _laid(layout, *_run(x, w, _biases(b)[0], (h,), step_of, sequence_lens, direction))


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (), activation_beta: Sequence[float] = (), activations: Sequence[str] = (),
    clip: float = 0.0, direction: str = "forward", hidden_size: int = 0, layout: int = 0, output_sequence: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(Y, Y_h)."""
    names = _names(activations[: w.shape[0]], ("tanh",), w.shape[0])
    x, h = _first_time(layout, x, initial_h)
    h = _state(h, x, r)
    kernel = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(names[0]) if len(set(names)) == 1 else None
    if kernel is not None and not clip and sequence_lens is None and x.shape[0] > _SHORT:
        return _laid(layout, *_fused(kernel, x, (h,), [w, r, *_biases(b)], direction))
    functions = _functions(names, activation_alpha, activation_beta)

    def step_of(d: int) -> Step:
        return lambda given, state: (functions[d](_clipped(given + F.linear(state[0], r[d]), clip)),)

    return _laid(layout, *_run(x, w, _bias(b), (h,), step_of, sequence_lens, direction))


# -- the two ways to run -----------------------------------------------------------------------------------------------


def _fused(kernel: Any, x: Tensor, state: State, parts: list[Tensor | None], direction: str) -> State:
    """torch's kernel on weights in its own order of gates: (Y, last states)."""
    given = [t for t in parts if t is not None]
    weights = [t[d] for d in range(given[0].shape[0]) for t in given]
    first = state if len(state) > 1 else state[0]
    reverse, both = direction == "reverse", direction == "bidirectional"
    x = x.flip(0) if reverse else x
    y, *last = kernel(x, first, weights, len(given) == 4, 1, 0.0, torch.is_grad_enabled(), both, False)
    y = y.flip(0) if reverse else y
    return (y.unflatten(2, (len(given[0]), -1)).transpose(1, 2), *last)


def _run(
    x: Tensor, w: Tensor, b: Tensor | None, state: State, step_of: Callable[[int], Step],
    lengths: Tensor | None, direction: str,
) -> State:  # fmt: skip
    """Each direction step by step: (Y, last states). What the input adds to the gates is computed at once."""
    ys, lasts = [], []
    for d in range(w.shape[0]):
        given = F.linear(x, w[d], None if b is None else b[d])
        reverse = direction == "reverse" or d == 1
        y, last = _loop(step_of(d), given, tuple(s[d] for s in state), lengths, reverse=reverse)
        ys.append(y)
        lasts.append(last)
    return (torch.stack(ys, 1), *(torch.stack(s) for s in zip(*lasts, strict=True)))


def _loop(step: Step, given: Tensor, state: State, lengths: Tensor | None, *, reverse: bool) -> tuple[Tensor, State]:
    """Behind the end of a sequence its state stands still and its outputs are zero."""
    ys: list[Tensor] = []
    for t in range(len(given))[:: -1 if reverse else 1]:
        new = step(given[t], state)
        if lengths is not None:
            runs = (lengths > t).unsqueeze(-1)
            ys.append(torch.where(runs, new[0], 0.0))
            state = tuple(torch.where(runs, n, s) for n, s in zip(new, state, strict=True))
        else:
            ys.append(new[0])
            state = new
    return torch.stack(ys[::-1] if reverse else ys), state


# -- inputs and outputs ------------------------------------------------------------------------------------------------


def _first_time(layout: int, x: Tensor, *states: Tensor | None) -> tuple[Any, ...]:
    """Time, or for states the direction, before the batch."""
    return tuple(t if t is None or not layout else t.transpose(0, 1) for t in (x, *states))


def _laid(layout: int, y: Tensor, *states: Tensor) -> Any:
    """Outputs as the layout says: (time, direction, batch, hidden), or the batch first."""
    if not layout:
        return (y, *states)
    return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in states))


def _state(given: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    return x.new_zeros(r.shape[0], x.shape[1], r.shape[-1]) if given is None else given.contiguous()


def _biases(b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of the input and of the recurrence."""
    if b is None:
        return None, None
    size = b.shape[1] // 2
    return b.narrow(1, 0, size), b.narrow(1, size, size)


def _bias(b: Tensor | None) -> Tensor | None:
    """Both biases as one."""
    wb, rb = _biases(b)
    return None if wb is None or rb is None else wb + rb


def _reordered(t: Tensor, gates: int, order: tuple[int, ...]) -> Tensor:
    size = t.shape[1] // gates
    return torch.cat([t.narrow(1, i * size, size) for i in order], 1)


def _clipped(x: Tensor, clip: float) -> Tensor:
    return x.clamp(-clip, clip) if clip else x


# -- activation functions ----------------------------------------------------------------------------------------------

# By name: the function of (x, alpha, beta), and the default of each parameter that it takes.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "relu": (F.relu, ()), "tanh": (torch.tanh, ()), "sigmoid": (torch.sigmoid, ()), "softsign": (F.softsign, ()),
    "softplus": (F.softplus, ()),
    "leakyrelu": (F.leaky_relu, (0.01,)), "elu": (F.elu, (1.0,)),
    "thresholdedrelu": (lambda x, alpha: torch.where(x >= alpha, x, 0.0), (1.0,)),
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (1.0, 1.0)),
    "hardsigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), (0.2, 0.5)),
}  # fmt: skip


def _names(given: Sequence[str], default: tuple[str, ...], directions: int) -> list[str]:
    """In lower case, for all directions."""
    names = [n.lower() for n in given] or list(default) * directions
    if unknown := [n for n in names if n not in _ACTIVATIONS]:
        raise Unsupported(f"has no activation function {unknown[0]!r}")
    if len(names) != len(default) * directions:
        raise Unsupported(f"has {len(names)} activation functions, not {len(default) * directions}")
    return names


def _functions(names: list[str], alpha: Sequence[float], beta: Sequence[float]) -> list[Activation]:
    """Each function that has parameters takes the next ones, or its defaults where there are no more."""
    alphas, betas = iter(alpha), iter(beta)
    return [_with_parameters(*_ACTIVATIONS[n], alphas, betas) for n in names]


def _with_parameters(
    function: Callable[..., Tensor], defaults: tuple[float, ...], *given: Iterator[float]
) -> Activation:
    values = [next(source, default) for source, default in zip(given, defaults, strict=False)]
    return (lambda x: function(x, *values)) if values else function


OPS: dict[str, Callable[..., Any]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
