"""The machine's own limit: what one patch costs one thread when nothing else is done, times the cores.

No server can be faster that decodes, infers and encodes as the service does: whatever lies between is what the serving
costs. Processor time is taken, which does not count what other programs do meanwhile.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from app.imaging.decode import decode
from app.imaging.paint import paint_mask
from app.inference.bundle import find_precision, load_bundle
from app.inference.session import open_session
from app.pathology.arrays import ClassMap
from app.pathology.manifest import Precision
from app.settings import Settings

STEPS = ("decode", "infer", "encode")
_WARM_UP = 3


class Roofline:
    """Measures the three steps of a patch, again and again between other things, so that noise is shared.

    Args:
        bundle: The model.
        precision: In which of those that the bundle has.
        data: The image, as it is uploaded.
    """

    def __init__(self, bundle: Path, precision: Precision, data: bytes) -> None:
        loaded = load_bundle(find_precision(bundle, precision))
        session = open_session(loaded.model, "cpu")
        limit_px: int = Settings.model_fields["max_side_px"].default
        image = decode(data, limit_px)
        self.class_map: ClassMap = session.run(image[None]).class_maps[0]
        self._steps: dict[str, Callable[[], object]] = {
            "decode": lambda: decode(data, limit_px),
            "infer": lambda: session.run(image[None]),
            "encode": lambda: paint_mask(self.class_map, loaded.manifest.classes),
        }
        self._spent: dict[str, list[float]] = {name: [] for name in STEPS}

    def sample(self, runs: int) -> None:
        """Run each step `runs` times more."""
        for name, step in self._steps.items():
            for index in range(_WARM_UP + runs):
                start = time.thread_time()
                step()
                if index >= _WARM_UP:
                    self._spent[name].append(1000 * (time.thread_time() - start))

    def result(self, cores: int, last: int = 0) -> dict[str, float]:
        """Return each step's median in ms of processor time, their sum, and the images a second of `cores`.

        Args:
            cores: How many.
            last: Of how many runs of each step, counted back from the last one; 0 for all of them.
        """
        medians = {f"{name}_ms": statistics.median(spent[-last:]) for name, spent in self._spent.items()}
        total = sum(medians.values())
        return {**medians, "patch_ms": total, "per_second": 1000 * cores / total}
