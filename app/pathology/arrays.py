"""Names for the arrays that cross walls. All of them are C-contiguous numpy arrays."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

RgbImage: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) uint8, sRGB, 0 to 255."""

RgbBatch: TypeAlias = NDArray[np.uint8]
"""(N, H, W, 3) uint8, sRGB, 0 to 255."""

ClassMap: TypeAlias = NDArray[np.uint8]
"""(H, W) uint8, each value the index of a class in the model's list."""

ConfidenceMap: TypeAlias = NDArray[np.uint8]
"""(H, W) uint8, the winning class's probability times 255, rounded."""

Probabilities: TypeAlias = NDArray[np.float32]
"""(L,) float32 in 0 to 1, one for each label class in the order of the model's list."""
