"""Image files that hold a canary in each place for text; and what a PNG holds."""

import secrets
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.canaries.words import Canaries
from tests.dicom_sources import file_of, whole_slide
from tests.pictures import encoded, noise

PIXELS = bytes([201, 7, 94, 188, 33, 250, 61, 142])
"""Eight grey pixels in a row, which an uncompressed file holds as they are."""
_PRIVATE = 0x00091001


def planted_files(canaries: Canaries) -> dict[str, bytes]:
    """Return whole image files by name, each place for text of which holds a canary."""
    picture = Image.fromarray(noise(24, 20))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", canaries["PNG tEXt"])
    texts.add_text(canaries["PNG tEXt keyword"], "x")
    texts.add_text("Author", canaries["PNG zTXt"], zip=True)
    texts.add_itxt("Comment", canaries["PNG iTXt"])
    texts.add_itxt("Description", canaries["PNG iTXt, compressed"], zip=True)
    texts.add(b"prVt", canaries["PNG private chunk"].encode())
    profile = _profile(canaries["ICC description"])
    tags = {
        number: canaries[f"TIFF {name}"]
        for number, name in {
            269: "DocumentName",
            270: "ImageDescription",
            305: "Software",
            315: "Artist",
            316: "HostComputer",
            33432: "Copyright",
            65000: "private tag",
        }.items()
    }
    tags[700] = _xmp(canaries["TIFF XMP"])
    return {
        "photo.png": encoded(picture, pnginfo=texts, icc_profile=profile, exif=_exif(canaries, "PNG")),
        "photo.jpg": encoded(
            picture,
            "JPEG",
            exif=_exif(canaries, "JPEG"),
            comment=canaries["JPEG comment"].encode(),
            xmp=_xmp(canaries["JPEG XMP"]),
            icc_profile=profile,
        ),
        "photo.webp": encoded(
            picture, "WEBP", exif=_exif(canaries, "WebP"), xmp=_xmp(canaries["WebP XMP"]), icc_profile=profile
        ),
        "scan.tif": encoded(_with_pixels(), "TIFF", tiffinfo=tags, icc_profile=profile),
        "scan.bmp": encoded(_with_pixels(), "BMP") + canaries["behind a BMP"].encode(),
        "slide.dcm": dicom_file(canaries),
    }


def dicom_file(canaries: Canaries) -> bytes:
    """Return a slide; those of its canaries that a result copies are the places of `IDENTIFIERS`."""
    slide = whole_slide(
        noise(40, 36),
        tile=20,
        PatientName=canaries["DICOM PatientName"],
        PatientID=canaries["DICOM PatientID"],
        StudyID=canaries["DICOM StudyID"],
        AccessionNumber=canaries["DICOM AccessionNumber"],
        PatientComments=canaries["DICOM PatientComments"],
        ImageComments=canaries["DICOM ImageComments"],
    )
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(slide, name, canaries.words.setdefault(f"DICOM {name}", f"2.25.{secrets.randbits(100)}"))
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID
    slide.add_new(0x00090010, "LO", canaries["DICOM private creator"])
    slide.add_new(_PRIVATE, "LT", canaries["DICOM private attribute"])
    return file_of(slide)


IDENTIFIERS = (
    "DICOM PatientName",
    "DICOM PatientID",
    "DICOM StudyID",
    "DICOM AccessionNumber",
    "DICOM PatientComments",
    "DICOM StudyInstanceUID",
    "DICOM SeriesInstanceUID",
    "DICOM SOPInstanceUID",
)
"""Places whose text a DICOM result carries on purpose: all of the patient and study, and what it is a result of."""


def damaged(name: str, data: bytes) -> dict[str, bytes]:
    """Return a file cut in the middle, and with a byte of each of its texts' surroundings turned over."""
    spoilt = bytearray(data)
    for at in range(len(data) // 2, len(data), 37):
        spoilt[at] ^= 0x55
    return {f"cut {name}": data[: len(data) // 2], f"late cut {name}": data[:-20], f"spoilt {name}": bytes(spoilt)}


def wrong_dicom(canaries: Canaries) -> dict[str, bytes]:
    """Return DICOM files whose values are not what their attributes take, or nothing that is known."""
    whole = dicom_file(canaries)

    def with_value(old: bytes, representation: bytes, place: str) -> bytes:
        word = canaries[place].encode() + b" "
        changed = whole.replace(old, representation + struct.pack("<H", len(word)) + word, 1)
        assert changed != whole
        return changed

    uid = canaries["DICOM StudyInstanceUID"].encode()
    return {
        "number.dcm": with_value(b"IS\x02\x004 ", b"IS", "DICOM number"),
        "characters.dcm": with_value(b"CS\x0a\x00ISO_IR 100", b"CS", "DICOM character set"),
        "place.dcm": with_value(b"CS\x0a\x00TILED_FULL", b"CS", "DICOM organization"),
        "uid.dcm": whole.replace(uid, canaries["DICOM UID of no digits"].encode().ljust(len(uid), b"x")),
        "class.dcm": whole.replace(b"1.2.840.10008.5.1.4.1.1.77.1.6", canaries["DICOM class"].encode().ljust(30, b"x")),
    }


def _with_pixels() -> np.ndarray:
    pixels = noise(24, 20)
    pixels[3, 4 : 4 + len(PIXELS)] = np.frombuffer(PIXELS, np.uint8)[:, np.newaxis]
    return pixels


def _exif(canaries: Canaries, kind: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = canaries[f"{kind} ImageDescription"], canaries[f"{kind} Artist"]
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + canaries[f"{kind} UserComment"].encode()
    exif.get_ifd(0x8825)[0x001B] = canaries[f"{kind} GPSProcessingMethod"].encode()
    exif.get_ifd(0x8825)[0x0012] = canaries[f"{kind} GPSMapDatum"]
    return exif


def _xmp(word: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{word}</dc:creator></x:xmpmeta>'.encode()


def _profile(word: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = profile.replace("sRGB built-in".encode("utf-16-be"), word.encode("utf-16-be"))
    assert named != profile
    return named


def png_chunks(data: bytes) -> list[bytes]:
    """Return the kinds of a PNG's chunks, each of which is whole, and nothing behind the last."""
    file, kinds = BytesIO(data), []
    assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    while head := file.read(8):
        length, kind = struct.unpack(">I4s", head)
        body = file.read(length)
        assert file.read(4) == struct.pack(">I", zlib.crc32(kind + body))
        kinds.append(kind)
    return kinds
