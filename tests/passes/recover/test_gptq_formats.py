"""GPTQ on torch tensors against numpy in float64, and with every number format that the catalog finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graphpress import catalog
from graphpress.contracts import PassReport
from graphpress.passes.quantize.quantize import Quantize
from graphpress.passes.quantizers import obs
from graphpress.passes.quantizers.named import named
from graphpress.passes.recover.rounding import grids
from graphpress.passes.recover.rounding.gptq import Gptq
from graphpress.types import Scheme
from tests import kit
from tests.passes.quantizing import context, model, normal

ONE = "g (float[N, 32] x, float[32, 24] w) => (float[N, 24] y) { [m] y = MatMul(x, w) }"


class Nearest:
    """Rounds to multiples of a quarter, in numpy and torch alike."""

    step = 0

    def enter(self, columns: object, start: int, diagonal: object) -> None: ...

    def __call__(self, column: np.ndarray | torch.Tensor, j: int) -> np.ndarray | torch.Tensor:
        return (column * 4).round() / 4


def correlated(rows: int = 400, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))).astype(np.float32)


@pytest.mark.parametrize("block", [8, 128])
def test_columns_settle_in_torch_as_in_numpy(block: int) -> None:
    x, w = correlated(), np.random.default_rng(4).normal(size=(10, 32))
    h = x.T.astype(np.float64) @ x
    h[5] = h[:, 5] = 0  # an input that was never anything but 0
    order = obs.by_importance(h)
    expected = obs.solve(w, h, Nearest(), block=block, order=order)
    given = torch.from_numpy(w), torch.from_numpy(h)
    found = obs.solve(*given, Nearest(), block=block, order=obs.by_importance(given[1]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(obs.factor(given[1], 0.01).numpy(), obs.factor(h, 0.01), rtol=1e-9, atol=1e-12)


def dtype(name: str) -> str:
    """A type of few bits that a format has."""
    return next(
        t
        for t in ("int4", "int2", "int8", "float8e4m3fn", "ternary", "binary")
        if named(name).refusal(Scheme(t)) is None
    )


def settled(name: str, options: dict[str, object], **gptq: object) -> tuple[np.ndarray, PassReport]:
    quantize = Quantize(mode="weight", weight=dtype(name), quantizer=name, kernels="preferred", **options)  # type: ignore[arg-type]
    made = model(ONE, {"w": normal(32, 24)})
    after, reports = kit.apply(made, quantize, Gptq(**gptq), ctx=context({"x": correlated()}, target=None))  # type: ignore[arg-type]
    (layer,) = grids.quantized_layers(after, PassReport())
    return layer.rounded(layer.params()), reports[-1]


OPTIONS = [{"weight_granularity": "per_channel"}, {"weight_granularity": "per_group", "group_size": 16}]


@pytest.mark.parametrize("name", catalog.quantizers())
@pytest.mark.parametrize("options", OPTIONS, ids=["channels", "groups"])
@pytest.mark.parametrize("act_order", [True, False])
def test_any_format_loses_less_than_rounding_to_nearest(name: str, options: dict[str, object], act_order: bool) -> None:
    """And on a device of torch's it gives the same codes, but for ties of float32."""
    found, report = settled(name, options, act_order=act_order)
    assert report.changed == 1
    coarse = {"tlq": 1.0 if "group_size" in options else 0.85, "binary": 0.9}  # whose levels cannot make up much
    bound = coarse.get(name, 0.8)
    assert 0 < float(report.metrics["error against rounding to nearest"]) < bound
    other, _ = settled(name, options, act_order=act_order, device="cpu")
    assert np.isclose(found, other, rtol=1e-5, atol=1e-7).mean() > 0.99


@pytest.mark.parametrize("name", catalog.quantizers())
def test_the_weight_lies_on_the_numbers_of_the_format(name: str) -> None:
    made = model(ONE, {"w": normal(32, 24)})
    quantize = Quantize(mode="weight", weight=dtype(name), quantizer=name, kernels="preferred")  # type: ignore[arg-type]
    after, _ = kit.apply(made, quantize, Gptq(), ctx=context({"x": correlated()}, target=None))
    (layer,) = grids.quantized_layers(after, PassReport())
    assert layer.scheme.quantizer == name
    np.testing.assert_array_equal(layer.weight(), layer.rounded(layer.params()))
    assert named(name).refusal(Scheme(dtype(name))) is None
