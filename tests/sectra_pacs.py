"""A Sectra archive on loopback: the mock server of PyPI's `sectra-image-analysis-api`, and slides with pixels.

The mock's own: `/slides/ID/info`, `/applications/ID/results...` with ids and versions, the bearer token, `trigger`.
Added here, from the examples of Sectra's SDK, since the mock has none of it: tiles at
`/images/ID_files/LEVEL/COLUMN_ROW_PLANE.EXTENSION`, a record of what was asked, and faults.
"""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import shapely
from fastapi import FastAPI, Request, Response
from rasterio import features
from sectra_client.mock_server import MockSectraServer
from sectra_client.schemas import (
    CallbackInfo,
    CancelInvocation,
    CreateInvocation,
    DisplayedName,
    FocalPlane,
    ImageMetadata,
    MultiAreaContent,
    MultiAreaInput,
    Point,
    Polygon,
    ResultResponse,
    SlideFormat,
    TaggedPolygonContent,
    TaggedPolygonInput,
    TileFormat,
    WholeSlideInput,
)
from sectra_client.schemas import Size as SectraSize

from app.pathology.arrays import RgbImage
from tests.pictures import encoded

TOKEN = "a.bearer-token_of~the+mock/1=="
APPLICATION = "tessera"
PNG, JPEG = TileFormat(mimeType="image/png", extension="png"), TileFormat(mimeType="image/jpeg", extension="jpg")

Answer = Callable[[Request], Response | None]


class SectraPacs(MockSectraServer):
    """The mock with pixels.

    Attributes:
        asked: Method, path and Authorization of each request, in the order they came.
        raw_paths: Their paths as they were sent.
        peers: The connections they came over.
        fault: Answers in the archive's place where it returns a response.
    """

    def __init__(self) -> None:
        super().__init__(token=TOKEN)
        self.asked: list[tuple[str, str, str | None]] = []
        self.raw_paths: list[bytes] = []
        self.peers: set[tuple[str, int]] = set()
        self.fault: Answer = lambda request: None
        self._images: dict[str, list[RgbImage]] = {}
        self._stored = threading.Condition()

    def add_image(self, image: RgbImage, um_per_px: float = 0.5, tile_px: int = 64, **changes: object) -> str:
        """Make a slide of (H, W, 3) `image`, whose coarser levels are every second pixel; return its id."""
        slide_id = str(uuid.uuid4())
        levels = [image]
        for halved in range(1, (max(image.shape[:2]) - 1).bit_length() + 1):
            height, width = (max(1, side >> halved) for side in image.shape[:2])
            levels.append(image[:: 2**halved, :: 2**halved][:height, :width])
        self._images[slide_id] = levels
        info = ImageMetadata(
            id=slide_id,
            isStreamable=True,
            imageSize=SectraSize(width=image.shape[1], height=image.shape[0]),
            tileSize=SectraSize(width=tile_px, height=tile_px),
            micronsPerPixel=um_per_px,
            focalPlanes=[FocalPlane(id="7", offsetUm=-1.5), FocalPlane(id="0", offsetUm=0.0)],
            opticalPaths=[],
            storedTileFormat=PNG,
            availableTileFormats=[JPEG, PNG],
            fileFormat=SlideFormat(mimeType="image/tiff"),
            staining=DisplayedName(displayName="HE"),
            block=DisplayedName(displayName="A1"),
        )
        self.add_slide(info.model_copy(update=changes))
        return slide_id

    def results(self, slide_id: str) -> list[ResultResponse]:
        return self.get_results(APPLICATION, slide_id)

    def delete_results(self) -> None:
        """What a user can do and an application cannot; the mock has no route for it."""
        self._results.clear()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each answer."""
        with self._stored:
            assert self._stored.wait_for(condition, timeout=20)

    def reset(self) -> None:
        """Forget faults, results and what was asked; slides stay."""
        self.fault = lambda request: None
        self.delete_results()
        self.asked.clear()
        self.raw_paths.clear()
        self.peers.clear()

    @contextmanager
    def holding(self, method: str, where: str) -> Iterator[tuple[threading.Event, threading.Event]]:
        """Answer no such request before the second event is set, or the block ends; the first tells that one came."""
        reached, released = threading.Event(), threading.Event()

        def hold(request: Request) -> None:
            if request.method == method and where in request.url.path:
                reached.set()
                assert released.wait(20)

        self.fault = hold
        try:
            yield reached, released
        finally:
            self.fault = lambda request: None
            released.set()

    def create_app(self) -> FastAPI:
        app = super().create_app()

        @app.get("/images/{folder}/{level}/{name}")
        def tile(request: Request, folder: str, level: int, name: str) -> Response:
            self._verify_token(request.headers.get("authorization"))
            slide_id = folder.removesuffix("_files")
            place = re.fullmatch(r"(\d+)_(\d+)_0\.(png|jpg)", name)
            if slide_id not in self._images or place is None:
                return Response(status_code=404)
            size = self._slides[slide_id].tileSize
            image = self._images[slide_id][::-1][level]
            x, y = int(place[1]) * size.width, int(place[2]) * size.height
            pixels = image[y : y + size.height, x : x + size.width]
            return (
                Response(encoded(pixels, "PNG" if place[3] == "png" else "JPEG"))
                if pixels.size
                else Response(None, 404)
            )

        @app.middleware("http")
        async def record(request: Request, call_next: Callable) -> Response:
            self.asked.append((request.method, request.url.path, request.headers.get("authorization")))
            self.raw_paths.append(request.scope["raw_path"])
            self.peers.add(tuple(request.client))
            answer = self.fault(request) or await call_next(request)
            with self._stored:
                self._stored.notify_all()
            return answer

        return app


@contextmanager
def running_pacs() -> Iterator[SectraPacs]:
    with SectraPacs().run(port=0, host="127.0.0.1") as pacs:
        yield pacs


def whole_slide(pacs: MockSectraServer, slide_id: str, **changes: object) -> CreateInvocation:
    return _order(pacs, slide_id, WholeSlideInput(), **changes)


def area(
    pacs: MockSectraServer, slide_id: str, points: list[tuple[float, float]], **changes: object
) -> CreateInvocation:
    """An order for one drawn area; `points` are divided by the slide's width."""
    return _order(pacs, slide_id, TaggedPolygonInput(content=TaggedPolygonContent(polygon=_polygon(points))), **changes)


