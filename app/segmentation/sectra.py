"""An order of Sectra's, from its call-back address to the result stored there.

An area is answered with its stored result. A whole slide takes longer than a viewer waits: its result is stored at once
as one that is on its way, which is the answer, and replaced when it is there, as in the SDK's whole-slide example.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError
from rasterio import features
from sectra_client.schemas import CreateInvocation

from app.errors import (
    AreaOutside,
    CallbackFailed,
    DeadlineExceeded,
    ImageTooLarge,
    ModelNotReady,
    OrderCancelled,
    TesseraError,
)
from app.imaging.contours import TissuePolygon, polygonise
from app.inference.segmenter import Segmenter
from app.interop import sectra as interop
from app.pathology.arrays import ClassMap, ConfidenceMap, RgbImage
from app.pathology.classes import label_indices
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Region, Size
from app.segmentation.admission import Admission
from app.segmentation.budget import PixelBudget
from app.segmentation.slide import choose_level
from app.segmentation.windows import segment_windows
from app.segmentation.workers import Workers
from app.slides.sectra import SectraSlide, open_slide
from app.slides.sectra_callback import CONNECTIONS, Callback, path_of
from app.slides.slide import Level
from app.telemetry.metrics import Metrics

_MOST_AREAS = 64
_MOST_RESULT_BYTES = 64 * 2**20
_TOLERANCE_PX = 2.0
_LEAST_REGION_PX = 256
"""Smaller regions join their neighbours; a cell's nucleus at 0.25 um/px has about four times as many pixels."""
_OUTSIDE = 255
"""Stands for no class; a model has at most 255, counted from 0."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SectraLimits:
    """What orders may reach and cost.

    Attributes:
        hosts: Of call-back addresses; see `Callback`.
        pixels: In an area at the resolution that the model sees, and in all areas worked on at one time.
        area_seconds: In which areas are segmented.
        slide_seconds: In which a whole slide is.
    """

    hosts: tuple[str, ...]
    pixels: int
    area_seconds: float
    slide_seconds: float


class _Stored(BaseModel):
    """What matters here of a result that Sectra holds; others' results may have any content."""

    class Data(BaseModel):
        context: dict[str, Any] | None = None

    id: int
    versionId: str  # noqa: N815  the SDK's name
    data: Data | None = None


_RESULTS = TypeAdapter(list[_Stored])
_RESULT = TypeAdapter(dict[str, Any])


@dataclass(eq=False, slots=True)
class _Running:
    """Work that can be ended: under whose token, in which task, and why once it is."""

    token: str
    task: "asyncio.Task[Any]"
    reason: TesseraError | None = None

    def end(self, reason: TesseraError) -> None:
        if self.reason is None:
            self.reason = reason
            self.task.cancel()


class SectraOrders:
    """Carries out orders; call on the event loop.

    Args:
        segmenter: The model.
        workers: Threads for outlines; tiles are fetched in threads of their own, since an archive can be slow.
        admission: The service's door: an area counts as an image.
        metrics: Told of images and pixels.
        limits: What orders may reach and cost.
        software_version: This program's.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        admission: Admission,
        metrics: Metrics,
        limits: SectraLimits,
        software_version: str,
    ) -> None:
        self._segmenter = segmenter
        self._workers = workers
        self._fetchers = Workers(CONNECTIONS, metrics)
        self._admission = admission
        self._metrics = metrics
        self._limits = limits
        self._software_version = software_version
        self._budget = PixelBudget(limits.pixels)
        self._running: set[_Running] = set()
        self._in_background: set[asyncio.Task[None]] = set()
        self._storing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(self, order: CreateInvocation) -> dict[str, Any]:
        """Carry out an order and return the result as Sectra stored it.

        Raises:
            CallbackRefused: Its call-back address is not allowed; nothing was sent there.
            CallbackFailed: The call-back does not do what the SDK says.
            SlideUnreadable: Its tiles cannot be read.
            AreaOutside: An area has no pixel of the slide.
            ImageTooLarge: An area has too many, or there are too many areas.
            QueueFull: The service has no place for it.
            DeadlineExceeded: The areas took too long.
            OrderCancelled: The user took it back.
            InferenceFailed, ModelNotReady: As with any image.
        """
        drawn = interop.ordered_polygons(order)
        if drawn is not None and len(drawn) > _MOST_AREAS:
            raise ImageTooLarge(f"the order has {len(drawn)} areas; at most {_MOST_AREAS} are taken")
        info = order.callbackInfo
        callback = Callback(info.url, info.token, self._limits.hosts, self._software_version)
        async with AsyncExitStack() as held:
            held.enter_context(closing(callback))
            held.enter_context(self._admission.admit(1 if drawn is None else len(drawn)))
            async with self._endable(order, self._limits.area_seconds):
                slide = await self._fetchers.run(None, partial(open_slide, callback, order.slideId))
                result = await self._segment(order, slide) if drawn is not None else self._message(order, slide, "segmentation is on its way")
            answer = await self._store(order, callback, result)
            if drawn is None:
                task = asyncio.create_task(self._segment_later(order, callback, slide, held.pop_all()))
                self._in_background.add(task)
                task.add_done_callback(self._in_background.discard)
            return answer
