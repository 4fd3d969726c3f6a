"""What a JPEG 2000 codestream may be cut into: what encoders make, and not so much that a decoder is full of it."""

import struct
from itertools import product

import imagecodecs
import numpy as np
import pytest

from app.errors import UnreadableImage
from app.imaging.jpeg2000 import check_codestream, states_rgb
from app.pathology.geometry import Size
from tests.dicom_sources import jpeg_2000_of, jpeg_of
from tests.pictures import codestream_of, coding_style, encoded, jpeg_2000_segment, noise
from tests.slides import cmu1

COD, COC, COMMENT, PROFILE, PACKETS = 0xFF52, 0xFF53, 0xFF64, 0xFF56, 0xFF58
TOO_MANY = "far more tiles, blocks or packets"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True, "irreversible": True},
        {"codeblock_size": (32, 32)},
        {"codeblock_size": (16, 16), "precinct_size": (64, 64)},
        {"codeblock_size": (32, 32), "precinct_size": (128, 128), "quality_layers": [80, 40, 20, 10, 5]},
        {"precinct_size": (64, 64), "quality_layers": [*range(60, 0, -5)]},
        {"codeblock_size": (16, 16), "precinct_size": (64, 64), "quality_layers": [60, 40, 20, 10]},
        {"precinct_size": (256, 256), "num_resolutions": 1},
        {"tile_size": (128, 128), "num_resolutions": 6},
        {"tile_size": (256, 256), "progression": "RPCL", "plt": True},
        {"tile_size": (100, 50), "offset": (30, 20), "tile_offset": (10, 5)},
        {"tile_size": (64, 64), "num_resolutions": 6},
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (64, 64), (256, 256), (300, 17), (500, 700)])
def test_what_encoders_write_is_decoded(options, size):
    picture = noise(*size)
    for image in (picture, picture[..., 0]):
        check_codestream(encoded(image, "JPEG2000", **options), Size(*size))


@pytest.mark.parametrize("options", [{}, {"level": 40}, {"resolutions": 3}, {"codecformat": "jp2"}])
def test_so_is_what_another_program_writes(options):
    check_codestream(imagecodecs.jpeg2k_encode(noise(240, 240), **options), Size(240, 240))


def test_segments_that_lead_to_tiles_and_packets_are_passed_over():
    some = jpeg_2000_segment(COMMENT, b"\0\1Kakadu") + jpeg_2000_segment(PACKETS, bytes(9))
    check_codestream(codestream_of(64, main=some, tiles=some), Size(64, 64))


TINY = coding_style(1, precinct=1, block=0)


@pytest.mark.parametrize(
    "data",
    [
        codestream_of(512, 1, precinct=1, block=0),
        codestream_of(512, 1, precinct=3, block=0),
        codestream_of(512, 0, block=0),
        codestream_of(512, 0, tile=16),
        codestream_of(512, 0, tile=1),
        codestream_of(512, 5, precinct=7, layers=2**16 - 1),
        codestream_of(512, main=jpeg_2000_segment(COD, b"\1\0\0\1\1" + TINY)),
        codestream_of(512, main=jpeg_2000_segment(COC, b"\0\1" + TINY)),
        codestream_of(512, tiles=jpeg_2000_segment(COD, b"\1\0\0\1\1" + TINY)),
        codestream_of(512, tiles=jpeg_2000_segment(COC, b"\2\1" + TINY)),
    ],
    ids=[
        *("precincts of 2 px", "precincts of 8 px", "code-blocks of 4 px", "tiles of 16 px", "tiles of 1 px", "layers"),
        *("styles", "a channel's style", "a tile's style", "a tile's style of a channel"),
    ],
)
def test_what_is_cut_into_far_more_than_its_pixels_need_is_refused(data):
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        check_codestream(data, Size(512, 512))


def test_of_two_statements_of_size_and_tiles_the_first_counts():
    harmless, bomb = codestream_of(512), codestream_of(512, tile=8)
    again = harmless[2 : harmless.index(b"\xff\x52")]
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        check_codestream(bomb.replace(b"\xff\x5c", again + b"\xff\x5c", 1), Size(512, 512))


def test_the_style_of_a_later_part_of_a_tile_counts_too():
    first = codestream_of(512)
    second = struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 1, 2) + jpeg_2000_segment(COC, b"\0\1" + TINY) + b"\xff\x93"
    check_codestream(first[:-2] + b"\xff\x4f" + second, Size(512, 512))  # behind what no decoder goes over
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        check_codestream(first[:-2] + second, Size(512, 512))


