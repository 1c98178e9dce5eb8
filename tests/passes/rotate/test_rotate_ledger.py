"""Constants changed together: float64 inside, rounded once, shared ones kept shared where they change alike."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.graph import edit
from graphpress.passes.structure.channels import ledger as ledgers
from graphpress.passes.structure.channels.lanes import along
from graphpress.passes.structure.channels.ledger import Ledger, turn
from graphpress.passes.structure.channels.moves import Holder
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
    book.add(Holder(node, 1, along(np.arange(4), 0, 2)), turn(left))
    book.add(Holder(node, 1, along(np.arange(6), 1, 2)), turn(right))
    assert book.write() == 1 and book.untied == 1  # the other product goes on reading the old one
    wanted = left.T @ old.astype(np.float64) @ np.kron(np.eye(2), right)
    new = edit.constant(node.inputs[1])
    assert new.dtype == np.float32 and np.array_equal(new, wanted.astype(np.float32))
    np.testing.assert_array_equal(edit.constant(g.node(1).inputs[1]), old)


def test_what_changes_alike_stays_shared() -> None:
    g, change = graph(), turn(basis(4))
    book = Ledger()
    for node in (g.node(0), g.node(1)):
        book.add(Holder(node, 1, along(np.arange(4), 0, 2)), change)
    assert book.write() == 1 and book.untied == 0 and g.node(0).inputs[1] is g.node(1).inputs[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_large_tables_are_taken_in_parts(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g, width = graph(), (4, 6)[axis]
    old = np.array(edit.constant(g.node(0).inputs[1]))
    monkeypatch.setattr(ledgers, "_LARGE", 7)
    book = Ledger()
    book.add(Holder(g.node(0), 1, along(np.arange(width), axis, 2)), turn(basis(width)))
    book.write()
    wide = old.astype(np.float64)
    wanted = wide @ basis(6) if axis else basis(4).T @ wide
    np.testing.assert_allclose(edit.constant(g.node(0).inputs[1]), wanted, rtol=0, atol=1e-6)


def test_one_number_for_all_channels_is_written_out_before_it_turns() -> None:
    g = graph()
    add, old = g.node(2), float(edit.constant(g.node(2).inputs[1])[0])
    book = Ledger()
    book.add(Holder(add, 1, np.arange(6)), turn(basis(6)))
    book.write()
    np.testing.assert_allclose(edit.constant(add.inputs[1]), old * basis(6).sum(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "lanes",
    [
        [-1, -1, -1, -1, 0, 1, 2, 3, -1, -1],  # one piece
        [-1, 0, 1, -1, 2, 3, -1, 0, 1, -1],  # runs apart
        [0, 2, -1, 1, 3, -1, -1, -1, -1, -1],  # runs across one another
    ],
)
def test_runs_turn_wherever_they_stand(lanes: list[int]) -> None:
    x, matrix, given = np.random.default_rng(0).normal(size=(2, 10)), basis(2), np.array(lanes)
    turned = turn(matrix)(x, given)
    np.testing.assert_array_equal(turned[:, given < 0], x[:, given < 0])
    for run in range(2):
        for a, b in zip(np.flatnonzero(given == 2 * run), np.flatnonzero(given == 2 * run + 1), strict=True):
            np.testing.assert_allclose(turned[:, [a, b]], x[:, [a, b]] @ matrix, atol=1e-15)
