"""A DICOM file's attributes, at a cost that is bounded before it is spent.

pydicom makes about a kilobyte of objects of an empty item of 8 bytes, so a file that is small may cost gigabytes. What
it reads here is metered: elements, items of sequences and values of text all count, wherever they are nested.
Source: DICOM PS3.5, section 7, and PS3.10, section 7.
"""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from app.errors import UnreadableImage, UnsupportedImage

if TYPE_CHECKING:
    from pydicom import Dataset

_MOST_HEADER_BYTES = 2 * 2**20
"""All that precedes the pixels. Places of 4096 tiles take 0.5 MiB, a scanner's colour profile less."""
_MOST_DEPTH = 32
"""How many sequences may lie in one another; reports have some ten."""
_MOST_PARTS = 20_000
"""Elements, items and values. A tile's place has some 14, so 256 tiles, as 4096 px have of 256 px, have 3,700."""
_MOST_FRAGMENTS = 2**16
_PIXEL_GROUP, _PIXEL_DATA = 0x7FE00000, 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_TAG_AND_LENGTH = 8
"""Bytes; every element and every item begins with such a read."""
_TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI")
"""Representations that a backslash parts into values, of which each becomes an object."""


class _Meter:
    """How many parts a header may still have."""

    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def count(self, parts: int) -> None:
        self._left -= parts
        self.check()

    def check(self) -> None:
        if self._left < 0:
            raise UnreadableImage(f"the DICOM file's header has more than {_MOST_PARTS} elements, items and values")


class _Metered(BytesIO):
    """A file that counts what begins in it."""

    def __init__(self, data: bytes, meter: _Meter) -> None:
        super().__init__(data)
        self._meter = meter

    def read(self, size: int | None = -1, /) -> bytes:
        if size == _TAG_AND_LENGTH:
            self._meter.count(1)
        return super().read(size)


def read_header(data: bytes) -> tuple["Dataset", int]:
    """Return the attributes that precede an image's pixels, and the byte at which those begin.

    Every sequence is read; private attributes are left out, since nobody asks for them.

    Raises:
        UnsupportedImage: The transfer syntax is another than those that are read.
        UnreadableImage: The header is larger than an image's.
        Exception: Whatever pydicom raises on damaged bytes.
    """
    meter = _Meter()
    file = _Metered(data[:_MOST_HEADER_BYTES], meter)
    try:
        dataset = _read_elements(file)
        _open_sequences(dataset, meter)
    except Exception:
        meter.check()  # pydicom puts an error of its own in the place of what a read raises
        raise
    position = file.tell()
    if position >= _MOST_HEADER_BYTES:
        raise UnreadableImage(f"the DICOM file has more than {_MOST_HEADER_BYTES // 2**20} MiB before its pixels")
    return dataset, position


def read_pixels(data: bytes, dataset: "Dataset", position: int) -> None:
    """Add to `dataset` what `data` has from `position`: the encoded pixels, and tables of their frames' offsets.

    Raises:
        UnreadableImage: There are none, or something else is in their place.
        Exception: Whatever pydicom raises on damaged bytes.
    """
    from pydicom.filereader import read_dataset  # noqa: PLC0415

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and data.count(_ITEM, position) > _MOST_FRAGMENTS:
        raise UnreadableImage(f"the DICOM image's pixels are in more than {_MOST_FRAGMENTS} fragments")
    file = _Metered(data, _Meter())
    file.seek(position)
    dataset.update(read_dataset(file, syntax.is_implicit_VR, True, stop_when=_is_beyond_pixels))
    if "PixelData" not in dataset:
        raise UnreadableImage("the DICOM image has no pixels, or its file is truncated")


def _is_beyond_pixels(tag: int, representation: str | None, length: int) -> bool:
    if tag > _PIXEL_DATA:
        return True
    # Encapsulated pixels alone may end at a mark (PS3.5, section A.4); pydicom takes all else for a sequence.
    if length == _UNDEFINED and (tag != _PIXEL_DATA or representation not in {"OB", "OW"}):
        raise UnreadableImage("the DICOM image has something without a stated length in the place of its pixels")
    return False


def _read_elements(file: BytesIO) -> "Dataset":
    from pydicom import uid  # noqa: PLC0415
    from pydicom.filereader import read_dataset, read_partial, read_preamble  # noqa: PLC0415

    accepted = (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGBaseline8Bit,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
    )
    read_preamble(file, force=False)
    # Looked at first: pydicom would inflate a deflated file of any size to find its first element.
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.TransferSyntaxUID not in accepted:
        raise UnsupportedImage(
            "the DICOM file's transfer syntax is not read; send it uncompressed, as RLE, JPEG baseline or JPEG 2000"
        )
    file.seek(0)
    return read_partial(file, stop_when=lambda tag, *_: tag >= _PIXEL_GROUP)


def _open_sequences(dataset: "Dataset", meter: _Meter, depth: int = 0) -> None:
    """Read the sequences of a stated length, which pydicom would read, unmetered, when they are asked for.

    Raises:
        UnreadableImage: Sequences lie in sequences, deeper than any standard has them: pydicom's writer does not come
            to an end with some hundreds.
    """
    from pydicom.dataelem import DataElement, RawDataElement  # noqa: PLC0415
    from pydicom.filereader import read_sequence  # noqa: PLC0415

    if depth > _MOST_DEPTH:
        raise UnreadableImage(f"the DICOM image has sequences in sequences, more than {_MOST_DEPTH} deep")
    for tag in list(dataset.keys()):
        if tag.is_private:
            del dataset[tag]
            continue
        element: Any = dataset.get_item(tag)
        representation = _representation(element)
        value: Any = element.value or b""
        if isinstance(element, RawDataElement) and representation in _TEXTS:
            meter.count(value.count(b"\\"))
        elif isinstance(element, RawDataElement) and representation == "SQ":
            file = _Metered(value, meter)
            value = read_sequence(file, element.is_implicit_VR, True, len(value), dataset.original_character_set)
            dataset[tag] = DataElement(tag, "SQ", value)
        if representation == "SQ":
            for item in value:
                _open_sequences(item, meter, depth + 1)


def _representation(element: Any) -> str | None:
    """Return what pydicom will take the element for: the dictionary's word where the file has none."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR  # noqa: PLC0415

    stated: str | None = element.VR
    if stated in {None, "UN"} and dictionary_has_tag(element.tag):
        return dictionary_VR(element.tag)
    return stated
