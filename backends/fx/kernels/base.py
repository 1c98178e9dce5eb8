"""What the kernels share: state that keeps its types, weights packed once, products of integers by torch._int_mm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from graphpress.errors import Unsupported

LIBRARY = torch.library.Library("graphpress", "FRAGMENT")  # kernels that torch.compile shall not look into
INTEGERS = (torch.uint8, torch.int8)
NARROW = 64  # weight codes up to here never overflow: 255 * (64 + 64) fits where pairs of products are added in 16 bits
_PACKED = WeakTensorKeyDictionary()
_CUDA_ROWS, _CUDA_STEP = 32, 8  # torch._int_mm on CUDA: more than 16 rows, the other sizes in eights


class Kernel(nn.Module):
    """A module whose scales stay float32 whatever type it is cast to, and which knows what computes it.

    Attributes:
        kind: ``integer`` or ``weight-only``: the audit's verdict where the kernel runs.
    """

    kind = "integer"
    probed: Callable[..., str | None] | None = None  # (kind of device, largest code): None, or what is not exact there

    def __init__(self) -> None:
        super().__init__()
        ask = self.probed or (lambda *_: "no integer products")
        self.exact_on = frozenset(d for d in ("cpu", "cuda") if ask(d) is None)  # for any codes
        self.exact_if_narrow = frozenset(d for d in ("cpu", "cuda") if ask(d, NARROW) is None)

    def exact(self, x: torch.Tensor) -> bool:
        """Whether integer products are exact where ``x`` is, for the codes that the weight holds now.

        Where only narrow codes are, a recorded call cannot ask for them and takes the reference.
        """
        device = x.device.type
        if device in self.exact_on:
            return True
        return device in self.exact_if_narrow and not traced(x) and is_narrow(self.weight)

    def refusal(self, device: str) -> str | None:
        """Why the kernel does not run on this device; None where it does."""
        raise NotImplementedError

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The same in plain torch, on any device."""
        raise NotImplementedError

    @property
    def reason(self) -> str:
        """What the audit says beside the verdict."""
        return self.refusal(self.weight.device.type) or ""

    @property
    def verdict(self) -> str:
        """As an audit's row has it."""
        return "fallback" if self.refusal(self.weight.device.type) else self.kind

    def planned(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives of the state, until the state changes."""
        now = [stamp(t) for t in self._buffers.values() if t is not None]
        plan = self.__dict__.get("_plan")
        if plan is None or plan[0] != now:
            plan = self.__dict__["_plan"] = (now, make())
        return plan[1]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_plan"}  # packed weights neither copy nor save

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Kernel:
        before = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def _floats(self, name: str, value: torch.Tensor | float | None) -> None:
        self.register_buffer(name, None if value is None else torch.as_tensor(value, dtype=torch.float32).clone())

    def _integer(self, name: str, value: int | None) -> None:
        self.register_buffer(name, None if value is None else torch.tensor(value, dtype=torch.int32))


def packed(key: Any, make: Callable[[], Any], weight: torch.Tensor, *others: torch.Tensor) -> Any:
    """What ``make`` gives of these tensors, until the first goes or their contents change: for what has no module."""
    now = [stamp(t) for t in (weight, *others)]
    made = _PACKED.setdefault(weight, {})
    found = made.get(key)
    if found is None or found[0] != now:
        found = made[key] = (now, make())
    return found[1]


def stamp(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when the tensor is written to or gets other memory."""
    return (0 if tensor.is_inference() else tensor._version, tensor.data_ptr())


def traced(x: torch.Tensor) -> bool:
    """Whether the call is recorded: a packed weight must not be seen then."""
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor


def weight_refusal(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dims: range | tuple[int, ...]
) -> str | None:
    """The rule that a weight for an integer product breaks, or None."""
    if codes.dtype != torch.int8:
        return f"weights of int8, not {_name(codes.dtype)}"
    if codes.dim() not in dims:
        return f"a weight of {codes.dim()} axes"
    if scale.numel() not in (1, codes.shape[0]):
        return "one weight scale, or one for each output channel"
    if zero is not None and not zero.is_meta and bool(zero.any()):
        return "weights with a zero point other than 0"
    return None


def is_narrow(codes: torch.Tensor) -> bool:
    """Whether no code is larger than ``NARROW``; asked again when the tensor is written to."""
    return bool(packed("narrow", lambda: bool(codes.abs().view(torch.uint8).le(NARROW).all()), codes))


def product_refusal(probe: Callable[..., str | None], codes: torch.Tensor, device: str) -> str | None:
    """Why products with these codes are not exact on a kind of device, or None."""
    why = probe(device)
    known = why is not None and not codes.is_meta and type(codes) in (torch.Tensor, torch.nn.Parameter)
    return None if known and is_narrow(codes) and probe(device, NARROW) is None else why


def require(refusal: str | None) -> None:
    """Refuse a module that not even the reference of could be right.

    Raises:
        Unsupported: There is a refusal.
    """
    if refusal is not None:
        raise Unsupported(f"the kernel refuses {refusal}")


def integer_products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[rows, in] int8 times [out, in] int8: int32, exact."""
    return padded_products(x, weight) if x.device.type == "cuda" else torch._int_mm(x, weight.t())


def padded_products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same with zeros around, to the sizes that torch._int_mm takes on CUDA."""
    rows, (channels, depth) = x.shape[0], weight.shape
    deeper, wider, more = -depth % _CUDA_STEP, -channels % _CUDA_STEP, max(_CUDA_ROWS - rows, 0)
    if deeper or more:
        x = F.pad(x, (0, deeper, 0, more))
    if deeper or wider:
        weight = F.pad(weight, (0, deeper, 0, wider))
    return torch._int_mm(x.contiguous(), weight.t())[:rows, :channels]


def requantize(
    y: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | int, dtype: torch.dtype
) -> torch.Tensor:
    """QuantizeLinear: halves to even, saturating."""
    limits = torch.iinfo(dtype)
    return (torch.round(y / scale) + zero).clamp(limits.min, limits.max).to(dtype)


def unsigned(codes: torch.Tensor, zero: Any) -> tuple[torch.Tensor, Any]:
    """Codes as uint8 with their zero point: what oneDNN computes fast without AMX."""
    return (codes, zero) if codes.dtype == torch.uint8 else (codes.view(torch.uint8).bitwise_xor(128), zero + 128)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
