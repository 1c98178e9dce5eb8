"""Inner values: by name from any graph, from a place in the middle on, in order while the next batches run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphpress.backends import reference
from graphpress.errors import BadRequest, StaleSite
from graphpress.observe import inner
from graphpress.observe.inner import InnerValues, ahead
from tests.passes.quantizing import model

TEXT = """
g (float[N, 3] x, float[3] w) => (float[N, 3] z) {
    a = Add(x, w)
    i = ArgMax<axis = 1, keepdims = 0>(a)
    b = Mul(a, a)
    z = Neg(b)
}
"""
W = np.array([1.0, -2.0, 3.0], np.float32)
X = np.array([[0.5, 1.5, -4.0], [2.0, 0.0, 1.0]], np.float32)


def made() -> ir.Model:
    found = model(TEXT, {"w": W})
    ShapeInferencePass()(found)
    return found


def test_values_come_by_name_computed_fed_and_constant() -> None:
    values = InnerValues.of(made(), ["b", "x", "w", "i", "z"], reference.execute)
    seen = values({"x": X})
    assert seen.keys() == {"b", "x", "w", "z"} and values.unobserved == {"i": "its type is INT64"}
    np.testing.assert_array_equal(seen["b"], (X + W) ** 2)
    np.testing.assert_array_equal(seen["z"], -((X + W) ** 2))
    np.testing.assert_array_equal(seen["x"], X)
    np.testing.assert_array_equal(seen["w"], W)


def test_other_types_are_seen_where_they_are_wanted() -> None:
    seen = InnerValues.of(made(), ["i"], reference.execute, floats=False)({"x": X})
    np.testing.assert_array_equal(seen["i"], (X + W).argmax(1))


def test_from_given_values_on_nothing_before_them_is_run_and_they_come_back() -> None:
    seen = InnerValues.of(made(), ["a", "z"], reference.execute, given=["a"])({"a": X, "unread": W})
    assert seen.keys() == {"a", "z"}
    np.testing.assert_array_equal(seen["z"], -(X**2))


def test_nothing_is_built_where_nothing_is_computed() -> None:
    def never(*_: object) -> inner.Runner:
        raise AssertionError("a runner was built")

    fed = InnerValues.of(made(), ["a"], never, given=["a"])({"a": X})
    np.testing.assert_array_equal(fed["a"], X)
    assert InnerValues.of(made(), ["w"], never)({"x": X}).keys() == {"w"}


def test_what_the_given_values_do_not_bound_and_what_is_not_there_is_said() -> None:
    with pytest.raises(BadRequest, match="do not bound"):
        InnerValues.of(made(), ["z"], reference.execute, given=["i"])
    with pytest.raises(StaleSite, match="'bb'"):
        InnerValues.of(made(), ["bb"], reference.execute)


def test_bytes_are_what_goes_in_and_comes_out_but_not_constants() -> None:
    assert InnerValues.of(made(), ["b", "w"], reference.execute).bytes({"x": X}) == 2 * X.nbytes


def test_batches_keep_their_order_and_only_some_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner, "WORKERS", 2)
    begun = 0

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        nonlocal begun
        for i in range(9):
            begun += 1
            yield {"x": np.array(i)}

    def slow_when_even(batch: inner.Arrays) -> int:
        i = int(batch["x"])
        time.sleep(0.02 * (i % 2 == 0))
        return i

    found = ahead(slow_when_even, feeds())
    for i in range(9):
        assert next(found) == i
        assert begun <= i + 3  # two workers and the one that is given
    assert list(found) == []
