"""Finite fields, Hadamard matrices, and the orthogonal matrices made of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpress.errors import BadRequest
from graphpress.passes.rotate.bases import BasisChoice
from graphpress.passes.rotate.galois import jacobsthal, prime_power
from graphpress.passes.rotate.orders import exists, hadamard, largest_order, order_factors

# Those that neither Sylvester nor Paley nor their products reach, up to 512: Williamson's and later ones, and doubles.
LATER = (
    92,
    116,
    156,
    172,
    184,
    188,
    232,
    236,
    260,
    268,
    292,
    324,
    356,
    372,
    376,
    404,
    412,
    428,
    436,
    452,
    472,
    476,
    508,
)


def test_prime_powers() -> None:
    assert {q: prime_power(q) for q in (1, 2, 4, 6, 9, 12, 25, 27, 49, 97, 121, 343)} == {
        1: None, 2: (2, 1), 4: (2, 2), 6: None, 9: (3, 2), 12: None, 25: (5, 2), 27: (3, 3), 49: (7, 2), 97: (97, 1),
        121: (11, 2), 343: (7, 3),
    }  # fmt: skip


def legendre(q: int) -> np.ndarray:
    squares = {i * i % q for i in range(1, q)}
    return np.array([[0 if i == j else 1 if (i - j) % q in squares else -1 for j in range(q)] for i in range(q)])


@pytest.mark.parametrize("q", [3, 5, 7, 11, 13])
def test_in_prime_fields_the_character_is_legendres(q: int) -> None:
    np.testing.assert_array_equal(jacobsthal(q), legendre(q))


@pytest.mark.parametrize("q", [9, 25, 27, 49, 81, 121, 125])
def test_in_fields_of_prime_powers_jacobsthal_has_its_laws(q: int) -> None:
    """J J^T = q I - 1 1^T, rows sum to zero, symmetric for q = 1 mod 4 and skew for q = 3 mod 4."""
    j = jacobsthal(q)
    np.testing.assert_array_equal(j @ j.T, q * np.eye(q) - 1)
    np.testing.assert_array_equal(j.sum(1), 0)
    np.testing.assert_array_equal(j.T, j if q % 4 == 1 else -j)


def test_there_is_a_matrix_of_every_possible_order_up_to_512() -> None:
    assert [n for n in range(1, 513) if exists(n)] == [1, 2, *range(4, 513, 4)]


@pytest.mark.parametrize("n", [*range(1, 3), *range(4, 261, 4), *(n for n in LATER if n > 260)])
def test_the_rows_are_signs_and_orthogonal(n: int) -> None:
    h = hadamard(n)
    assert h.shape == (n, n) and set(np.unique(h)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(h @ h.T, n * np.eye(n))


@pytest.mark.parametrize(("order", "field"), [(52, 25), (28, 27), (20, 9), (344, 343)])
def test_orders_from_fields_that_are_no_prime_fields(order: int, field: int) -> None:
    assert prime_power(field) is not None and order in (field + 1, 2 * (field + 1))
    h = hadamard(order)
    np.testing.assert_array_equal(h @ h.T, order * np.eye(order))


@pytest.mark.parametrize("q", [11, 19])
def test_paleys_first_kind_is_the_identity_and_a_skew_matrix(q: int) -> None:
    skew = np.block([[np.zeros((1, 1)), np.ones((1, q))], [-np.ones((q, 1)), legendre(q)]])
    np.testing.assert_array_equal(hadamard(q + 1), np.eye(q + 1) + skew)


@pytest.mark.parametrize("q", [17, 37])
def test_paleys_second_kind_puts_a_block_of_two_for_each_entry(q: int) -> None:
    s = np.block([[np.zeros((1, 1)), np.ones((1, q))], [np.ones((q, 1)), legendre(q)]])
    blocks = {0: [[1, -1], [-1, -1]], 1: [[1, 1], [1, -1]], -1: [[-1, -1], [-1, 1]]}
    np.testing.assert_array_equal(hadamard(2 * q + 2), np.block([[np.array(blocks[int(x)]) for x in row] for row in s]))


@pytest.mark.parametrize(("left", "right"), [(2, 20), (2, 28), (2, 44)])
def test_other_orders_are_products_with_the_least_factor_on_the_left(left: int, right: int) -> None:
    np.testing.assert_array_equal(hadamard(left * right), np.kron(hadamard(left), hadamard(right)))


def test_a_matrix_that_is_kept_cannot_be_written_to() -> None:
    for order in (4, 12, 36, 40):
        with pytest.raises(ValueError, match="read-only"):
            hadamard(order)[0, 0] = 5


def test_an_order_below_one_is_refused() -> None:
    for order in (0, -4):
        assert not exists(order)
        with pytest.raises(BadRequest, match=f"at least 1, not {order}"):
            hadamard(order)
        with pytest.raises(BadRequest, match=f"at least 1, not {order}"):
            BasisChoice("block", order)


def test_widths_of_known_models_split_into_two_small_factors() -> None:
    pairs = {n: order_factors(n) for n in (704, 768, 3072, 1152, 11008, 14336, 4096, 172 * 4)}
    assert pairs[704] == (16, 44) and pairs[4096] == (64, 64) and pairs[3072] == (48, 64)
    for n, (a, b) in pairs.items():
        assert a * b == n and exists(a) and exists(b)
        small = [x + n // x for x in range(1, n + 1) if n % x == 0 and exists(x) and exists(n // x)]
        assert a + b == min(small)


def test_an_unknown_order_names_its_neighbours() -> None:
    with pytest.raises(BadRequest, match="nearest orders are 664 and 672"):
        hadamard(668)
    with pytest.raises(BadRequest, match="nearest orders are 528 and 536"):
        order_factors(532)
    for order, known in ((11, "8 and 12"), (13, "12 and 16"), (3, "2 and 4")):
        with pytest.raises(BadRequest, match=f"nearest orders are {known}"):
            hadamard(order)


def test_the_block_of_an_unknown_order_is_its_largest_known_divisor() -> None:
    assert [largest_order(n) for n in (668, 11, 532, 36, 6, 260)] == [4, 1, 76, 36, 2, 260]


SIZES = st.sampled_from([1, 2, 4, 6, 12, 20, 44, 52, 64, 92, 172, 668])


@given(st.sampled_from(["auto", "orthogonal", "block"]), SIZES, st.integers(0, 99))
def test_bases_are_orthogonal(kind, size: int, seed: int) -> None:
    basis = BasisChoice(kind, None).basis(size, np.random.default_rng(seed))
    if isinstance(basis, str):
        assert kind != "orthogonal" and (size & -size == 1 or largest_order(size) == 1)
        return
    assert np.abs(basis @ basis.T - np.eye(size)).max() <= 1e-12
    again = BasisChoice(kind, None).basis(size, np.random.default_rng(seed))
    np.testing.assert_array_equal(basis, again)


@given(SIZES)
def test_online_factors_are_orthogonal_and_divide(size: int) -> None:
    factors = BasisChoice("auto", None).factors(size)
    if isinstance(factors, str):
        assert largest_order(size) == 1
        return
    matrix = np.kron(*factors)
    assert size % len(matrix) == 0 and len(matrix) == (size if exists(size) else largest_order(size))
    assert np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() <= 1e-12


def test_blocks_mix_only_their_own_channels() -> None:
    basis = BasisChoice("block", 4).basis(12, np.random.default_rng(0))
    outside = np.kron(np.eye(3), np.ones((4, 4))) == 0
    assert not basis[outside].any() and (np.abs(basis[~outside]) == 0.5).all()
    assert BasisChoice("block", None).block(24) == 8


def test_signs_are_random_and_a_hadamard_matrix_can_be_insisted_on() -> None:
    one, two = (BasisChoice("hadamard", None).basis(16, np.random.default_rng(s)) for s in (0, 1))
    assert (one != two).any() and set(np.unique(np.abs(one))) == {0.25}
    with pytest.raises(BadRequest, match="nearest orders are 664 and 672"):
        BasisChoice("hadamard", None).basis(668, np.random.default_rng(0))
    with pytest.raises(BadRequest, match="nearest orders are 8 and 12"):
        BasisChoice("block", 10)
    with pytest.raises(BadRequest, match="has no blocks"):
        BasisChoice("auto", 8)
    assert "do not divide" in BasisChoice("block", 8).basis(12, np.random.default_rng(0))


def test_random_orthogonal_matrices_are_uniform_enough() -> None:
    """Of the Haar measure: entries have mean 0 and variance 1/n; QR without its sign rule would fail the first."""
    n, draws = 4, 2000
    rng = np.random.default_rng(0)
    all_ = np.array([BasisChoice("orthogonal", None).basis(n, rng) for _ in range(draws)])
    error = 1 / np.sqrt(n * draws)
    for i, j in itertools.product(range(n), range(n)):
        assert abs(all_[:, i, j].mean()) < 5 * error
    np.testing.assert_allclose(all_.var(0), 1 / n, atol=0.03)
