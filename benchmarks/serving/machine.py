"""What a run was measured on. Neither host nor user is named."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from app.settings import available_cores


def hardware() -> dict[str, Any]:
    """Return the processor, the cores that may be used, the memory, the kernel and the distribution."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    total_kb = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])
    return {
        "processor": processor,
        "cores": available_cores(),
        "memory_gib": round(total_kb / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "load_average": os.getloadavg()[0],
    }


def tools() -> dict[str, str]:
    """Return the load tools' versions."""
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)  # noqa: S607
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)  # noqa: S607
    return {"wrk": (wrk.stdout + wrk.stderr).split()[1], "h2load": h2load.stdout.strip().rpartition("/")[2]}
