"""Constants changed together: float64 inside, rounded once, shared ones kept shared where they change alike."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.graph import edit
from graphpress.passes.rotate import ledger as ledgers
from graphpress.passes.rotate.ledger import Ledger, Turn
from graphpress.passes.structure.channels.place import Place
from tests.passes.rotating import weighted

BODY = "a = MatMul(x, w) b = MatMul(x, w) c = Add(a, s) y = Add(b, c)"


def graph():
    return weighted(BODY, {"w": (4, 6), "s": (1,)}, "float[3,4] x").graph


def basis(n: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def test_rows_and_columns_are_rounded_once() -> None:
    g = graph()
    node, old = g.node(0), np.array(edit.constant(g.node(0).inputs[1]))
    left, right = basis(4), basis(3, 1)
    book = Ledger()
    book.add(node, 1, 0, 4, Turn(left, 0, 4))
    book.add(node, 1, 1, 6, Turn(right, 0, 6))
    assert book.write() == 1 and book.untied == 1  # the other product goes on reading the old one
    wanted = left.T @ old.astype(np.float64) @ np.kron(np.eye(2), right)
    new = edit.constant(node.inputs[1])
    assert new.dtype == np.float32 and np.array_equal(new, wanted.astype(np.float32))
    np.testing.assert_array_equal(edit.constant(g.node(1).inputs[1]), old)


def test_what_changes_alike_stays_shared() -> None:
    g, matrix = graph(), basis(4)
    book = Ledger()
    for node in (g.node(0), g.node(1)):
        book.add(node, 1, 0, 4, Turn(matrix, 0, 4))
    assert book.write() == 1 and book.untied == 0 and g.node(0).inputs[1] is g.node(1).inputs[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_large_tables_are_taken_in_parts(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g, width = graph(), (4, 6)[axis]
    old = np.array(edit.constant(g.node(0).inputs[1]))
    monkeypatch.setattr(ledgers, "_LARGE", 7)
    book = Ledger()
    book.add(g.node(0), 1, axis, width, Turn(basis(width), 0, width))
    book.write()
    wide = old.astype(np.float64)
    wanted = wide @ basis(6) if axis else basis(4).T @ wide
    np.testing.assert_allclose(edit.constant(g.node(0).inputs[1]), wanted, rtol=0, atol=1e-6)


def test_one_number_for_all_channels_is_written_out_before_it_turns() -> None:
    g = graph()
    add, old = g.node(2), float(edit.constant(g.node(2).inputs[1])[0])
    book = Ledger()
    book.add(add, 1, -1, 6, Turn(basis(6), 0, 6))
    book.write()
    np.testing.assert_allclose(edit.constant(add.inputs[1]), old * basis(6).sum(0), rtol=0, atol=1e-6)


def test_a_place_turns_its_own_part_only() -> None:
    x, matrix = np.random.default_rng(0).normal(size=(2, 10)), basis(2)
    turned = ledgers.turn(matrix, Place(1, 2, 4, 8))(x)
    np.testing.assert_array_equal(turned[:, [0, 1, 2, 3, 8, 9]], x[:, [0, 1, 2, 3, 8, 9]])
    np.testing.assert_allclose(turned[:, 4:8], x[:, 4:8] @ np.kron(np.eye(2), matrix), atol=1e-15)
