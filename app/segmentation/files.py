"""Many image files without a server: masks, overlays and a table, written to a folder."""

import asyncio
import csv
import io
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.errors import TesseraError
from app.imaging.paint import paint_mask, paint_overlay
from app.interop.provenance import picture_text
from app.pathology.classes import code
from app.pathology.manifest import ModelManifest
from app.segmentation.patch import PatchSegmentation, SegmentedPatch

TABLE_FILE = "labels.csv"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm"})


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file.

    Attributes:
        path: The file.
        row: Its columns of the table between `file` and `problem`; empty when there is a problem.
        problem: Why it was not segmented, or None.
        warnings: What is unlike H&E tissue about it, a sentence each.
    """

    path: Path
    row: tuple[str, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return `paths` with each folder replaced by the images in it, in name order; what is there twice comes once."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            entries = (entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
            found.extend(sorted(entry for entry in entries if not (entry.is_dir() or entry.is_fifo())))
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def colliding(paths: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return two paths whose results would have one name, or None."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            return other, path
    return None


def overwriting(paths: Sequence[Path], out: Path) -> Path | None:
    """Return one of `paths` that a result in `out` would replace, or None."""
    results = {_result_path(out, path, name).resolve() for path in paths for name in ("mask", "overlay")}
    return next((path for path in paths if path.resolve() in results), None)


async def segment_files(
    patches: PatchSegmentation, paths: Sequence[Path], out: Path, opacity: float, mpp: float | None, at_once: int
) -> AsyncIterator[FileResult]:
    """Segment each file and write `NAME_mask.png` and `NAME_overlay.png` to `out`; yield results as they come.

    Args:
        patches: The use case that segments one patch.
        paths: The files.
        out: An existing folder.
        opacity: Of the overlay's colours, 0 to 1.
        mpp: Pixel spacing of each, in um/px; None leaves that to their DICOM headers.
        at_once: How many files to hold in memory.
    """
    waiting = iter(paths)
    running: set[asyncio.Task[FileResult]] = set()
    try:
        while True:
            while len(running) < at_once and (path := next(waiting, None)) is not None:
                running.add(asyncio.create_task(_segment_file(patches, path, out, opacity, mpp)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)  # nothing still works when the caller ends the model


async def _segment_file(
    patches: PatchSegmentation, path: Path, out: Path, opacity: float, mpp: float | None
) -> FileResult:
    try:
        async with patches.segmented(await asyncio.to_thread(path.read_bytes), mpp) as patch:
            pictures = await patches.encode(partial(_paint, patch, patches.manifest, opacity))
            row, warnings = _row(patch), tuple(warning.message for warning in patch.warnings)
        for name, png in pictures.items():
            await asyncio.to_thread(_replace, _result_path(out, path, name), png)
    except TesseraError as error:
        return FileResult(path, problem=str(error))
    except OSError as error:
        return FileResult(path, problem=f"{error.filename or out}: {error.strerror}")
    return FileResult(path, row, warnings=warnings)


def _paint(patch: SegmentedPatch, manifest: ModelManifest, opacity: float) -> dict[str, bytes]:
    text = picture_text(manifest, patch.conditions)
    return {
        "mask": paint_mask(patch.class_map, manifest.classes, text),
        "overlay": paint_overlay(patch.image, patch.class_map, manifest.classes, opacity, text),
    }


def write_table(results: Iterable[FileResult], manifest: ModelManifest, out: Path) -> Path:
    """Write `labels.csv` to `out`: a row for each result, in the order given; return its path."""
    columns = [
        "code",
        *(f"{tissue.name}_probability" for tissue in manifest.label_classes),
        *(f"{tissue.name}_fraction" for tissue in manifest.classes),
        "width_px",
        "height_px",
        "um_per_px",
        "scale_factor",
        "warnings",
        "sha256",
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", *columns, "problem"])
    for result in results:
        writer.writerow([result.path, *(result.row or [""] * len(columns)), result.problem or ""])
    path = out / TABLE_FILE
    _replace(path, text.getvalue().encode(errors="backslashreplace"))  # a file's name may be no UTF-8
    return path


def _row(patch: SegmentedPatch) -> tuple[str, ...]:
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
    )


def _result_path(out: Path, path: Path, name: str) -> Path:
    return out / f"{path.stem}_{name}.png"


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is whole at any moment it can be seen."""
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
