"""If, Loop and Scan: bodies are modules of their own; what they read of the graphs around them comes as arguments.

Outside of tracing the control flow is Python's. torch.export and torch.compile see torch.cond and torch.while_loop where a
condition is a tensor; a condition or trip count on the host is Python's there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from graphpress.backends.fx.operands import Index, Tensor
from graphpress.errors import Unsupported

Body: TypeAlias = tuple[Callable[..., tuple[Any, ...]], list[Any]]  # module, what it captures


def if_(condition: Index, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One of two bodies."""
    (then, for_then), (other, for_other) = then_branch, else_branch
    if isinstance(condition, torch.Tensor) and torch.compiler.is_compiling():
        split = len(for_then)

        def true(*captured: Any) -> tuple[Any, ...]:
            return _owned(then(*captured[:split]), captured)

        def false(*captured: Any) -> tuple[Any, ...]:
            return _owned(other(*captured[split:]), captured)

        return tuple(torch.cond(condition.reshape(()), true, false, (*for_then, *for_other)))
    return then(*for_then) if condition else other(*for_other)


def _owned(results: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.cond refuses results that are what was given."""
    return tuple(r.clone() if any(r is g for g in given) else r for r in results)


def loop(
    trips: Index | None = None, condition: Index | None = None, *initial: Any, body: Body, outputs: int
) -> tuple[Any, ...]:
    """State through the body as often as told or as long as it wants; further outputs are stacked, one a turn."""
    module, captured = body
    carried = len(initial)
    tensors = [t for t in (trips, condition) if isinstance(t, torch.Tensor)]
    if tensors and torch.compiler.is_compiling():
        if outputs != carried:
            raise Unsupported("a Loop of unknown length that stacks outputs cannot be traced")
        return _while(module, captured, trips, condition, initial)
    if trips is not None and not isinstance(trips, int):
        trips = int(trips)
    state, scans, turn = list(initial), [[] for _ in range(outputs - carried)], 0
    like = next((t for t in (*initial, *captured) if isinstance(t, torch.Tensor)), None)
    device = None if like is None else like.device
    going = True if condition is None else condition
    while (trips is None or turn < trips) and bool(going):
        number = torch.full((), turn, dtype=torch.int64, device=device)
        going_tensor = torch.full((), True, device=device)
        going, *results = module(number, going_tensor, *state, *captured)
        state = results[:carried]
        for scan, result in zip(scans, results[carried:], strict=True):
            scan.append(result)
        turn += 1
    if scans and not turn:
        raise Unsupported("a Loop of no turns has outputs whose shape nothing tells")
    return (*state, *(torch.stack(scan) for scan in scans))


def _while(
    module: Callable[..., tuple[Any, ...]], captured: list[Any], trips: Any, condition: Any, initial: tuple[Any, ...]
) -> tuple[Any, ...]:
    device = next(t.device for t in (trips, condition, *initial) if isinstance(t, torch.Tensor))
    most = trips if trips is not None else 2**62
    going = torch.full((), True, device=device) if condition is None else condition.reshape(()).clone()

    def wanted(turn: Tensor, going: Tensor, *state: Tensor) -> Tensor:
        return going & (turn < most)

    def once(turn: Tensor, going: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        again, *results = module(turn, going, *state, *captured)
        return (turn + 1, again.reshape(()).clone(), *_owned(tuple(results), (*state, *captured)))

    start = torch.zeros((), dtype=torch.int64, device=device)
    return tuple(torch.while_loop(wanted, once, (start, going, *(s.clone() for s in initial)))[2:])


def scan(
    *inputs: Tensor, body: Body, num_scan_inputs: int, outputs: int,
    scan_input_axes: list[int] | None = None, scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None, scan_output_directions: list[int] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The body at every place of an axis, state carried on; unrolled under tracing."""
    module, captured = body
    split = len(inputs) - num_scan_inputs
    state, sequences = list(inputs[:split]), inputs[split:]
    axes = scan_input_axes or [0] * num_scan_inputs
    backward = scan_input_directions or [0] * num_scan_inputs
    rows = [
        tuple(reversed(s.unbind(axis))) if back else s.unbind(axis)
        for s, axis, back in zip(sequences, axes, backward, strict=True)
    ]
    found: list[list[Tensor]] = [[] for _ in range(outputs - split)]
    for row in zip(*rows, strict=True):
        results = module(*state, *row, *captured)
        state = list(results[:split])
        for output, result in zip(found, results[split:], strict=True):
            output.append(result)
    if found and not found[0]:
        raise Unsupported("a Scan over nothing has outputs whose shape nothing tells")
    to = scan_output_axes or [0] * len(found)
    turned = scan_output_directions or [0] * len(found)
    stacked = [
        torch.stack(list(reversed(f)) if back else f, axis) for f, axis, back in zip(found, to, turned, strict=True)
    ]
    return (*state, *stacked)


def scan_8(
    lengths: Tensor | None, *inputs: Tensor, body: Body, num_scan_inputs: int, outputs: int,
    directions: list[int] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opset 8: the first axis is the batch, the second the sequence; each sample has a scan of its own."""
    if lengths is not None:
        raise Unsupported("Scan of opset 8 is computed on sequences of one length only")
    samples = [
        scan(
            *(x[i] for x in inputs), body=body, num_scan_inputs=num_scan_inputs, outputs=outputs,
            scan_input_directions=directions,
        )
        for i in range(inputs[0].shape[0])
    ]  # fmt: skip
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


OPS: dict[str, Callable[..., Any]] = {"If": if_, "Loop": loop, "Scan@8": scan_8, "Scan@9": scan}
