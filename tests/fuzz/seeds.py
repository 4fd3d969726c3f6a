"""Small valid files of every format that is read, from which the fuzzers begin; made in code, so that none is kept."""

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom import uid

from app.pathology.geometry import Size
from model_export.synthetic import draw_patch
from tests.dicom_sources import file_of, microscopic, secondary_capture, whole_slide
from tests.pictures import encoded, exif, noise

SIDE_PX = 48


def seeds() -> dict[str, bytes]:
    """Return files by the name of what is odd about each."""
    patch = draw_patch(1, Size(SIDE_PX, 40))[0]
    picture = Image.fromarray(patch)
    grey = patch[..., 0].copy()
    wide = grey.astype(np.uint16) * 257
    see_through = np.dstack((patch, grey))
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 300, zip=True)
    text.add_itxt("note", "y" * 300, zip=True)
    turned = exif(6)
    tiffs = {
        f"{compression}.tif": encoded(patch, "TIFF", compression=compression)
        for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")
    }
    slides = {
        f"{name}.dcm": file_of(whole_slide(noise(40, 36), tile=20, syntax=syntax))
        for name, syntax in (
            ("plain", uid.ExplicitVRLittleEndian),
            ("jpeg", uid.JPEGBaseline8Bit),
            ("jpeg2000", uid.JPEG2000Lossless),
            ("rle", uid.RLELossless),
        )
    }
    return {
        "rgb.png": encoded(patch),
        "grey.png": encoded(grey),
        "wide.png": encoded(wide),
        "see-through.png": encoded(see_through),
        "palette.png": encoded(picture.quantize(16), transparency=3),
        "one-bit.png": encoded(picture.convert("1")),
        "notes.png": encoded(picture, pnginfo=text, icc_profile=b"profile" * 40, exif=turned),
        "animated.png": encoded(picture, save_all=True, append_images=[picture.rotate(90)]),
        "rgb.jpg": encoded(patch, "JPEG", quality=80, exif=turned),
        "progressive.jpg": encoded(patch, "JPEG", progressive=True, subsampling=2),
        "restarts.jpg": encoded(grey, "JPEG", restart_marker_blocks=2),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "preview.jpg": encoded(picture, "MPO", save_all=True, append_images=[picture.resize((8, 8))]),
        **tiffs,
        "wide.tif": encoded(wide, "TIFF"),
        "big.tif": encoded(picture, "TIFF", big_tiff=True),
        "pages.tif": encoded(picture, "TIFF", save_all=True, append_images=[picture]),
        "lossy.webp": encoded(see_through, "WEBP"),
        "lossless.webp": encoded(patch, "WEBP", lossless=True, exif=turned),
        "animated.webp": encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)]),
        "rgb.bmp": encoded(patch, "BMP"),
        "palette.bmp": encoded(picture.quantize(16), "BMP"),
        **slides,
        "sparse.dcm": file_of(whole_slide(noise(40, 36), tile=20, sparse=True)),
        "field.dcm": file_of(microscopic(noise(20, 10))),
        "capture.dcm": file_of(secondary_capture(grey)),
    }
