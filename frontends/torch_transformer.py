"""torch's own transformer modules, traced to what they compute in evaluation mode without gradients.

Their fast path is one operator for a whole layer, which ONNX lacks, and they look at the values of a mask: whether it
is causal, which only says that a faster kernel would do, and whether its padding is at the end of each row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def traceable(torch: Any, module: Any) -> Iterator[None]:
    """The plain path for every layer, with the zeros that an encoder's fast path puts in place of padding."""
    fast = torch.backends.mha.get_fastpath_enabled()
    parts = list(module.modules()) if isinstance(module, torch.nn.Module) else []
    with contextlib.ExitStack() as stack:
        for part in parts:
            if fast and isinstance(part, torch.nn.TransformerEncoder):
                _hook(torch, part, stack)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        transformer = torch.nn.modules.transformer
        if detect := getattr(transformer, "_detect_is_causal_mask", None):
            stack.callback(setattr, transformer, "_detect_is_causal_mask", detect)
            transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
        yield


def _hook(torch: Any, encoder: Any, stack: contextlib.ExitStack) -> None:
    """Let an encoder put zeros where its nested tensors would: before its last norm."""
    kept: list[Any] = []

    def look(part: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> None:
        kept[:] = []
        padded = src_key_padding_mask
        if part.use_nested_tensor and not part.training and src.dim() == 3 and mask is None and padded is not None:
            kept.append(_padding(torch, padded, getattr(part, "mask_check", True)).unsqueeze(-1))

    def zero(x: Any) -> Any:
        return torch.where(kept.pop(), 0.0, x) if kept else x

    stack.callback(_register(encoder.register_forward_pre_hook, lambda m, args, kw: look(m, *args, **kw), True))
    if encoder.norm is None:
        stack.callback(_register(encoder.register_forward_hook, lambda m, args, result: zero(result)))
    else:
        stack.callback(_register(encoder.norm.register_forward_pre_hook, lambda m, args: (zero(args[0]), *args[1:])))


def _register(register: Any, hook: Any, kwargs: bool = False) -> Any:
    return (register(hook, with_kwargs=True) if kwargs else register(hook)).remove


def _padding(torch: Any, mask: Any, checked: bool) -> Any:
    """Which positions are padding; none where any of it is before the last token of its row."""
    padded = mask if mask.dtype == torch.bool else mask != 0
    return padded & (padded[:, 1:] >= padded[:, :-1]).all() if checked else padded
