"""If, Loop and Scan: bodies are modules of their own; what they read of the graphs around them comes as arguments.

Outside of tracing the control flow is Python's. Under torch.export and torch.compile a condition or a number of turns
that is a tensor makes it torch.cond or torch.while_loop; what is on the host branches and unrolls in Python there too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphpress.backends.fx import dtypes
from graphpress.backends.fx.operands import Ints, Number, Tensor
from graphpress.errors import Unsupported

Result: TypeAlias = tuple[str | None, tuple[int | None, ...] | None]  # type and shape, as far as known
Body: TypeAlias = tuple[Callable[..., tuple[Any, ...]], list[Any], list[Result | None]]  # module, captured, results

# -- If ----------------------------------------------------------------------------------------------------------------


def if_(condition: Number, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One of two bodies."""
    if isinstance(condition, torch.Tensor) and torch.compiler.is_compiling():
        return _traced_if(condition, then_branch, else_branch)
    module, captured, _ = then_branch if condition else else_branch
    return module(*captured)


def _traced_if(condition: Tensor, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """Both branches take the tensors that either captures; numbers are part of the traced code."""
    (then, for_then, _), (other, for_other, _) = then_branch, else_branch
    tensors = [t for t in (*for_then, *for_other) if isinstance(t, torch.Tensor)]
    split = sum(isinstance(t, torch.Tensor) for t in for_then)

    def true(*given: Tensor) -> tuple[Any, ...]:
        return _owned(then(*_filled(for_then, given[:split])))

    def false(*given: Tensor) -> tuple[Any, ...]:
        return _owned(other(*_filled(for_other, given[split:])))

    return tuple(torch.cond(condition.reshape(()), true, false, tuple(tensors)))


def _filled(captured: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """What is captured, with other tensors in the places of its tensors."""
    rest = iter(tensors)
    return [next(rest) if isinstance(c, torch.Tensor) else c for c in captured]


def _owned(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """As torch's own control flow wants results: no views of what was given, and of equal strides."""
    return tuple(r.clone(memory_format=torch.contiguous_format) for r in results)


# -- Loop --------------------------------------------------------------------------------------------------------------


def loop(
    trips: Number | None = None, condition: Number | None = None, *state: Any, body: Body, like: Tensor | None = None
) -> tuple[Any, ...]:
    """State through the body as often as told or as long as it wants; further results are stacked, one a turn.

    The body takes the turn as a number, the state and what it captures; it gives whether to go on, the state, the rest.
    """
    module, captured, (again, *results) = body
    carried = len(state)
    if torch.compiler.is_compiling() and (again is not None or _is_tensor(trips) or _is_tensor(condition)):
        if len(results) > carried:
            raise Unsupported("a Loop whose turns are unknown and whose results are stacked cannot be traced")
        return _while(body, trips, condition, state)
    limit = int(trips) if isinstance(trips, torch.Tensor) else trips
    stacks: list[list[Tensor]] = [[] for _ in results[carried:]]
    turn, going = 0, True if condition is None else condition
    while (limit is None or turn < limit) and going:
        going, *found = module(turn, *state, *captured)
        state = tuple(found[:carried])
        for stack, result in zip(stacks, found[carried:], strict=True):
            stack.append(result)
        turn += 1
    return (*state, *(_stacked(s, 0, r, like) for s, r in zip(stacks, results[carried:], strict=True)))


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


def _while(body: Body, trips: Any, condition: Any, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    module, captured, _ = body
    device = next((t.device for t in (*state, *captured, trips, condition) if _is_tensor(t)), None)
    limit = trips.reshape(()) if _is_tensor(trips) else trips

    def wanted(turn: int, going: Tensor, *state: Tensor) -> Tensor:
        return going if limit is None else going & (turn < limit)

    def once(turn: int, going: Tensor, *state: Tensor) -> tuple[Any, ...]:
        again, *results = module(turn, *state, *captured)
        return (turn + 1, _truth(again, device), *_owned(tuple(results)))

    start = _truth(True if condition is None else condition, device)
    return tuple(torch.while_loop(wanted, once, (0, start, *_owned(state)))[2:])


def _truth(x: Any, device: torch.device | None) -> Tensor:
    return x.reshape(()).clone() if _is_tensor(x) else torch.full((), bool(x), dtype=torch.bool, device=device)


def _stacked(found: Sequence[Tensor], axis: int, result: Result | None, like: Tensor | None) -> Tensor:
    """Results of each turn along a new axis; of no turns, with the type and shape that the body declares."""
    if found:
        return torch.stack(tuple(found), axis)
    dtype, shape = result or (None, None)
    sizes = [d or 0 for d in shape or ()]
    sizes.insert(axis % (len(sizes) + 1), 0)
    return torch.empty(sizes, dtype=dtypes.torch_dtype(dtype or "FLOAT"), device=None if like is None else like.device)


# -- Scan --------------------------------------------------------------------------------------------------------------


def scan(
    *inputs: Tensor, body: Body, num_scan_inputs: int, scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (), scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (), like: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The body at every place of an axis, with a state that is carried on; unrolled when it is traced."""
    module, captured, results = body
    carried = len(inputs) - num_scan_inputs
    state = inputs[:carried]
    rows = [
        s.unbind(axis)[:: -1 if back else 1]
        for s, axis, back in zip(
            inputs[carried:], scan_input_axes or [0] * num_scan_inputs,
            scan_input_directions or [0] * num_scan_inputs, strict=True,
        )
    ]  # fmt: skip
    found = []
    for row in zip(*rows, strict=True):
        given = module(*state, *row, *captured)
        state = given[:carried]
        found.append(given[carried:])
    more = results[carried:]
    axes, back = scan_output_axes or [0] * len(more), scan_output_directions or [0] * len(more)
    stacks = [[f[i] for f in found][:: -1 if b else 1] for i, b in enumerate(back)]
    return (*state, *(_stacked(s, a, r, like) for s, a, r in zip(stacks, axes, more, strict=True)))


def scan_8(
    lengths: Ints | None, *inputs: Tensor, body: Body, num_scan_inputs: int, directions: Sequence[int] = (),
    like: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Opset 8: the first axis is the batch, the second the sequence. What is behind a sequence's end is zero."""
    carried = len(inputs) - num_scan_inputs
    samples = []
    for i in range(inputs[0].shape[0]):
        given = [x[i] if j < carried or lengths is None else x[i, : lengths[i]] for j, x in enumerate(inputs)]
        state_and_rows = scan(
            *given, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions, like=like
        )
        longest = inputs[-1].shape[1]
        samples.append([t if j < carried else _padded(t, longest) for j, t in enumerate(state_and_rows)])
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


def _padded(x: Tensor, length: int) -> Tensor:
    """With zeros behind, along the first axis."""
    missing = length - x.shape[0]
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


OPS: dict[str, Callable[..., Any]] = {"If": if_, "Loop": loop, "Scan@8": scan_8, "Scan@9": scan}
