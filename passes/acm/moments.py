"""Second moments of what layers read, over a few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphpress.base import Context
from graphpress.passes.structure.ffn import Block, Found

Moments: TypeAlias = Mapping[str, np.ndarray]  # value -> mean of v v^T over tokens, [width, width]
_BATCH = 4


def second_moments(model: ir.Model, found: Sequence[Found], ctx: Context, samples: int) -> Moments:
    """Of the hidden values of blocks and the inputs of projections; none where there is no data."""
    if ctx.data is None or ctx.run is None or samples < 1:
        return {}
    names = list(dict.fromkeys((f.hidden_value if isinstance(f, Block) else f.input).name or "" for f in found))
    fed = [v.name for v in model.graph.inputs]
    runner = ctx.run(model, [n for n in names if n not in fed])
    data = ctx.data.bind(model).take(samples, ctx.seed)
    sums: dict[str, np.ndarray] = {}
    tokens: dict[str, int] = dict.fromkeys(names, 0)
    for feeds in ctx.progress(data.batches(_BATCH), "moments", -(-len(data) // _BATCH)):
        got = runner(feeds) | {n: feeds[n] for n in names if n in feeds}
        for name in names:
            rows = got[name].reshape(-1, got[name].shape[-1]).astype(np.float32)
            sums[name] = sums.get(name, 0) + (rows.T @ rows).astype(np.float64)
            tokens[name] += len(rows)
    return {n: s / max(tokens[n], 1) for n, s in sums.items()}
