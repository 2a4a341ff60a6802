"""How far two texts are the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def num_common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens [n], [m] the two have in common from their start on."""
    length = min(len(a), len(b))
    differences = np.flatnonzero(a[:length] != b[:length])
    return int(differences[0]) if len(differences) else length
