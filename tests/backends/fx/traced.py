"""The modules with example inputs, traced once for all tests."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import graphpress as gp
from tests.backends.fx.modules import (
    Buffers,
    Containers,
    ConvNorm,
    Functional,
    Nested,
    Pair,
    Recurrent,
    Shapes,
    Tied,
    Tuples,
)
from tests.backends.fx.networks import DiTBlock, LlamaDecoder, MoE, UNet


class Case(NamedTuple):
    """A module, what it is traced with, which dimensions vary, and arguments of other sizes where some do."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never written
    shapes: Any = None
    others: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()

    def calls(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(self.args, self.kwargs), *self.others]


def _decoder(new: int, past: int, batch: int = 2) -> dict[str, Any]:
    """Keywords of one step of LlamaDecoder with a cache."""
    cache = tuple((torch.randn(batch, 2, past, 4), torch.randn(batch, 2, past, 4)) for _ in range(2))
    mask = torch.ones(batch, past + new, dtype=torch.int64)
    mask[0, 0] = 0
    return {
        "input_ids": torch.randint(0, 19, (batch, new)),
        "attention_mask": mask,
        "position_ids": torch.arange(past, past + new).expand(batch, -1),
        "past_key_values": cache,
    }


def _cache_shapes(batch: Any, past: Any) -> Any:
    return tuple(({0: batch, 2: past}, {0: batch, 2: past}) for _ in range(2))


def _styles() -> dict[str, Case]:
    x = torch.randn
    nest = {"extra": {"pair": (x(4), x(3))}, "bias": x(4)}
    return {
        "functional": Case(Functional(), (x(2, 4), x(6, 3))),
        "nested": Case(Nested(), (x(2, 3, 5),)),
        "tied": Case(Tied(), (torch.tensor([[1, 2, 10]]),)),
        "buffers": Case(Buffers(), (x(3, 4), torch.tensor([0, 5, 2]))),
        "containers": Case(Containers(), (x(2, 4), x(4), x(4)), nest),
        "tuples": Case(Tuples(), (Pair(x(3), x(3)), x(2))),
        "shapes": Case(Shapes(), (x(2, 3, 4, 6), x(1, 3))),
        "prefill": Case(LlamaDecoder(), (torch.randint(0, 19, (2, 5)),)),
        "decode": Case(LlamaDecoder(), (), _decoder(1, 6)),
        "unet": Case(UNet(), (x(2, 3, 8, 8), torch.tensor([3, 50]))),
        "dit": Case(DiTBlock(), (x(2, 6, 12), x(2, 12))),
        "lstm": Case(Recurrent(), (x(2, 6, 4), (x(4, 2, 5), x(4, 2, 5)))),
        "moe, dense": Case(MoE("dense"), (x(2, 5, 8),)),
        "moe, gather": Case(MoE("gather"), (x(2, 5, 8),)),
        "moe, index": Case(MoE("index"), (x(2, 5, 8),)),
        "conv-norm": Case(ConvNorm(), (x(2, 3, 8, 8),)),
    }


def _dynamic() -> dict[str, Case]:
    x = torch.randn
    batch, time, past = Dim("batch"), Dim("time", max=64), Dim("past", max=64)
    half_h, half_w = Dim("half_h", min=2), Dim("half_w", min=2)
    sizes = [(1, 3, 2, 4), (3, 3, 8, 10)]
    decoder = {
        "input_ids": {0: batch},
        "attention_mask": {0: batch, 1: past + 1},
        "position_ids": {0: batch},
        "past_key_values": _cache_shapes(batch, past),
    }
    return {
        "nested, dynamic": Case(
            Nested(), (x(2, 3, 5),), {}, ({0: batch, 1: time},), (((x(1, 1, 5),), {}), ((x(4, 9, 5),), {}))
        ),
        "shapes, dynamic": Case(
            Shapes(), (x(2, 3, 4, 6), x(1, 3)), {}, ({0: batch, 2: 2 * half_h, 3: 2 * half_w}, None),
            tuple(((x(*s), x(1, 3)), {}) for s in sizes),
        ),
        "prefill, dynamic": Case(
            LlamaDecoder(), (torch.randint(0, 19, (2, 5)),), {}, ({0: batch, 1: time},),
            (((torch.randint(0, 19, (1, 2)),), {}), ((torch.randint(0, 19, (3, 11)),), {})),
        ),
        "decode, dynamic": Case(LlamaDecoder(), (), _decoder(1, 6), decoder, (((), _decoder(1, 3, 4)),)),
        "unet, dynamic": Case(
            UNet(), (x(2, 3, 8, 8), torch.tensor([3, 50])), {}, ({0: batch, 2: 2 * half_h, 3: 2 * half_w}, {0: batch}),
            (((x(3, 3, 12, 6), torch.tensor([0, 9, 999])), {}),),
        ),
        "dit, dynamic": Case(
            DiTBlock(), (x(2, 6, 12), x(2, 12)), {}, ({0: batch, 1: time}, {0: batch}),
            (((x(3, 10, 12), x(3, 12)), {}),),
        ),
        "lstm, dynamic": Case(
            Recurrent(), (x(2, 6, 4), (x(4, 2, 5), x(4, 2, 5))), {}, ({0: batch}, ({1: batch}, {1: batch})),
            (((x(3, 6, 4), (x(4, 3, 5), x(4, 3, 5))), {}),),
        ),
        "moe, gather, dynamic": Case(
            MoE("gather"), (x(2, 5, 8),), {}, ({0: batch, 1: time},), (((x(1, 7, 8),), {}),)
        ),
        "conv-norm, dynamic": Case(ConvNorm(), (x(2, 3, 8, 8),), {}, ({0: batch},), (((x(5, 3, 8, 8),), {}),)),
    }  # fmt: skip


@functools.cache
def cases() -> dict[str, Case]:
    """All of them, the same ones each time, in evaluation mode, with seeded weights and inputs."""
    torch.manual_seed(0)
    found = _styles() | _dynamic()
    for case in found.values():
        case.module.eval()
    return found


_TRACED: dict[Any, ir.Model] = {}


def traced(what: str | Case, dtype: torch.dtype | None = None, **options: Any) -> ir.Model:
    """A case as a graph, traced once; in another float type if asked for."""
    if isinstance(what, Case):
        return gp.trace(*what[:4], **options)
    key = (what, dtype, *options.items())
    if key not in _TRACED:
        case = cases()[what]
        module, args, kwargs = case.module, case.args, case.kwargs
        if dtype is not None:
            module, args, kwargs = copy.deepcopy(module).to(dtype), moved(args, dtype), moved(kwargs, dtype)
        _TRACED[key] = gp.trace(module, args, kwargs, case.shapes, **options)
    return _TRACED[key]


def moved(values: Any, dtype: torch.dtype) -> Any:
    """Arguments with their float tensors in another type."""
    return pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, values
    )
