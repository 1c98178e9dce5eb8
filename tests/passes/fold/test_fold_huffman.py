"""What fold-weights counts of codes of uneven formats."""

from __future__ import annotations

from graphpress.passes.fold.fold_weights import FoldWeights
from graphpress.passes.quantize.quantize import Quantize
from tests import kit
from tests.passes.quantizing import context, model, normal

TEXT = "g (float[N, 64] x, float[64, 32] w) => (float[N, 32] y) { [m] y = MatMul(x, w) }"


def test_bytes_of_uneven_codes_are_counted_and_of_even_ones_are_not() -> None:
    for quantizer, counted in (("power", True), ("points", True), ("affine", False)):
        quantize = Quantize(mode="weight", weight="int4", quantizer=quantizer, kernels="preferred")
        _, (_, report) = kit.apply(
            model(TEXT, {"w": normal(64, 32)}), quantize, FoldWeights(), ctx=context(target=None)
        )
        assert ("code bytes" in report.metrics) == counted
        if counted:
            assert report.metrics["code bytes"] == 64 * 32 / 2
            assert 700 < float(report.metrics["code bytes, Huffman"]) < 1024  # normal numbers: under 4 bits each
