"""Binary weights: the sign of each number, times one scale (XNOR-Net, arXiv:1603.05279; BiBERT, arXiv:2203.06390).

``|w - a sign(w)|^2`` is least for ``a = mean |w|``. The sign of 0 is 1: packed, a code is one bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphpress.passes.quantizers.quantizer import Array
from graphpress.passes.quantizers.signs import Signs, mean
from graphpress.types import Scheme


@dataclass(frozen=True)
class Binary(Signs):
    """Codes -1 and 1. A number that is 0 is not kept."""

    name: ClassVar[str] = "binary"
    keeps_zero: ClassVar[bool] = False
    share: ClassVar[float] = 0.0

    @classmethod
    def every_code(cls, scheme: Scheme) -> np.ndarray:
        return np.array([scheme.qmin, scheme.qmax], np.int32)

    def reach(self, sizes: Array, costs: Array) -> Array:
        return mean(sizes, costs)


QUANTIZER = Binary
