"""Many image files without a server: a mask and an overlay of each, and its row of a table."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from pathlib import Path

from app.errors import ImageTooLarge, TesseraError, UnsupportedImage, no_memory_to
from app.imaging.decode import TILE_FLOOR_PX
from app.imaging.paint import paint_mask, paint_overlay
from app.interop.provenance import picture_text
from app.pathology.classes import code
from app.pathology.manifest import ModelManifest
from app.segmentation.folder import (
    SLIDE_SUFFIXES,
    TIFF_SUFFIXES,
    FileResult,
    all_or_none,
    problem_of,
    replace,
    result_path,
)
from app.segmentation.patch import PatchSegmentation, SegmentedPatch
from app.segmentation.reading import Upload
from app.segmentation.results_table import MODEL_COLUMNS, model_fields
from app.segmentation.workers import Workers

TABLE_FILE = "labels.csv"
MASK, OVERLAY = ENDINGS = ("_mask.png", "_overlay.png")
"""Of the results' names."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", *TIFF_SUFFIXES, ".webp", ".bmp", ".dcm"})
_AS_SLIDES = "a whole slide is segmented by `tessera slide`"
_MOST_BYTES_A_PIXEL = 8
"""Of an image: four channels of 16 bits."""
_MOST_BYTES_BESIDE = 2**20
"""Of a file, beside its pixels."""


async def segment_files(
    patches: PatchSegmentation,
    workers: Workers,
    paths: Iterable[Path],
    out: Path,
    opacity: float,
    mpp: float | None,
    at_once: int,
) -> AsyncGenerator[FileResult, None]:
    """Segment each file and write `NAME_mask.png` and `NAME_overlay.png` to `out`; yield results as they come.

    Of a file there are both or none; those from before are removed.

    Args:
        patches: The use case that segments one patch.
        workers: Threads that paint and write the results.
        paths: The files; each is asked for as its turn comes.
        out: An existing folder.
        opacity: Of the overlay's colours, 0 to 1.
        mpp: Pixel spacing of each, in um/px; None leaves that to a DICOM header and a TIFF's tags.
        at_once: How many files to hold in memory.
    """
    waiting = iter(paths)
    running: set[asyncio.Task[FileResult]] = set()
    done: set[asyncio.Task[FileResult]] = set()
    try:
        while True:
            while len(running) < at_once and (path := next(waiting, None)) is not None:
                running.add(asyncio.create_task(_segment_file(patches, workers, path, out, opacity, mpp)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        # Nothing still works when the caller ends the model, and no further error of those that are done is logged.
        await asyncio.gather(*running, *done, return_exceptions=True)


async def _segment_file(
    patches: PatchSegmentation, workers: Workers, path: Path, out: Path, opacity: float, mpp: float | None
) -> FileResult:
    if path.suffix.lower() in SLIDE_SUFFIXES:  # of some of these, a picture of the glass could be read
        return FileResult(path, problem=_AS_SLIDES)
    try:
        with all_or_none(out, path, ENDINGS):
            upload = Upload(await asyncio.to_thread(_read, path, patches.limits.side_px), mpp)
            async with patches.segmented(upload) as patch:
                await workers.run("encode", partial(_write, patch, patches.manifest, opacity, out, path))
                row, warnings = _row(patch, patches.manifest), tuple(warning.message for warning in patch.warnings)
    except (UnsupportedImage, ImageTooLarge) as error:
        hint = f"; {_AS_SLIDES}" if path.suffix.lower() in TIFF_SUFFIXES else ""
        return FileResult(path, problem=f"{error}{hint}")
    except TesseraError as error:
        return FileResult(path, problem=str(error))
    except OSError as error:
        return FileResult(path, problem=problem_of(error, path))
    except MemoryError:
        return FileResult(path, problem=no_memory_to("segment this image"))
    return FileResult(path, row, warnings=warnings)


def _read(path: Path, max_side_px: int) -> bytes:
    """Return a file's bytes.

    Raises:
        ImageTooLarge: It has more than the largest image allowed would have without compression; none is read.
        OSError: It cannot be read, or is no regular file: of a pipe the end may never come.
    """
    most = _MOST_BYTES_A_PIXEL * max(max_side_px, TILE_FLOOR_PX) ** 2 + _MOST_BYTES_BESIDE
    with open(path, "rb", opener=_opened_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        size = found.st_size
        if size > most:
            raise ImageTooLarge(
                f"the file has {size / 1e6:.0f} MB, over the {most / 1e6:.0f} MB that an image with sides of at most"
                f" {max_side_px} px may have"
            )
        return file.read()


def _opened_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _write(patch: SegmentedPatch, manifest: ModelManifest, opacity: float, out: Path, path: Path) -> None:
    text = picture_text(manifest, patch.conditions)
    mask = paint_mask(patch.class_map, manifest.classes, text)
    overlay = paint_overlay(patch.image, patch.class_map, manifest.classes, opacity, text)
    # A patch costs some 20 ms, and so may the disk ask for each file: after a loss of power it is segmented again.
    replace(result_path(out, path, MASK), mask, lasting=False)
    replace(result_path(out, path, OVERLAY), overlay, lasting=False)


def columns(manifest: ModelManifest) -> list[str]:
    """Return the names of the columns of `labels.csv` between `file` and `problem`."""
    return [
        "code",
        *(f"{tissue.name}_probability" for tissue in manifest.label_classes),
        *(f"{tissue.name}_fraction" for tissue in manifest.classes),
        "width_px",
        "height_px",
        "um_per_px",
        "scale_factor",
        "warnings",
        "sha256",
        *MODEL_COLUMNS,
    ]


def _row(patch: SegmentedPatch, manifest: ModelManifest) -> tuple[str, ...]:
    return (
        code(patch.labels),
        *(f"{probability:.6f}" for probability in patch.label_probabilities),
        *(f"{fraction:.6f}" for fraction in patch.fractions),
        str(patch.size.width_px),
        str(patch.size.height_px),
        "" if patch.scale.um_per_px is None else f"{patch.scale.um_per_px:g}",
        f"{patch.scale.factor:g}",
        " ".join(warning.code for warning in patch.warnings),
        patch.sha256,
        *model_fields(manifest),
    )