def areas(
    pacs: MockSectraServer, slide_id: str, drawn: list[list[tuple[float, float]]], **changes: object
) -> CreateInvocation:
    polygons = [_polygon(points) for points in drawn]
    return _order(pacs, slide_id, MultiAreaInput(content=MultiAreaContent(polygons=polygons)), **changes)


def cancellation(order: CreateInvocation) -> CancelInvocation:
    return CancelInvocation(**order.model_dump(exclude={"action", "input"}))


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _polygon(points: list[tuple[float, float]]) -> Polygon:
    return Polygon(points=[Point(x=x, y=y) for x, y in points])


def _order(pacs: MockSectraServer, slide_id: str, content: object, **changes: object) -> CreateInvocation:
    known = CreateInvocation(
        applicationId=APPLICATION,
        slideId=slide_id,
        callbackInfo=CallbackInfo(url=pacs.url, token=TOKEN),
        cancellationToken=str(uuid.uuid4()),
        input=content,
    )
    return known.model_copy(update=changes)


def drawn_classes(result: ResultResponse, width: int, height: int, colors: dict[str, int]) -> np.ndarray:
    """Paint a result's polygons as a viewer would, by area, larger first; -1 where there is none."""
    shapes = []
    for item in result.data.result.content:
        index = colors.get(item.style.strokeStyle) if item.style else None
        if index is None:
            continue
        holes = [[(p.x * width, p.y * width) for p in line.points] for line in item.polylines]
        shapes += [(shapely.Polygon([(p.x * width, p.y * width) for p in one.points]), index) for one in item.polygons]
        shapes += [(shapely.Polygon(hole), -1) for hole in holes]
    painted = np.full((height, width), -1, np.int16)
    ordered = sorted(shapes, key=lambda pair: (-pair[0].area, pair[1]))
    return features.rasterize(ordered, out=painted) if ordered else painted
