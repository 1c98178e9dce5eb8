"""``python -m graphpress.tools.bench.torch_int8``: dynamic W8A8 linear layers in torch against float, oneDNN, torchao.

Every layer goes the user's way: traced, compiled by the recipe ``w8a8-dynamic`` for ``torch-cpu``, lowered. Ratios are
medians over pairs of interleaved runs in one process, two threads, 256 tokens.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from graphpress.tools.bench.torch_speed import ratio_of

WIDTHS, TOKENS, HIDDEN = (1024, 2048, 4096), 256, 2.75  # the code model's MLP is 2.75 times as wide as its stream


def rows(width: int) -> list[str]:
    """Lines of the table for the layers of one width: width x width, and to and from the MLP's width."""
    hidden = int(width * HIDDEN)
    return [_row(k, n) for k, n in ((width, width), (width, hidden), (hidden, width))]


def _row(k: int, n: int) -> str:
    layer, x = nn.Linear(k, n, bias=False).eval(), torch.randn(TOKENS, k)
    ours = compiled_layer(layer, x)
    with torch.no_grad():
        eager = ratio_of(lambda: layer(x), lambda: ours(x))
        bare = ratio_of(lambda: ours(x), bare_kernel(k, n))[1]
        torch._dynamo.reset()  # every layer is a program of its own
        fast = torch.compile(ours, fullgraph=True)
        bare_compiled = ratio_of(lambda: fast(x), bare_kernel(k, n))[1]
        theirs = torchao_layer(layer)
        against = ["-", "-"]
        if theirs is not None:
            other = torch.compile(theirs, fullgraph=True)
            pairs = ((ours, theirs), (fast, other))
            against = [f"{1 / ratio_of(lambda a=a: a(x), lambda b=b: b(x))[1]:.2f}x" for a, b in pairs]  # type: ignore[misc]
        noise = float((ours(x) - layer(x)).norm() / layer(x).norm())
    return (
        f"| {TOKENS} x {k} x {n} | {eager[1]:.1f}x | {bare:.2f}x | {bare_compiled:.2f}x | {against[0]} | {against[1]} "
        f"| {noise:.3f} |"
    )


def compiled_layer(layer: nn.Module, x: torch.Tensor) -> nn.Module:
    """The layer as graphpress lowers it."""
    import graphpress as gp

    model, _ = gp.compile(gp.trace(layer, (x,)), "w8a8-dynamic", target="torch-cpu", gate=False, prove=False)
    return gp.lower(model, "torch-cpu")


def bare_kernel(k: int, n: int) -> Callable[[], Any]:
    """oneDNN's integer product alone, on codes that are there already."""
    codes = torch.randint(0, 256, (TOKENS, k), dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 128, (n, k), dtype=torch.int8), [TOKENS, k])
    scale, zero = torch.rand(n), torch.zeros(n, dtype=torch.int32)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        codes, 0.1, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )


def torchao_layer(layer: nn.Module) -> nn.Module | None:
    """The layer by torchao's int8 dynamic configuration; None where torchao is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    copy = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias=False)
    copy.weight = nn.Parameter(layer.weight.detach().clone())
    holder = nn.Sequential(copy).eval()
    quantize_(holder, Int8DynamicActivationInt8WeightConfig())
    return holder


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.torch_int8", description=__doc__)
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="comma-separated")
    args = parser.parse_args(argv)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print(
        "| tokens x in x out | speed of fp32 eager | time of oneDNN's bare product | the same, compiled "
        "| speed of torchao, eager | both compiled | noise |"
    )
    print("|---|---|---|---|---|---|---|")
    for width in args.widths.split(","):
        for line in rows(int(width)):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
