"""Second moments of layers' inputs: against numpy, against ONNX Runtime's convolution, across siblings and branches."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.backends import reference
from graphpress.errors import BadRequest, StaleSite
from graphpress.observe import moments
from graphpress.observe.data import CalibrationData
from graphpress.observe.im2col import Window
from graphpress.observe.moments import Moments, collect_moments
from graphpress.passes.quantizers import obs
from tests import kit
from tests.passes.quantizing import model, normal

CONVS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 4, 7, 6), (6, 4, 3, 3), {}),
    ((2, 4, 7, 6), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ((1, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "dilations": [2, 1], "pads": [2, 1, 2, 1], "strides": [3, 2]}),
    ((2, 3, 8, 7), (4, 3, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((2, 3, 8, 7), (4, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ((2, 3, 8, 8), (4, 3, 3, 3), {"auto_pad": "SAME_LOWER"}),
    ((2, 3, 8, 7), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    ((2, 4, 11), (6, 2, 5), {"group": 2, "dilations": [2], "pads": [3, 1]}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), {"strides": [1, 2, 2], "pads": [0, 1, 0, 1, 0, 1]}),
]


def conv(x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any]) -> ir.Model:
    dims = ", ".join(["N", *map(str, x_shape[1:])])
    rest = ", ".join(["N", str(w_shape[0]), *("O" for _ in w_shape[2:])])
    kernel = ", ".join(map(str, w_shape))
    made = model(
        f"g (float[{dims}] x, float[{kernel}] w) => (float[{rest}] y) {{ y = Conv(x, w) }}", {"w": normal(*w_shape)}
    )
    made.graph.node(0).attributes.update({a.name: a for a in ir.convenience.convert_attributes(attributes)})
    return made


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVS)
def test_rows_times_the_weight_are_the_convolution(x_shape: Any, w_shape: Any, attributes: dict[str, Any]) -> None:
    made, x = conv(x_shape, w_shape, attributes), normal(*x_shape, seed=1)
    expected = kit.run(made, {"x": x})["y"]
    window, w = Window.of(made.graph.node(0), w_shape[2:]), normal(*w_shape)
    rows = window.rows(x)
    groups = rows.shape[0]
    assert groups == attributes.get("group", 1)
    parts = rows @ w.reshape(groups, w_shape[0] // groups, -1).transpose(0, 2, 1)
    batch, _, *size = expected.shape
    product = parts.transpose(1, 0, 2).reshape(batch, *size, -1)
    np.testing.assert_allclose(np.moveaxis(product, -1, 1), expected, atol=2e-6 * np.abs(expected).max())


def collect(made: ir.Model, sites: list[str], feeds: dict[str, np.ndarray], **options: Any) -> moments.Collected:
    return collect_moments(made, sites, CalibrationData.from_arrays(feeds), reference.execute, **options)


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVS[:3])
def test_moments_of_a_convolution(x_shape: Any, w_shape: Any, attributes: dict[str, Any]) -> None:
    made, x = conv(x_shape, w_shape, attributes), normal(*x_shape, seed=1)
    rows = Window.of(made.graph.node(0), w_shape[2:]).rows(x).astype(np.float64)
    found = collect(made, ["Conv_0"], {"x": x}, batch_size=1)["Conv_0"]
    assert found.count == rows.shape[1]
    np.testing.assert_allclose(found.matrix, rows.transpose(0, 2, 1) @ rows / rows.shape[1], rtol=1e-12, atol=1e-12)


TWO = """
g (float[N, 5, 4] x, float[4, 3] a, float[4, 6] b, float[6, 2] c) => (float[N, 5, 3] y, float[N, 5, 2] z) {
    y = MatMul(x, a)
    h = MatMul(x, b)
    r = Relu(h)
    z = MatMul(r, c)
}
"""


def two() -> ir.Model:
    return model(TWO, {"a": normal(4, 3), "b": normal(4, 6, seed=1), "c": normal(6, 2, seed=2)})


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_moments_of_matrix_products(batch_size: int) -> None:
    x = normal(7, 5, 4, seed=3)
    found = collect(two(), ["MatMul_0", "MatMul_1", "MatMul_3"], {"x": x}, batch_size=batch_size)
    flat = x.reshape(-1, 4).astype(np.float64)
    hidden = np.maximum(flat @ normal(4, 6, seed=1), 0)
    assert found["MatMul_0"] is found["MatMul_1"]  # siblings
    assert found["MatMul_3"].count == 35
    np.testing.assert_allclose(found["MatMul_0"].matrix, [flat.T @ flat / 35], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["MatMul_3"].matrix, [hidden.T @ hidden / 35], rtol=1e-5, atol=1e-6)


def test_error_is_the_mean_squared_output_difference() -> None:
    x, d = normal(7, 5, 4, seed=3), normal(3, 4, seed=9)
    found = collect(two(), ["MatMul_0"], {"x": x})["MatMul_0"]
    np.testing.assert_allclose(found.error(d), np.square(x.reshape(-1, 4) @ d.T).sum() / 35, rtol=1e-5)


def test_error_of_groups() -> None:
    shape, attributes = (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}
    made, x, d = conv((2, 4, 7, 6), shape, attributes), normal(2, 4, 7, 6, seed=1), normal(*shape, seed=5)
    y = kit.run(conv_with(made, d), {"x": x})["y"]
    found = collect(made, ["Conv_0"], {"x": x})["Conv_0"]
    np.testing.assert_allclose(found.error(d), np.square(y).sum() / found.count, rtol=1e-5)


def conv_with(made: ir.Model, w: np.ndarray) -> ir.Model:
    clone = made.clone()
    clone.graph.initializers["w"].const_value = ir.tensor(w)
    return clone


def test_the_branch_of_an_if_is_reached_and_one_that_never_runs_is_named() -> None:
    made = model(
        """
        g (bool c, float[N, 4] x, float[4, 2] a, float[4, 2] b) => (float[N, 2] y) {
            y = If (c) <
                then_branch = t () => (float[N, 2] p) { u = Relu(x) p = MatMul(u, a) },
                else_branch = e () => (float[N, 2] q) { v = Neg(x) q = MatMul(v, b) }
            >
        }
        """,
        {"a": normal(4, 2), "b": normal(4, 2)},
    )
    x = normal(6, 4)
    names = [
        n.name or "" for g in made.graph.node(0).attributes.values() for n in g.as_graph() if n.op_type == "MatMul"
    ]
    found = collect(made, names, {"c": np.array(True), "x": x})
    positive = np.maximum(x, 0).astype(np.float64)
    np.testing.assert_allclose(found[names[0]].matrix, [positive.T @ positive / 6], rtol=1e-6)
    assert list(found) == names[:1]
    assert "never ran" in found.unobserved[names[1]]


def test_elements_that_are_not_finite_count_as_nothing() -> None:
    x = normal(2, 5, 4)
    x[0, 0, 0], x[1, 1, 1] = np.nan, np.inf
    assert np.isfinite(collect_rows(x).matrix).all()


def collect_rows(x: np.ndarray) -> Moments:
    total = moments.Sum()
    total.update(moments.Rows("x"), x)
    return total.moments()


def test_bad_sites() -> None:
    with pytest.raises(StaleSite):
        collect(two(), ["MatMul_9"], {"x": normal(1, 5, 4)})
    with pytest.raises(BadRequest, match="Relu"):
        collect(two(), ["Relu_2"], {"x": normal(1, 5, 4)})


def test_of_very_wide_layers_they_are_float32_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(3, 7, 23)
    exact = collect_rows(x)
    monkeypatch.setattr(moments, "WIDE", 16)
    monkeypatch.setattr(moments, "_PANEL", 5)  # the last one is shorter
    found = collect_rows(x)
    assert (exact.matrix.dtype, found.matrix.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(found.matrix, exact.matrix, atol=1e-6)
    np.testing.assert_array_equal(found.matrix, np.swapaxes(found.matrix, 1, 2))
    change = normal(11, 23, seed=1)
    assert found.error(change) == pytest.approx(exact.error(change), rel=1e-5)


def test_very_wide_layers_take_four_matrices_of_float32_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the samples that are fitted to and of those held out, the one that is factored, and the factor."""
    width = 600
    monkeypatch.setattr(moments, "WIDE", 512)
    x = normal(2 * width, width)
    obs.factor(np.eye(4), 0.01)  # imports
    tracemalloc.start()
    fit, held = collect_rows(x[:width]), collect_rows(x[width:])
    upper = obs.factor(fit.matrix[0], 0.01, obs.by_importance(fit.matrix[0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 4.6 * 4 * width**2
    damped = fit.matrix[0].astype(np.float64) + 0.01 * fit.matrix[0].diagonal().mean() * np.eye(width)
    order = obs.by_importance(fit.matrix[0])
    np.testing.assert_allclose(upper.T @ upper @ damped[np.ix_(order, order)], np.eye(width), atol=2e-3)
    assert held.matrix.dtype == upper.dtype == np.float32
