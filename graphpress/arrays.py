"""The array API of the arrays at hand: numpy's own, and of others what array-api-compat makes of them."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from array_api_compat import device, is_numpy_array

__all__ = ["array_namespace", "device", "is_numpy_array"]


def array_namespace(*arrays: Any) -> Any:
    """What has the functions for arrays of one library.

    numpy from 2.1 on is a namespace itself, but for ``descending`` of its sorts. To wrap it, array-api-compat imports
    all that is in it, f2py and unittest as well: as long as numpy itself.

    Raises:
        TypeError: They are no arrays, or of several libraries.
    """
    if all(isinstance(x, np.ndarray | np.generic) for x in arrays):
        return np
    return array_api_compat.array_namespace(*arrays)
