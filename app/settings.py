"""Settings: environment variables `TESSERA_...`, or the flags of `tessera serve`, which win. Read only by the roots.

The flags, their help and docs/configuration.md are made from this class.
"""

import os
import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from app.access_settings import AccessSettings, HostList, not_empty
from app.archive_settings import ArchiveSettings, Seconds
from app.inference.segmenter import DeviceChoice, ModelChoice

DEFAULT_BUNDLE = Path(__file__).parent / "bundle"
QUALITY_BUNDLE = Path(__file__).parent / "bundle-quality"
"""The shipped bundles: the fast one, and the one that looks four times; docs/decisions/0019-views.md."""
_QUALITY = "quality"
MOST_FRONTS = 16
"""More would find the engine's one event loop busy; and each costs memory."""


def available_cores() -> int:
    """Return the CPU cores this process may use: its affinity, and in a container its quota (cgroup v2), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def unknown_variables() -> list[str]:
    """Return the environment's `TESSERA_...` variables that set nothing: most likely, misspelt ones."""
    known = {
        f"{kind.model_config['env_prefix']}{name.upper()}"
        for kind in (Settings, ArchiveSettings)
        for name in kind.model_fields
    }
    return sorted(name for name in os.environ if name.startswith("TESSERA_") and name not in known)


class Settings(AccessSettings):
    """How to run the service."""

    model_config = SettingsConfigDict(env_prefix="TESSERA_", frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    bundle: Path = Field(
        default=DEFAULT_BUNDLE,
        description=f"Folder of the model bundle; by default the shipped one. {_QUALITY} selects the other shipped"
        " bundle, which looks at each patch four times and takes about four times as long.",
    )
    device: DeviceChoice = Field(
        default="auto",
        description="Where to run the model: auto, cpu or cuda; with cuda, the service does not start without a usable"
        " GPU.",
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        default="auto",
        description="Precision to run the model in, of those in the bundle: fp32, fp16 or int8; auto takes fp16 on a"
        " GPU and int8 on a CPU if the bundle has them and they work on the device.",
    )
    cores: int = Field(
        default_factory=available_cores, ge=1, description="CPU cores to use; by default all that are allowed."
    )
    fronts: int | None = Field(
        default=None,
        ge=1,
        le=MOST_FRONTS,
        description=f"Processes that take requests, {MOST_FRONTS} at most; by default as many as keep the device busy,"
        " but 1 with one core, with Sectra, and on systems other than Linux.",
    )
    engine: Literal["auto", "shared"] = Field(
        default="auto",
        description="Where the model is. auto: in each process that takes requests, but with a GPU in one separate"
        " process that runs it for all of them. shared: in one such process on a CPU too.",
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Maximum number of windows in a batch; batches have 1, 2, 4... windows, so the largest power of two"
        " up to this counts. By default 2 on a CPU, 32 on a GPU.",
    )
    queue_capacity: int = Field(default=128, ge=1, description="Images in the service at once; more are refused (429).")
    queue_pixels: int = Field(
        default=16 * 4096**2,
        ge=1,
        description="Pixels of the images in the service at once; a request that finds no place is refused (429).",
    )
    request_timeout: Seconds = Field(
        default=30.0,
        description="Seconds within which a request must be answered; otherwise it gets 504, or 408 if its body had not"
        " arrived. A request may lower it with X-Request-Timeout.",
    )
    header_timeout: Seconds = Field(
        default=10.0,
        description="Seconds within which a request's headers must arrive; otherwise its connection closes.",
    )
    max_connections: int = Field(default=1024, ge=1, description="Connections at once; more are refused (503).")
    shutdown_grace: float = Field(
        default=3.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds after SIGTERM during which the service reports that it is not ready but still takes"
        " requests, so that a load balancer can stop sending them. SIGINT has no such delay.",
    )
    stall_timeout: Seconds = Field(
        default=2.0,
        description="Seconds (or ten times a batch's expected duration, if longer) after which the lane running a batch"
        " counts as stuck; the service then ends so that it can be restarted. On a GPU, the first batch of each size"
        " and shape may take a minute, while readiness may fall.",
    )
    max_side_px: int = Field(default=4096, ge=1, le=65535, description="Longest side of a patch, in px.")
    max_pixels_at_once: int = Field(
        default=4 * 4096**2,
        ge=1,
        description="Pixels decoded at one time; further images wait their turn. Each process that takes requests has"
        " an equal share, and may decode one image even if that is larger than its share.",
    )
    max_files: int = Field(default=64, ge=1, description="Maximum number of files in one request.")
    max_upload_bytes: int = Field(
        default=64 * 2**20, ge=1, description="Maximum number of bytes in one request's body."
    )
    sectra_hosts: HostList = Field(
        default=(),
        description="Hosts allowed for Sectra's call-backs, as host or host:port, separated by commas; without any,"
        " there is no /sectra/hook.",
    )
    sectra_input: Literal["taggedPolygon", "multiArea", "wholeSlide"] = Field(
        default="taggedPolygon",
        description="What users in Sectra order on: taggedPolygon, a drawn area; multiArea, several; wholeSlide, the"
        " slide.",
    )
    sectra_max_pixels: int = Field(
        default=4096**2,
        ge=1,
        description="Maximum number of pixels, at the model's resolution, of an area or slide that Sectra orders, and"
        " of all of them at one time.",
    )
    sectra_slide_timeout: Seconds = Field(
        default=600.0,
        description="Seconds within which a whole slide that Sectra orders must be done; areas have the request"
        " timeout.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged: debug, info, warning or error."
    )
    log_format: Literal["json", "text"] = Field(
        default="text", description="Format of the log: json, one object per line, or text."
    )

    @property
    def model(self) -> ModelChoice:
        """Which model to run, and on what."""
        return ModelChoice(
            self.bundle, self.device, self.precision, self.cores, self.max_batch_size, self.stall_timeout
        )

    @field_validator("bundle", mode="before")
    @classmethod
    def _named_folder(cls, value: object) -> object:
        if Path(str(not_empty(value))) != Path(_QUALITY):
            return value
        if Path(_QUALITY).exists():
            raise ValueError(f"{_QUALITY} is a shipped bundle's name and a folder here: write the folder's whole path")
        return QUALITY_BUNDLE

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sectra_hosts and (self.fronts or 1) > 1:
            raise ValueError(
                f"--fronts ({self.fronts}) must be 1 with --sectra-hosts: an order's process must hear of it"
            )
        if sys.platform != "linux" and ((self.fronts or 1) > 1 or self.engine == "shared"):
            raise ValueError("several processes run on Linux alone; leave --fronts and --engine out")
        if self.max_files > self.queue_capacity:
            raise ValueError(f"--max-files ({self.max_files}) must not exceed --queue-capacity ({self.queue_capacity})")
        if self.max_pixels_at_once < self.max_side_px**2:
            raise ValueError(
                f"--max-pixels-at-once ({self.max_pixels_at_once}) must hold one patch of --max-side-px squared"
            )
        return self
