"""Sizes of Huffman codes, against known ones and Shannon's bound."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.passes.quantizers.huffman import huffman_bits


def test_powers_of_two_take_their_entropy() -> None:
    codes = np.repeat(np.arange(-2, 2, dtype=np.int8), [64, 32, 16, 16])
    assert huffman_bits(codes) == 64 * 1 + 32 * 2 + 16 * 3 + 16 * 3


def test_the_textbook_frequencies() -> None:
    """45, 13, 12, 16, 9, 5: 224 bits (Cormen et al., Introduction to Algorithms, figure 16.3)."""
    assert huffman_bits(np.repeat(np.arange(6), [45, 13, 12, 16, 9, 5])) == 224


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_a_bit_of_the_entropy(seed: int) -> None:
    codes = np.clip(np.rint(np.random.default_rng(seed).normal(size=4096) * 2), -8, 7)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -(share * np.log2(share)).sum()
    assert entropy <= huffman_bits(codes) / codes.size < entropy + 0.1


def test_one_symbol_and_none() -> None:
    assert huffman_bits(np.zeros(10, np.int8)) == 10
    assert huffman_bits(np.zeros(0, np.int8)) == 0
