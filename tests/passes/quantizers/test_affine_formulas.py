"""The formulas of the affine quantizer at points worked out by hand, in numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.passes.quantizers import affine
from graphpress.passes.quantizers.affine import AFFINE, from_range
from graphpress.passes.quantizers.quantizer import QParams
from graphpress.types import PER_TENSOR, Scheme, per_channel


def params(scale: float, zero: int, dtype: str) -> QParams:
    return QParams(np.asarray(scale, np.float32), np.asarray(zero, np.int32).astype(Scheme(dtype).ir_dtype.numpy()))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_what_lies_beyond_the_ends_is_moved_to_where_it_surely_rounds_back(scale: float) -> None:
    """By 31/64 of a step: half of one, less 1/64 for half precision."""
    x = np.array([-100, -8.49, -8.4, 0.3, 7.4, 7.49, 100], np.float32) * np.float32(scale)
    wanted = np.array([-8.484375, -8.484375, -8.4, 0.3, 7.4, 7.484375, 7.484375]) * scale
    np.testing.assert_allclose(AFFINE.clipped(x, params(scale, 0, "int4"), Scheme("int4")), wanted, rtol=1e-6)
    shifted = AFFINE.clipped(x, params(scale, 3, "uint4"), Scheme("uint4"))
    assert shifted.min() == np.float32(-3.484375 * scale) and shifted.max() == np.float32(12.484375 * scale)


def test_codes_and_numbers_count_from_the_zero_point() -> None:
    x, given, scheme = np.array([-0.9, 0.2, 0.3, 7.0], np.float32), params(0.5, 3, "uint4"), Scheme("uint4")
    np.testing.assert_array_equal(AFFINE.codes(x, given, scheme), [1, 3, 4, 15])
    np.testing.assert_array_equal(AFFINE.values(np.array([1, 3, 4, 15]), given, scheme), [-1, 0, 0.5, 6])


def test_a_zero_point_that_is_learned_may_lie_between_codes() -> None:
    torch = pytest.importorskip("torch")
    learned = QParams(torch.tensor(2.0), torch.tensor(0.5), {})
    found = AFFINE.values(torch.tensor([-1, 0, 3]), learned, Scheme("int4"))
    assert found.tolist() == [-3.0, -1.0, 5.0]


def test_one_bound_that_is_not_finite_is_enough() -> None:
    scheme = Scheme("uint8", symmetric=False)
    with pytest.raises(BadRequest, match="NaN or infinity"):
        from_range(np.array([-1.0, -1.0]), np.array([1.0, np.inf]), scheme)
    with pytest.raises(BadRequest, match="NaN or infinity"):
        from_range(-np.inf, 1.0, scheme)
    with pytest.raises(BadRequest, match="NaN or infinity"):
        from_range(-1, np.float32(np.nan), scheme)


def test_the_zero_point_is_stored_as_codes_are() -> None:
    """In numpy; torch has no such types, and keeps integers."""
    torch = pytest.importorskip("torch")
    scheme = Scheme("uint4", symmetric=False)
    for lo, hi in ((-1.0, 2.0), (np.array([-1.0]), np.array([2.0]))):
        assert from_range(lo, hi, scheme).zero_point.dtype == scheme.ir_dtype.numpy()
    kept = from_range(torch.tensor([-1.0]), torch.tensor([2.0]), scheme).zero_point
    assert kept.dtype == torch.int32 and kept.tolist() == [5]


STEP = 0.75


def rows(*ends: tuple[int, int]) -> np.ndarray:
    """Multiples of STEP between given ends, 0 among them."""
    return np.stack([np.array([low, high, 0, min(high, 1), min(high, 2)], np.float32) * STEP for low, high in ends])


@pytest.mark.parametrize(
    ("dtype", "symmetric", "given", "steps", "zeros"),
    [
        ("int4", True, [(-8, 7), (-9, 7), (-8, 8), (0, 0), (-8, 0)], [1, 9 / 8.5, 8 / 7.5, None, 1], [0] * 5),
        ("uint4", True, [(-8, 7), (-9, 7), (-8, 8)], [1, 9 / 8.5, 8 / 7.5], [8] * 3),
        ("int8", True, [(-128, 127), (-129, 127), (-128, 128), (3, 127)], [1, 129 / 127, 128 / 127, 1], [0] * 4),
        ("uint4", False, [(-3, 12), (-3, 13), (2, 15), (-15, 0), (-8, 0)], [1, 16 / 15, 1, 1, 1], [3, 3, 0, 15, 8]),
        ("int4", False, [(-3, 12), (-4, 12), (2, 15), (-15, 0)], [1, 16 / 15, 1, 1], [-5, -4, -8, 7]),
    ],
)
def test_rows_on_an_even_grid_keep_its_step_where_the_codes_suffice(
    dtype: str, symmetric: bool, given: list[tuple[int, int]], steps: list[float | None], zeros: list[int]
) -> None:
    """Else the range decides; a row of zeros has no step to keep (its scale is 1)."""
    found = AFFINE.fit(rows(*given), Scheme(dtype, per_channel(0), symmetric))
    np.testing.assert_allclose(found.scale, [1.0 if s is None else s * STEP for s in steps], rtol=1e-6)
    np.testing.assert_array_equal(found.zero_point.astype(int), zeros)


@pytest.mark.parametrize("block", [1 << 16, 7])
@pytest.mark.parametrize(("dtype", "symmetric"), [("int4", True), ("uint4", False)])
def test_the_least_error_counts_each_element_by_its_cost(
    dtype: str, symmetric: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brute force over the ratios of the docstring, in float64, whatever slices the sums are made in."""
    monkeypatch.setattr(affine, "_BLOCK", block)
    rng = np.random.default_rng(0)
    x, cost = rng.standard_t(3, (3, 60)).astype(np.float32), 10 ** rng.uniform(-2, 2, (3, 60))
    low, high = (0, 15) if dtype == "uint4" else (-8, 7)

    def lost(row: np.ndarray, price: np.ndarray, ratio: float) -> float:
        lo, hi = row.min() * ratio, row.max() * ratio
        step, zero = max(-lo / 8.5, hi / 7.5), 0
        if not symmetric:
            step = (hi - lo) / 15
            zero = int(np.clip(np.rint(low - lo / step), low, high))
        back = (np.clip(np.rint(row / step) + zero, low, high) - zero) * step
        return float((price * (back - row) ** 2).sum())

    scheme = Scheme(dtype, per_channel(0), symmetric, observer="mse")
    found = AFFINE.fit(x, scheme, cost)
    back = AFFINE.dequantize(AFFINE.quantize(x, found, scheme), found, scheme).astype(np.float64)
    ratios = np.arange(8, 41) / 40
    for i, (row, price) in enumerate(zip(x.astype(np.float64), cost, strict=True)):
        mine = float((price * (back[i] - row) ** 2).sum())
        every = [lost(row, price, r) for r in ratios]
        assert min(abs(mine - e) for e in every) <= 1e-4 * mine  # it is one of the ratios
        assert mine <= 1.15 * min(every)  # found in two rounds, not by trying all
        plain = lost(row, price, float(ratios[np.argmin([lost(row, np.ones(60), r) for r in ratios])]))
        assert mine < plain  # another than without costs


def test_products_of_rows_are_in_float64() -> None:
    torch = pytest.importorskip("torch")
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    assert affine.dot(a, b).dtype == np.float64 and affine.dot(a, b).tolist() == [17, 53]
    found = affine.dot(torch.from_numpy(a), torch.from_numpy(b))
    assert found.dtype == torch.float64 and found.tolist() == [17, 53]


def test_one_scale_for_the_whole_is_a_number() -> None:
    found = AFFINE.fit(
        np.array([[-1.0, 0.1 * np.pi], [0.1 * np.e, 2.0]], np.float32), Scheme("uint8", PER_TENSOR, symmetric=False)
    )
    assert found.scale.shape == () and float(found.scale) == np.float32(3 / 255) and int(found.zero_point) == 85