FIRST_PART = struct.pack(">HHHI", 0xFF90, 10, 0, 12 + 2 + 64)


def test_a_part_of_a_tile_that_states_no_length_is_the_last():
    part = struct.pack(">HHHI", 0xFF90, 10, 0, 0)
    last = codestream_of(512).replace(FIRST_PART, part).replace(b"\xff\x93\0\0", b"\xff\x93\xff\x52")
    assert part in last
    check_codestream(last, Size(512, 512))


def test_a_part_of_a_tile_that_states_the_length_of_nothing_is_followed_by_the_next():
    harmless = codestream_of(512).replace(FIRST_PART, struct.pack(">HHHI", 0xFF90, 10, 0, 12))
    begin = harmless[: harmless.index(b"\xff\x93") + 2]
    check_codestream(begin + b"\xff\xd9", Size(512, 512))
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        check_codestream(begin + jpeg_2000_segment(COC, b"\0\1" + TINY), Size(512, 512))


def boxed(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(data), kind) + data


def test_of_a_jp2_file_the_codestream_in_its_box_counts_and_no_other():
    signature, header = boxed(b"jP  ", b"\r\n\x87\n"), boxed(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    harmless, bomb = codestream_of(512), codestream_of(512, 1, precinct=1, block=0)
    for begin in (struct.pack(">I4s", 0, b"jp2c"), struct.pack(">I4sQ", 1, b"jp2c", 16 + len(bomb))):
        with pytest.raises(UnreadableImage, match=TOO_MANY):
            check_codestream(signature + header + boxed(b"uuid", harmless) + begin + bomb, Size(512, 512))
    check_codestream(signature + header + boxed(b"uuid", bomb) + boxed(b"jp2c", harmless), Size(512, 512))
    for unending in (boxed(b"jp2c", bomb)[:8] + header, signature + header + bytes(8) + boxed(b"jp2c", harmless)):
        with pytest.raises(UnreadableImage, match="damaged at its beginning"):
            check_codestream(unending, Size(512, 512))


@pytest.mark.parametrize(
    "data",
    [
        codestream_of(64, 33),
        codestream_of(64, main=jpeg_2000_segment(COD, b"\1\0\0\1\1" + coding_style(3, precinct=7, block=4)[:-1])),
        codestream_of(64, channels=5),
        codestream_of(64).replace(b"\7\1\1", b"\7\0\1", 1),
        codestream_of(64).replace(struct.pack(">II", 64, 64) + bytes(8), struct.pack(">II", 64, 64) * 2, 1),
        codestream_of(64)[:30],
        codestream_of(64)[:52],
        codestream_of(64).replace(b"\xff\x51\0\x2f", b"\xff\x51\0\x09"),
        codestream_of(64).replace(b"\xff\x51\0\x2f", b"\xff\x51\0\x2c").replace(b"\7\1\1", b"", 1),
    ],
    ids=[
        "levels",
        "too few precincts",
        "channels",
        "steps of nothing",
        "tiles beside the image",
        "no SIZ",
        "no COD",
        "a short SIZ",
        "too few steps",
    ],
)
def test_a_damaged_header_is_refused(data):
    with pytest.raises(UnreadableImage, match=r"header is damaged|segment that is not known"):
        check_codestream(data, Size(64, 64))


def test_a_codestream_of_another_size_is_refused():
    with pytest.raises(UnreadableImage, match="not of 64x65 px"):
        check_codestream(codestream_of(64), Size(64, 65))


def test_a_segment_that_openjpeg_would_look_into_is_refused():
    hidden = jpeg_2000_segment(PROFILE, jpeg_2000_segment(COD, b"\1\0\0\1\1" + TINY))
    with pytest.raises(UnreadableImage, match="segment that is not known"):
        check_codestream(codestream_of(512, main=hidden), Size(512, 512))


def test_too_many_styles_and_segments_are_refused():
    styles = (coding_style(levels, 10, 4) for levels in range(20))
    each = b"".join(jpeg_2000_segment(COC, b"\0\1" + style) for style in styles)
    with pytest.raises(UnreadableImage, match="more than 16 styles"):
        check_codestream(codestream_of(64, main=each), Size(64, 64))
    with pytest.raises(UnreadableImage, match="more than 65536 segments"):
        check_codestream(codestream_of(64, tiles=jpeg_2000_segment(COMMENT, b"") * 2**16), Size(64, 64))


def parted(bounds: tuple[int, int], step: int, shift: int = 0) -> range:
    """The samples that are left of a range, moved by `shift`, where one of `step` is."""
    return range(*(-((shift - bound) // step) for bound in bounds))


def cells(samples: range, exponent: int) -> int:
    return len({at >> exponent for at in samples})


def slow_parts(tiles, steps, levels, precinct, block, layers):
    """As annex B has it, tile by tile and sample by sample, each cell that one lies in counted once."""
    parts = 16 * len(tiles)
    for tile, step, resolution in product(tiles, steps, range(levels + 1)):
        sides = [(bounds.start, bounds.stop) for bounds in map(parted, tile, step)]
        scale, halved = 2 ** (levels - resolution), int(resolution > 0)
        bands = [(1, 0), (0, 1), (1, 1)] if resolution else [(0, 0)]
        held = [cells(parted(side, scale), exponent) for side, exponent in zip(sides, precinct, strict=True)]
        parts += held[0] * held[1] * (len(bands) + -(-layers // 16))
        for band in bands:
            across, down = (
                cells(parted(sides[i], scale << halved, scale * band[i]), min(block[i], precinct[i] - halved))
                for i in (0, 1)
            )
            parts += across * down
    return parts


@pytest.mark.parametrize("seed", range(60))
def test_parts_are_counted_as_the_standard_has_them(seed, monkeypatch):
    draw = np.random.default_rng(seed)
    first, tile = draw.integers(0, 9, 2).tolist(), draw.integers(12, 40, 2).tolist()
    begin = [at + int(draw.integers(0, 9)) for at in first]
    size = draw.integers(1, 80, 2).tolist()
    end = [at + side for at, side in zip(begin, size, strict=True)]
    steps = [(1, 1), *draw.integers(1, 4, (2, 2)).tolist()]
    levels, layers = draw.integers((0, 1), 5).tolist()
    precinct, block = draw.integers(1, 8, 2).tolist(), draw.integers(2, 6, 2).tolist()
    spans = [
        [(max(at, begin[i]), min(at + tile[i], end[i])) for at in range(first[i], end[i], tile[i])] for i in (0, 1)
    ]
    parts = slow_parts(list(product(*spans)), steps, levels, precinct, block, layers)

    sides = struct.pack(">H8IH", 0, *end, *begin, *tile, *first, 3)
    sides += b"".join(struct.pack("BBB", 7, *step) for step in steps)
    style = struct.pack(">BBHBBBBBB", 1, 0, layers, 0, levels, block[0] - 2, block[1] - 2, 0, 1)
    style += bytes((precinct[0] | precinct[1] << 4,)) * (levels + 1)
    data = b"\xff\x4f" + jpeg_2000_segment(0xFF51, sides) + jpeg_2000_segment(COD, style)
    monkeypatch.setattr("app.imaging.jpeg2000._PIXELS_A_PART", 2**20)
    monkeypatch.setattr("app.imaging.jpeg2000._PARTS_OF_ANY", parts)
    check_codestream(data, Size(*size))
    monkeypatch.setattr("app.imaging.jpeg2000._PARTS_OF_ANY", parts - 1)
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        check_codestream(data, Size(*size))


@pytest.mark.parametrize("transforms", [False, True])
def test_a_jpeg_2000_says_whether_it_was_transformed_also_in_a_file_of_its_own(transforms):
    frame = jpeg_2000_of(cmu1(64, 64), transforms=transforms)
    assert states_rgb(frame) == transforms
    in_a_file = encoded(cmu1(64, 64), "JPEG2000", mct=int(transforms))
    assert in_a_file.startswith(b"\0\0\0\x0cjP  ")
    assert states_rgb(in_a_file) == transforms
    commented = frame[: frame.index(b"\xff\x52")] + b"\xff\x64\0\4\0\1" + frame[frame.index(b"\xff\x52") :]
    assert states_rgb(commented) == transforms


def test_what_is_no_whole_header_of_jpeg_2000_says_nothing():
    frame = jpeg_2000_of(cmu1(64, 64), transforms=True)
    said = [states_rgb(frame[:length]) for length in range(frame.index(b"\xff\x90"))]
    assert said == [length > frame.index(b"\xff\x52") + 8 for length in range(len(said))]
    start = frame[: frame.index(b"\xff\x52")]
    assert not states_rgb(start + b"\xff\x90" + frame)  # tiles have begun
    assert not states_rgb(start + 10_000 * b"\xff\x64\0\2" + frame)
    assert not states_rgb(jpeg_of(cmu1(64, 64)))
