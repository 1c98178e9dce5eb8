"""Four circulants of order n whose autocorrelations cancel, for orders 4n that no simpler construction reaches.

Each line has the first rows, n signs as bits (1 is +1) from the highest: at every shift but 0 the sum over the four of
sum_i a_i a_(i + s mod n) is 0. With them the array of Goethals and Seidel (A skew Hadamard matrix of order 36,
J. Austral. Math. Soc. 11, 1970) is a Hadamard matrix.

Sources. 47, 59, 89: Turyn-type sequences of length 16, 20, 30 (Best, Djokovic, Kharaghani, Ramp, Turyn-type sequences:
classification, conjectures and constructions, arXiv:1206.4107); 107: of length 36 (Kharaghani, Tayfeh-Rezaie, A
Hadamard matrix of order 428, J. Combin. Des. 13, 2005). 81: Golay's sequences of length 40; 119: those of length 8 with
Williamson's of order 7. 103, 109: Djokovic's sets that are unions of cosets of the multipliers of order 3 (Five new
orders for Hadamard matrices of skew type, Australas. J. Combin. 10, 1994; Skew-Hadamard matrices of orders 436, 580,
and 988, J. Combin. Des. 16, 2008). The others were searched for in the same way: rows that a small group of
multipliers leaves as they are, those with too large a power at some frequency left out (for four rows it is 4n), pairs
matched by the sum of their autocorrelations.
"""

from __future__ import annotations

import numpy as np

_ROWS = {
    23: "7740bb 24c0c9 1dd2ee 0e529c",
    29: "0cf402f3 0dd606bb 088d0b11 19af0f59",
    39: "7ffcd52956 7711d926c8 69e9dd0e9a 2185f1831f",
    43: "4b140cc0a34 34c8531f58b 2f1c4ec0ab6 11d011dfd1d",
    47: "795679a9fccf 06a9f9a9f241 06a98656fccf 06a9f9a90dbe",
    59: "7a1937b8b4f9cab 05e6cfb8b4fd675 05e6c8474bf9cab 05e6cfb8b40298a",
    65: "1c5a5591be38452fa 1aacf40dc180b3948 14fb6ea5bafbe06c6 1c9f78eed866c108e",
    67: "4866ec5da595004f3 2348baf6f26adfa0c 358762f20278b1d14 4679f9f5a928bbc5f",
    73: "12498634a14a530c48b 00aee5c5e13f231d48b 10ae6dc14d3da09b2db 1ffd573111f8503818b",
    81: "1d4f7cd4c83d4f7c2b37c 0d4f7cd4c83d4f7c2b37c 02b0832b37cd4f7c2b37c 0d4f7cd4c832b083d4c83",
    89: "1f9670ab7e4c6d53f6e3b0b 00698f54fe4c6d53f3c9675 00698f5481b392aff6e3b0b 00698f54fe4c6d500c3698a",
    93: "092e3e0f61118ac11bd50e64 1f5f1cb4b7973aa81b56a749 16f9671b73487657c0311082 1d32322ffa21a0c134c1ca2d",
    101: "18514e49c5c403e08c4659f577 1a37a771d78c169e55404ff4fe 02bd91a1b4692cabd4a7264602 16794c8784356e832e99024e47",
    103: "71302d2a914778475daad2fcdc 6e0c11416b31abf136bd670b2f 4744d14bc724030d4ff0b6c09c 43d2c1cf6462449901f68a2238",
    107: "5f4f76748f41972bbde1a83dbc2 20b0898b7741972bbdbe5267bc6 "
    "20b0898b70be68d442e1a83dbc2 20b0898b7741972bbd41ad98439",
    109: "130b23dd062a48aedab9f443b2f3 1cfd5f53498df3a0fd81c8df7ad3 "
    "16b66aa479ee04c303df35b5dd8a 14aec878f3b44cde10c042b47f25",
    113: "02cf02a6a5c334602bacf52d90d04 1f2719b1df46f855388d27e54e9fd "
    "049d6ab6b0f7e4df0c4ef800866a6 1e4099595e34da378773014d76af8",
    119: "775ccdcd7f5aa96537871b1b80ebf0 37622dd68f5571624b86e11a6feb4f "
    "29e0973c848d2e3b0effe8f04644ee 295f75237c92d67cf3fc16f9b96411",
    127: "3670f603f6f0009dd4d1dc0a88a3adef 4b343e6237f0d09a34755c8b442b0710 "
    "76524cb0694194aad12c608f864b939b 7d6678f25d8b5630656d2b1446701400",
}
ORDERS = frozenset(4 * n for n in _ROWS)


def quadruple(n: int) -> np.ndarray:
    """The first rows of the four circulants [4, n], +-1; 4n is one of ``ORDERS``."""
    return np.array([[1.0 if bit == "1" else -1.0 for bit in f"{int(row, 16):0{n}b}"] for row in _ROWS[n].split()])
