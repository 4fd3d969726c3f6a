"""Which processes the service is made of, by its settings and the machine. What becomes of them is elsewhere."""

import os
import sys
from dataclasses import dataclass

from app.settings import MOST_FRONTS, Settings

_GPU_NODES = ("/dev/nvidiactl", "/dev/dxg")
"""What NVIDIA's driver puts there: on Linux, and on Linux under Windows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which processes the service is made of.

    Attributes:
        fronts: How many take requests.
        shared_engine: Whether another one has the model for all of them; else each has it.
        supervised: Whether a process that has no other task watches over them; else there is one process in all.
        on_gpu: Whether a GPU is expected to run the model.
    """

    fronts: int
    shared_engine: bool
    supervised: bool
    on_gpu: bool = False


def layout_of(settings: Settings) -> Layout:
    """Return the processes that the settings ask for, or that suit the machine.

    On a CPU the cores compute, and two fronts keep 16 of them busy. A GPU leaves the cores to the fronts, but for what
    the engine and the system need. CUDA is not asked whether it is there: who has asked cannot be forked any more,
    which is also why a GPU has an engine however few the fronts.
    """
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and any(map(os.path.exists, _GPU_NODES)))
    supervised = sys.platform == "linux"  # which forks safely, and spreads connections over processes
    alone = not supervised or settings.cores == 1 or bool(settings.sectra_hosts)
    suited = 1 if alone else max(2, min(settings.cores - 2 if on_gpu else settings.cores // 8, MOST_FRONTS))
    shared_engine = supervised and (on_gpu or settings.engine == "shared")
    return Layout(settings.fronts or suited, shared_engine, supervised, on_gpu)
